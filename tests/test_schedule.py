"""Promotion against hand-worked examples, and what must hold for any order of arrivals."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.schedule import best_paused, informative_rung, next_promotion, rungs


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
    assert rungs(epochs) == expected


def test_rungs_with_other_first_rung_and_eta():
    assert rungs(20, r_min=2, eta=4) == (2, 8, 20)


def at(*values):
    """Trials 0, 1, ... of which each has these values at rungs 0, 1, ..."""
    return {number: dict(enumerate(row)) for number, row in enumerate(values)}


def test_two_results_promote_nobody_three_promote_the_best():
    assert next_promotion(at([0.9], [0.8]), (), (), top=2) is None
    assert next_promotion(at([0.7], [0.9], [0.8]), (), (), top=2) == 1


def test_the_promoted_trial_is_not_promoted_again_while_it_runs():
    results = at([0.7], [0.9], [0.8])
    assert next_promotion(results, {1}, (), top=2) is None


def test_ties_go_to_the_older_trial():
    assert next_promotion(at([0.8], [0.8], [0.8]), (), (), top=2) == 0


def test_the_highest_rung_comes_first():
    # Rung 0: nine results, three may go on and did; a tenth to twelfth make room for trial 9.
    # Rung 1: three results, so its best (trial 2) may go on: before trial 9.
    results = at(
        [0.9, 0.91], [0.8, 0.90], [0.7, 0.99], [0.1], [0.1], [0.1], [0.1], [0.1], [0.1], [0.75],
        [0.1], [0.1],
    )  # fmt: skip
    assert next_promotion(results, (), (), top=2) == 2
    # With trial 2 running, rung 1 has nothing left; rung 0 has 12 results: 0, 1, 9, 2 are best.
    assert next_promotion(results, {2}, (), top=2) == 9


def test_a_late_arrival_takes_no_place_back():
    # 0 was promoted as best of three; 3 arrives with a better value, but 4 // 3 is one place.
    results = at([0.9, 0.92], [0.5], [0.4], [0.95])
    # Its rank is now 1 of 4, so it goes on too: asynchronous halving promotes by rank alone.
    assert next_promotion(results, (), (), top=2) == 3
    worse = at([0.9, 0.92], [0.5], [0.4], [0.85])
    assert next_promotion(worse, (), (), top=2) is None


def test_a_failed_trial_passes_its_place_on_and_still_counts():
    results = at([0.9], [0.8], [0.7])
    assert next_promotion(results, (), {0}, top=2) == 1
    # Two alive of three: one place, and it is taken.
    assert next_promotion(results, {1}, {0}, top=2) is None


def test_finished_trials_are_left_alone():
    results = at([0.9, 0.9, 0.9], [0.1], [0.2])
    assert next_promotion(results, (), (), top=2) is None


def test_at_the_end_the_best_of_each_rung_goes_on():
    two = at([0.5], [0.6])
    assert next_promotion(two, (), (), top=2) is None
    assert next_promotion(two, (), (), top=2, at_least=1) == 1
    assert next_promotion(at([0.5], [0.6, 0.7]), (), (), top=2, at_least=1) == 1
    assert next_promotion(at([0.5], [0.6, 0.7, 0.8]), (), (), top=2, at_least=1) is None


def test_what_never_paused_does_not_rank_below_the_top():
    results = {0: {2: 0.99}, 1: {0: 0.1}, 2: {0: 0.2}}
    assert next_promotion(results, (), (), top=2) is None  # two results at rung 0, not three


def test_best_paused_prefers_the_higher_rung_then_the_value():
    assert best_paused(at([0.9], [0.5, 0.4], [0.6, 0.7]), (), top=2) == 2
    assert best_paused(at([0.9], [0.5, 0.4], [0.6, 0.7]), {2}, top=2) == 1
    assert best_paused(at([0.9, 0.9, 0.9]), (), top=2) is None
    assert best_paused({}, (), top=2) is None


def test_informative_rung_is_the_highest_with_ten():
    ten = at(*([[0.5, 0.6]] * 10), [0.1], [0.9, 0.9, 0.9])
    assert informative_rung(ten, top=2) == 1
    assert informative_rung(at(*([[0.5]] * 3), [0.5, 0.6]), top=2) == 0
    assert informative_rung({}, top=2) is None


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
    top = len(rungs(epochs, eta=eta)) - 1
    results, running, failed, asked = {}, {}, set(), 0
    while True:
        while len(running) < slots:
            number = next_promotion(results, set(running), failed, top, eta)
            if number is None and asked < trials:
                number, asked = asked, asked + 1
                results[number] = {}
            if number is None and not running:
                number = next_promotion(results, (), failed, top, eta, at_least=1)
            if number is None:
                break
            assert number not in running
            assert number not in failed
            running[number] = max(results[number], default=-1) + 1
        if not running:
            break
        number = draw.choice(sorted(running))
        rung = running.pop(number)
        assert rung not in results[number], "a rung was trained twice"
        if draw.random() < 0.1:
            failed.add(number)
        else:
            results[number][rung] = round(draw.random(), 1)
    alive = [n for n in results if n not in failed]
    finished = [n for n in alive if top in results[n]]
    assert bool(finished) == bool(alive)
    for rung in range(top):
        # Nobody who may go on was left behind: everyone of the best n // eta has gone on.
        reached = [n for n in results if rung in results[n]]
        ranked = sorted((n for n in reached if n in alive), key=lambda n: (-results[n][rung], n))
        assert all(rung + 1 in results[n] for n in ranked[: len(reached) // eta])
