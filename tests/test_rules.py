"""Rules: what they pick, that it is on the front, and what must not change the pick."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.metrics.front import select_front
from autopeft.objective import load_objective
from autopeft.rules import Rule, dto, knee, lexicographic, overall, worst_group
from autopeft.terms import Term

UP, DOWN = Term("auroc"), Term("brier")
RULES = {
    "lexicographic": lexicographic(UP, DOWN),
    "slack": lexicographic((UP, 0.1), DOWN),
    "two_slacks": lexicographic((UP, 0.1), (DOWN, 0.2)),
    "dto": dto(UP, DOWN),
    "knee": knee(UP, DOWN),
    "sizes": dto(UP, Term("trainable_params")),
}
VALUES = st.tuples(st.integers(0, 16), st.integers(1, 16)).map(lambda v: (v[0] / 16, v[1] / 16))
TABLES = st.lists(VALUES, min_size=1, max_size=12)


@pytest.mark.parametrize("name", RULES)
@given(table=TABLES)
def test_the_pick_is_on_the_front(name, table):
    """Whatever is in the table, dominated entries too: nothing beats the pick."""
    front = select_front(table, [0.0] * len(table), ("maximize", "minimize"))
    assert RULES[name].pick(table) in front.indices


@pytest.mark.parametrize("name", ["lexicographic", "dto", "knee"])
@given(table=TABLES, scale=st.sampled_from([0.25, 2.0, 64.0]), shift=st.integers(-4, 4))
def test_units_and_constants_do_not_matter(name, table, scale, shift):
    moved = [(a * scale + shift, b * 4) for a, b in table]
    assert RULES[name].pick(moved) == RULES[name].pick(table)


@pytest.mark.parametrize("name", RULES)
@given(table=TABLES, data=st.data())
def test_the_order_of_entries_matters_only_among_equals(name, table, data):
    order = data.draw(st.permutations(range(len(table))))
    picked = RULES[name].pick([table[i] for i in order])
    assert table[order[picked]] == table[RULES[name].pick(table)]


@pytest.mark.parametrize("name", RULES)
@given(table=TABLES, poor=VALUES)
def test_a_dominated_entry_changes_nothing_on_a_front(name, table, poor):
    """The front is taken first, so the scale cannot be moved by what is not on it."""
    assume(any(a > poor[0] and b < poor[1] for a, b in table))

    def pick(entries):
        front = select_front(entries, [0.0] * len(entries), ("maximize", "minimize"))
        return front.indices[RULES[name].pick([entries[i] for i in front])]

    assert pick([*table, poor]) == pick(table)


@given(table=TABLES)
def test_dto_and_knee_are_their_formulas(table):
    a, b = np.array(table).T
    n = [
        np.ones(len(v)) if np.ptp(v) == 0 else (v - v.min()) / np.ptp(v)
        for v in (a, -b)
    ]  # fmt: skip
    distance = np.hypot(1 - n[0], 1 - n[1])
    assert distance[RULES["dto"].pick(table)] == pytest.approx(distance.min())
    total = n[0] + n[1]
    assert total[RULES["knee"].pick(table)] == pytest.approx(total.max())


def test_slack_is_what_may_be_lost():
    table = [(0.90, 0.5), (0.89, 0.3), (0.88, 0.1)]
    assert lexicographic((UP, 0.0), DOWN).pick(table) == 0
    assert lexicographic((UP, 0.01), DOWN).pick(table) == 1  # .90 - .01 is .89, rounding or not
    assert lexicographic((UP, 0.05), DOWN).pick(table) == 2
    margin = lexicographic((UP, "margin"), DOWN)
    assert [margin.pick(table, m) for m in (0.0, 0.01, 0.02)] == [0, 1, 2]
    last = lexicographic((UP, 0.1), (DOWN, 0.1))  # the last slack is among equals only
    assert last.pick([(0.9, 0.5), (0.85, 0.45)]) == 0


def test_a_knee_bulges_and_the_ideal_is_near():
    table = [(0.0, 0.0), (0.5, 0.1), (0.6, 0.4), (1.0, 1.0)]
    assert RULES["knee"].pick(table) == 1
    bent = [(0.0, 0.0), (0.45, 0.4), (0.95, 0.93), (1.0, 1.0)]
    assert RULES["dto"].pick(bent) == 1


def test_sizes_are_compared_by_their_ratio():
    rule = knee("auroc", "trainable_params")
    table = [(0.80, 1e3), (0.85, 1e4), (0.86, 1e6), (0.861, 1e8)]
    assert rule.pick(table) == 1
    assert rule.pick([(a, 1000 * p) for a, p in table]) == 1


@pytest.mark.parametrize("name", RULES)
def test_what_is_undefined_never_wins_against_a_value(name):
    rule = RULES[name]
    assert rule.pick([(None, None), (0.1, 0.9), (0.0, None)]) == 1
    assert rule.pick([(None, None)]) == 0
    assert rule.pick([(0.5, 0.5)]) == 0
    for known in ((None, 0.5), (0.5, None)):
        assert rule.pick([(None, None), known]) == 1


def test_rules_are_called_with_evaluations():
    def evaluation(params, margin):
        y = np.tile([0.0, 1.0], 20)[:, None]
        p = Predictions(
            y.copy(), y, np.arange(40), np.zeros(40), {}, ("c",), "binary", "search"
        )  # fmt: skip
        return Evaluation(p, Cost(params, params), margin=margin)

    front = [evaluation(30, 0.01), evaluation(10, 0.01)]
    assert overall(front) == 1
    assert worst_group(front) == 1
    assert dto("auroc", "trainable_params")(front) == 1
    for rule in (overall, *RULES.values()):
        with pytest.raises(ValueError, match="empty"):
            rule([])


def test_rules_are_plain_data():
    assert lexicographic("auroc", ("auroc_gap", 0.0)) == Rule(
        "lexicographic", (Term("auroc"), Term("auroc_gap"))
    )
    assert load_objective("efficiency").choose == knee("auroc", "trainable_params")
    assert load_objective("fairness_gap").choose.slack == ("margin",)
