"""Shortcuts: planted ones are found, none is none, labels explain what they explain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.evaluation import Predictions
from autopeft.metrics.intervals import Interval
from autopeft.metrics.shortcuts import Shortcut, _Ranks, feature_shortcuts, shortcuts


def simulated(effect=0.0, n=400, seed=0, images=1, classes=1, prevalence=(0.3, 0.3), view=False):
    """Patients of two sexes; men score ``effect`` higher at equal labels."""
    rng = np.random.default_rng(seed)
    man = rng.random(n) < 0.5
    chance = np.where(man, prevalence[1], prevalence[0])
    y = (rng.random((n, classes)) < chance[:, None]).astype(float)
    frailty = rng.normal(size=n) * 0.7
    unit = np.repeat(np.arange(n), images)
    lateral = rng.random(len(unit)) < 0.5
    who = lateral if view else man[unit]
    score = y[unit] + frailty[unit, None] + rng.normal(size=(len(unit), classes)) * 0.7
    score = score + effect * who[:, None]
    groups = {"sex": np.where(man, "sex=M", "sex=F")[unit]}
    if view:
        groups = {"view": np.where(lateral, "view=L", "view=F")}
    return Predictions(
        score, y[unit], unit.astype(str), np.zeros(len(unit), int), groups,
        tuple(f"c{i}" for i in range(classes)),
        "binary" if classes == 1 else "multilabel", "test",
    )  # fmt: skip


def by_hand(score, member, stratum):
    """Every pair inside a stratum, counted."""
    wins = pairs = 0.0
    for s in set(stratum.tolist()):
        a = score[(stratum == s) & member]
        b = score[(stratum == s) & ~member]
        wins += (a[:, None] > b).sum() + 0.5 * (a[:, None] == b).sum()
        pairs += len(a) * len(b)
    return wins / pairs if pairs else np.nan


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 40))
def test_ranks_count_every_pair_of_a_stratum(seed, levels, n):
    rng = np.random.default_rng(seed)
    stratum = np.sort(rng.integers(0, 4, n))
    score = rng.integers(0, levels * 3, (n, 2)).astype(float)  # many ties
    code = rng.integers(0, 3, (n, 2))
    got = _Ranks.of(score, stratum).auroc(code, [(0, 0), (2, 1)])
    for b in range(2):
        want = [by_hand(score[:, c], code[:, b] == g, stratum) for g, c in ((0, 0), (2, 1))]
        np.testing.assert_allclose(got[:, b], want)


def test_a_planted_shortcut_is_found_and_its_size():
    (row,) = shortcuts(simulated(0.8), n=199, resamples=300)
    assert (row.attribute, row.group, row.score) == ("sex", "sex=F", "c0")
    assert row.auroc < 0.4
    assert row.p == row.p_holm == 1 / 200
    assert row.interval.low < row.auroc < row.interval.high < 0.5
    assert "sex=F scores lower at equal labels" in row.sentence
    assert sum(row.patients) == 400
    assert shortcuts(simulated(1.6), n=99, resamples=50)[0].auroc < row.auroc


def test_what_the_label_explains_is_no_shortcut():
    """Men are ill three times as often: their scores are higher, but not at equal labels."""
    p = simulated(prevalence=(0.2, 0.6))
    (row,) = shortcuts(p, n=199, resamples=300)
    assert row.interval.low < 0.5 < row.interval.high
    assert row.p > 0.05
    assert "cannot tell" in row.sentence
    man = p.groups["sex"] == "sex=M"
    assert by_hand(p.score[:, 0], ~man, np.zeros(len(man))) < 0.45  # without strata it looks so


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("view", [False, True])
def test_without_a_shortcut_one_in_twenty_is_found(images, view):
    """Patients with several images, too: rows would reject far more often."""
    found = [
        shortcuts(simulated(seed=s, n=120, images=images, view=view), n=59, resamples=2)[0].p
        for s in range(120)
    ]
    assert 0 <= np.mean(np.array(found) <= 0.05) <= 0.11
    assert 0.4 < np.mean(found) < 0.62


def test_intervals_hold_a_half_where_there_is_none():
    holds = []
    for seed in range(60):
        (row,) = shortcuts(simulated(seed=seed, n=150, images=2), n=9, resamples=200)
        holds.append(row.interval.low <= 0.5 <= row.interval.high)
    assert np.mean(holds) >= 0.88


def test_a_view_that_varies_inside_patients_is_permuted_whole():
    (row,) = shortcuts(simulated(1.0, images=2, view=True), n=199, resamples=100)
    assert row.group == "view=F"
    assert row.auroc < 0.4
    assert row.p < 0.02


def test_several_labels_and_groups_are_one_test():
    p = simulated(classes=3, n=500, seed=3)
    age = np.array(["age<40", "age 40-60", "age>60", "unknown"])[np.arange(500) % 4]
    p = replace(p, groups={"sex": p.groups["sex"], "age": age})
    score = p.score.copy()
    score[age == "age>60", 1] += 1.5
    rows = shortcuts(replace(p, score=score), n=199, resamples=50)
    assert len(rows) == 3 + 9
    ages = [r for r in rows if r.attribute == "age"]
    assert (ages[0].group, ages[0].score) == ("age>60", "c1")
    assert {r.p for r in ages} == {1 / 200}
    assert [r.interval is not None for r in ages].count(True) == 3  # the strongest of each group
    assert ages[0].p_holm == 2 / 200
    assert sum(ages[0].patients) == 375  # unknown counts on neither side
    assert all(r.p > 0.05 for r in rows if r.attribute == "sex")


def test_small_groups_and_lone_groups_are_left_out():
    p = simulated(n=60)
    few = np.array(["a"] * 9 + ["b"] * 51)
    assert shortcuts(replace(p, groups={"g": few}), n=9) == []
    assert shortcuts(replace(p, groups={"g": np.array(["a"] * 60)}), n=9) == []
    assert shortcuts(replace(p, groups={}), n=9) == []


def test_features_are_asked_for_each_group_s_own_score():
    p = simulated(n=300)
    man = p.groups["sex"] == "sex=M"
    rng = np.random.default_rng(0)
    score = np.stack([-2.0 * man, 2.0 * man], axis=1) + rng.normal(size=(300, 2))
    groups = replace(
        p, score=score, target=np.stack([~man, man], axis=1).astype(float),
        classes=("sex=F", "sex=M"), kind="multilabel",
    )  # fmt: skip
    (row,) = feature_shortcuts(p, groups, n=99, resamples=100)
    assert (row.group, row.score) == ("sex=F", "frozen features")
    assert row.auroc > 0.85
    assert row.p == 0.01
    with pytest.raises(ValueError, match="same rows"):
        feature_shortcuts(p, groups.take(np.arange(299)), n=9)


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_the_same_seed_gives_the_same_rows(seed):
    p = simulated(n=40, seed=seed)
    assert shortcuts(p, n=9, seed=seed, resamples=20) == shortcuts(p, n=9, seed=seed, resamples=20)


def test_models_of_other_parts_are_not_compared():
    """Two folds whose scores differ by a constant: pairs lie inside a fold."""
    p = simulated(n=300, seed=5)
    part = np.arange(300) % 2
    want = shortcuts(replace(p, part=part), n=9, resamples=5)[0].auroc
    shifted = replace(p, part=part, score=p.score + 100.0 * part[:, None])
    assert shortcuts(shifted, n=9, resamples=5)[0].auroc == want


def test_the_attributes_test_says_nothing_of_a_group_whose_own_interval_holds_a_half():
    around = Interval(0.49, 0.44, 0.54, 0.45, 0.02, 100)
    plain = {"attribute": "race", "score": "x", "patients": (50, 50), "p": 0.001, "p_holm": 0.005}
    calm = Shortcut(group="race=A", auroc=0.49, interval=around, **plain)
    assert calm.sentence.startswith("x: cannot tell race=A")
    clear = replace(calm, auroc=0.6, interval=replace(around, value=0.6, low=0.55, high=0.65))
    assert "race=A scores higher at equal labels" in clear.sentence
    assert "cannot tell" in replace(clear, p_holm=0.2).sentence
    assert "cannot tell" in replace(clear, interval=None).sentence
