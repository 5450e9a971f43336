from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from autopeft.metrics.missing import missing_bounds

RACE = ("A", "B")


def simulate(table, seed=0, n=300, unknown=0.2):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    known = rng.choice(["A", "B"], n)
    race = np.where(rng.random(n) < unknown, "unknown", known)
    return table(
        rng.normal(size=n) + y * np.where(known == "A", 1.6, 1.0), y, groups={"race": race}
    )


def gap(p, race):
    values = [roc_auc_score(p.target[race == g, 0], p.score[race == g, 0]) for g in RACE]
    return abs(values[0] - values[1])


def test_all_missing_in_one_group(table):
    p = simulate(table)
    found, race = missing_bounds(p, "race", RACE), p.groups["race"]
    assert found.value == pytest.approx(gap(p, race))
    together = {g: gap(p, np.where(race == "unknown", g, race)) for g in RACE}
    assert found.together == pytest.approx(together)
    assert (found.low, found.high) == pytest.approx(tuple(sorted(together.values())))
    assert found.share == (race == "unknown").mean()
    assert found.due


def test_every_division_of_few_missing_lies_inside(table):
    p = simulate(table, n=80, unknown=0.0)
    race = p.groups["race"].astype(object)
    race[:7] = "unknown"
    p = replace(p, groups={"race": race})
    found, seen = missing_bounds(p, "race", RACE), []
    for choice in product(RACE, repeat=7):
        filled = race.copy()
        filled[:7] = choice
        seen.append(gap(p, filled))
    assert found.least <= min(seen) + 1e-12
    assert max(seen) - 1e-12 <= found.most <= max(seen) + 0.05


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_bounds_are_nested(table, seed):
    found = missing_bounds(simulate(table, seed), "race", RACE)
    assert 0 <= found.least <= found.low <= found.high <= found.most <= 1


def test_nothing_missing_no_bounds(table):
    assert missing_bounds(simulate(table, unknown=0.0), "race", RACE) is None
    assert not missing_bounds(simulate(table, unknown=0.05), "race", RACE).due


def test_patients_are_counted_not_images(table):
    p = simulate(table)
    patient = np.where(p.groups["race"] == "unknown", 0, np.arange(1, 301))
    found = missing_bounds(replace(p, patient=patient), "race", RACE)
    assert found.share == pytest.approx(1 / len(set(patient)))


def test_no_bounds_without_two_scored_groups(table):
    p = simulate(table)
    assert missing_bounds(p, "race", ("A",)) is None
    assert missing_bounds(replace(p, patient=np.zeros(300)), "race", RACE) is None
