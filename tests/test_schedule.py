"""Promotion against hand-worked examples, and what must hold for any order of arrivals."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.parts import FOLD_PARTS
from autopeft.schedule import (
    Promotion,
    epoch_ladder,
    fold_ladder,
    informative_rung,
    rank,
)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (9, (1, 3, 9)),
        (3, (1, 3)),
        (1, (1,)),
        (10, (1, 3, 9, 10)),
        (2, (1, 2)),
        (27, (1, 3, 9, 27)),
    ],
)
def test_rungs_are_powers_below_the_end_and_the_end(epochs, expected):
    assert epoch_ladder(epochs).stops == expected


def test_rungs_with_other_first_rung_and_eta():
    assert epoch_ladder(20, r_min=2, eta=4).stops == (2, 8, 20)


def test_epochs_are_one_training_that_goes_on():
    ladder = epoch_ladder(9)
    assert [ladder.next(done) for done in (0, 1, 3)] == [1, 3, 9]
    assert ladder.stretch(1, 3) == ("all", 1, 3)
    assert [ladder.rung(r) for r in (0, 1, 2, 3, 9)] == [None, 0, None, 1, 2]
    assert ladder.top == 2


def test_folds_are_whole_trainings_of_which_more_and_more_are_done():
    ladder = fold_ladder(9)
    assert ladder.stops == (1, 3, 5)
    assert [ladder.next(done) for done in range(5)] == [1, 2, 3, 4, 5]
    assert [ladder.stretch(done, done + 1)[0] for done in range(5)] == list(FOLD_PARTS)
    assert ladder.stretch(2, 3) == ("fold:2", 0, 9)
    assert [ladder.rung(r) for r in range(6)] == [None, 0, None, 1, None, 2]


def at(*values, top=2, eta=3):
    """Trials 0, 1, ... of which each has these values at rungs 0, 1, ..."""
    promotion = Promotion(top, eta)
    for number, row in enumerate(values):
        for rung, value in enumerate(row):
            promotion.reached(number, rung, (value,))
    return promotion


def failed(promotion, *numbers):
    for number in numbers:
        promotion.left(number)
    return promotion


def test_two_results_promote_nobody_three_promote_the_best():
    assert at([0.9], [0.8]).next(()) is None
    assert at([0.7], [0.9], [0.8]).next(()) == 1


def test_the_promoted_trial_is_not_promoted_again_while_it_runs():
    assert at([0.7], [0.9], [0.8]).next({1}) is None


def test_ties_go_to_the_older_trial():
    assert at([0.8], [0.8], [0.8]).next(()) == 0


def test_the_highest_rung_comes_first():
    # Rung 0: nine results, three may go on and did; a tenth to twelfth make room for trial 9.
    # Rung 1: three results, so its best (trial 2) may go on: before trial 9.
    promotion = at(
        [0.9, 0.91], [0.8, 0.90], [0.7, 0.99], [0.1], [0.1], [0.1], [0.1], [0.1], [0.1], [0.75],
        [0.1], [0.1],
    )  # fmt: skip
    assert promotion.next(()) == 2
    # With trial 2 running, rung 1 has nothing left; rung 0 has 12 results: 0, 1, 9, 2 are best.
    assert promotion.next({2}) == 9


def test_a_late_arrival_takes_no_place_back():
    # 0 was promoted as best of three; 3 arrives with a better value, but 4 // 3 is one place.
    # Its rank is now 1 of 4, so it goes on too: asynchronous halving promotes by rank alone.
    assert at([0.9, 0.92], [0.5], [0.4], [0.95]).next(()) == 3
    assert at([0.9, 0.92], [0.5], [0.4], [0.85]).next(()) is None


def test_three_rungs_from_the_first_trial_to_the_winner():
    """Nine trials, eta 3, one worker: worked by hand."""
    promotion, values = Promotion(2), [0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.4, 0.5, 0.6]
    steps = []
    for number, value in enumerate(values):
        promotion.reached(number, 0, (value,))
        while (up := promotion.next(())) is not None:
            rung = 1 if (up, 1) not in steps else 2
            promotion.reached(up, rung, (values[up],))
            steps.append((up, rung))
    # After three: 2 (.3) goes on. After four: 3 (.9) is best of four. After six: 3, 4 are the two
    # best; 4 goes on, and with 2, 3, 4 at rung 1 the best of them, 3, reaches the top. After nine
    # the three best are 3, 4, 5: 5 goes on.
    assert steps == [(2, 1), (3, 1), (4, 1), (3, 2), (5, 1)]


def test_a_failed_trial_passes_its_place_on_and_still_counts():
    assert failed(at([0.9], [0.8], [0.7]), 0).next(()) == 1
    # Two alive of three: one place, and it is taken.
    assert failed(at([0.9], [0.8], [0.7]), 0).next({1}) is None


def test_finished_trials_are_left_alone():
    assert at([0.9, 0.9, 0.9], [0.1], [0.2]).next(()) is None


def test_at_the_end_the_best_of_each_rung_goes_on():
    two = at([0.5], [0.6])
    assert two.next(()) is None
    assert two.next((), at_least=1) == 1
    assert at([0.5], [0.6, 0.7]).next((), at_least=1) == 1
    assert at([0.5], [0.6, 0.7, 0.8]).next((), at_least=1) is None


def test_what_never_paused_does_not_rank_below_the_top():
    promotion = Promotion(2)
    promotion.reached(0, 2, (0.99,))
    promotion.reached(1, 0, (0.1,))
    promotion.reached(2, 0, (0.2,))
    assert promotion.next(()) is None  # two results at rung 0, not three


def test_the_nearest_to_a_full_training_is_the_highest_then_the_best():
    assert at([0.9], [0.5, 0.4], [0.6, 0.7]).nearest() == 2
    assert failed(at([0.9], [0.5, 0.4], [0.6, 0.7]), 2).nearest() == 1
    assert at([0.9, 0.9, 0.9]).nearest() is None
    assert Promotion(2).nearest() is None


def test_several_terms_promote_front_by_front_spread_out():
    """Two terms, higher is better in both; worked by hand.

    Front one: a (1, 0), b (.8, .6), c (.7, .65), d (0, 1). Best first term: a. Scaled distances
    from a: d is farthest (1.41), then of b and c the one farther from a and d: b has .63 to a and
    .89 to d, so .63; c has .72 to a and .78 to d, so .72: c before b. Front two: e.
    """
    table = {"e": (0.5, 0.5), "b": (0.8, 0.6), "a": (1, 0), "d": (0, 1), "c": (0.7, 0.65)}
    assert "".join(list(table)[i] for i in rank(list(table.values()))) == "adcbe"
    promotion = Promotion(1)
    for number, key in enumerate(table.values()):
        promotion.reached(number, 0, key)
    assert promotion.next(()) == 2  # five results, one place: a
    promotion.reached(5, 0, (0.1, 0.1))
    assert promotion.next({2}) == 3  # two places: a and d
    promotion.left(2)  # a failed: b (.8) has the best first term now, d is the farthest from it
    assert promotion.next(()) == 1
    assert promotion.next({1}) == 3
    assert promotion.next({1, 3}) is None


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 3), st.data())
def test_fronts_are_peeled_as_brute_force_peels_them(columns, data):
    row = st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * columns)
    table = data.draw(st.lists(row, min_size=1, max_size=14))
    order = rank(table)
    assert sorted(order) == list(range(len(table)))
    depth = {}
    left = set(range(len(table)))
    for level in itertools.count():
        front = {i for i in left if not any(dominates(table[j], table[i]) for j in left)}
        depth |= dict.fromkeys(front, level)
        left -= front
        if not left:
            break
    assert [depth[i] for i in order] == sorted(depth.values())
    wanted = data.draw(st.integers(0, len(table)))
    assert rank(table, wanted)[:wanted] == order[:wanted]


def test_undefined_terms_rank_last():
    assert rank([(-np.inf, 0.9), (0.5, 0.9), (0.6, -np.inf)])[-1] != 1
    assert rank([(-np.inf, -np.inf), (0.1, 0.1)]) == [1, 0]


def test_informative_rung_is_the_highest_with_ten():
    ten = [{0: 0.5, 1: 0.6}] * 10 + [{0: 0.1}, {0: 0.9, 1: 0.9, 2: 0.9}]
    assert informative_rung(ten, top=2) == 1
    assert informative_rung([{0: 0.5}] * 3 + [{0: 0.5, 1: 0.6}], top=2) == 0
    assert informative_rung([], top=2) == 0


@settings(max_examples=60, deadline=None)
@given(
    trials=st.integers(1, 40),
    slots=st.integers(1, 6),
    epochs=st.sampled_from([1, 3, 9, 27]),
    eta=st.integers(2, 4),
    seed=st.integers(0, 10**6),
)
def test_any_order_of_arrivals_ends_with_a_full_training_and_few_of_them(
    trials, slots, epochs, eta, seed
):
    """A discrete simulation: jobs end in random order, one in ten fails."""
    draw = random.Random(seed)
    top = epoch_ladder(epochs, eta=eta).top
    promotion = Promotion(top, eta)
    results, running, dead, asked = {}, {}, set(), 0
    while True:
        while len(running) < slots:
            number = promotion.next(running)
            if number is None and asked < trials:
                number, asked = asked, asked + 1
                results[number] = {}
            if number is None and not running:
                number = promotion.next((), at_least=1)
            if number is None:
                break
            assert number not in running
            assert number not in dead
            running[number] = max(results[number], default=-1) + 1
        if not running:
            break
        number = draw.choice(sorted(running))
        rung = running.pop(number)
        assert rung not in results[number], "a rung was trained twice"
        if draw.random() < 0.1:
            dead.add(number)
            promotion.left(number)
        else:
            results[number][rung] = round(draw.random(), 1)
            promotion.reached(number, rung, (results[number][rung],))
    alive = [n for n in results if n not in dead]
    finished = [n for n in alive if top in results[n]]
    assert bool(finished) == bool(alive)
    for rung in range(top):
        # Nobody who may go on was left behind: everyone of the best n // eta has gone on.
        reached = [n for n in results if rung in results[n]]
        ranked = sorted((n for n in reached if n in alive), key=lambda n: (-results[n][rung], n))
        assert all(rung + 1 in results[n] for n in ranked[: len(reached) // eta])
