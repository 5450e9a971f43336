"""Train minus probe, overall and by group, and wrong labels that were planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS
from autopeft.metrics.generalization import fitted_share, generalization_gap, generalization_gaps

COUNTED = {"sex": ("sex=F", "sex=M")}


def side(table, rng, n, skill, classes=1):
    """``skill`` of each sex: how far positives stand above negatives."""
    y = (rng.random((n, classes)) < 0.4).astype(float)
    sex = np.array(["sex=F", "sex=M"])[rng.integers(0, 2, n)]
    far = np.where(sex == "sex=F", skill[0], skill[1])[:, None]
    return table(far * y + rng.normal(size=y.shape), y, groups={"sex": sex})


def test_the_gap_of_everyone_and_of_each_group_is_a_difference_of_aurocs(table):
    rng = np.random.default_rng(0)
    train, probe = side(table, rng, 400, (3, 1.5)), side(table, rng, 400, (1, 1))
    found = generalization_gaps(train, probe, COUNTED, n=200)
    assert set(found) == {"all", "sex=F", "sex=M"}
    for name, gap in found.items():
        rows = [
            np.ones(400, bool) if name == "all" else p.groups["sex"] == name
            for p in (train, probe)
        ]
        auc = [
            roc_auc_score(p.target[r, 0], p.score[r, 0])
            for p, r in zip((train, probe), rows, strict=True)
        ]
        assert (gap.train, gap.probe) == pytest.approx(tuple(auc))
        assert gap.value == pytest.approx(auc[0] - auc[1])
        assert gap.low < gap.value < gap.high
        assert gap.low > 0
    assert found["sex=F"].value > found["sex=M"].value
    e = Evaluation(probe, Cost(1, 4), train=train, probe=probe)
    assert generalization_gap(e) == METRICS["generalization_gap"](e) == found["all"].value
    assert generalization_gap(replace(e, train=None)) is None


def test_a_model_that_learnt_nothing_by_heart_has_no_gap(table):
    inside = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        train, probe = (side(table, rng, 200, (1, 1)) for _ in "ab")
        gap = generalization_gaps(train, probe, n=200)["all"]
        inside += gap.low <= 0 <= gap.high
    assert inside >= 26


def test_both_sides_are_scored_on_the_same_labels(table):
    rng = np.random.default_rng(1)
    train, probe = (side(table, rng, 300, (1, 1), classes=3) for _ in "ab")
    lacking = probe.target.copy()
    lacking[:, 2] = 0  # nobody in the probe has it
    found = generalization_gaps(train, replace(probe, target=lacking), COUNTED, n=0)
    auc = [roc_auc_score(train.target[:, c], train.score[:, c]) for c in range(2)]
    assert found["all"].train == pytest.approx(np.mean(auc))
    women = train.groups["sex"] == "sex=F"
    auc = [roc_auc_score(train.target[women, c], train.score[women, c]) for c in range(2)]
    assert found["sex=F"].train == pytest.approx(np.mean(auc))


def test_groups_of_few_and_tables_of_one_class_are_left_out(table):
    rng = np.random.default_rng(2)
    train, probe = (side(table, rng, 200, (1, 1)) for _ in "ab")
    sex = probe.groups["sex"].copy()
    sex[np.flatnonzero(sex == "sex=F")[8:]] = "unknown"
    found = generalization_gaps(train, replace(probe, groups={"sex": sex}), COUNTED, n=0)
    assert "sex=F" not in found
    assert "sex=M" in found
    none = replace(probe, target=np.zeros_like(probe.target))
    assert generalization_gaps(train, none, COUNTED, n=0) == {}
    assert generalization_gap(Evaluation(probe, Cost(0, 0), train=train, probe=none)) is None


def test_planted_mislabels_are_counted_beside_how_often_the_model_is_wrong_anyway(table):
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, (1000, 2)).astype(float)
    planted = rng.random(truth.shape) < 0.2
    given = np.where(planted, 1 - truth, truth)
    wrong_anyway = rng.random(truth.shape) < 0.1
    heart = planted & (rng.random(truth.shape) < 0.5)
    says = np.where(heart, given, np.where(wrong_anyway, 1 - truth, truth))
    train = table(2 * says - 1, given)
    probe = table(2 * np.where(wrong_anyway, 1 - truth, truth) - 1, given)
    found = fitted_share(train, planted, probe, planted)
    assert found.planted == planted.sum()
    assert found.share == pytest.approx((says == given)[planted].mean())
    assert found.by_chance == pytest.approx(wrong_anyway[planted].mean())
    assert found.excess == pytest.approx(0.45, abs=0.06)
    assert np.isnan(fitted_share(train, planted).excess)
    assert fitted_share(train, np.zeros_like(planted)) is None
    with pytest.raises(ValueError, match="planted is"):
        fitted_share(train, planted[:, :1])


def test_planted_classes_that_exclude_each_other(table):
    y = np.eye(3)[[0, 1, 2, 2]]
    p = table(np.eye(3)[[0, 1, 1, 2]] * 2.0, y, kind="multiclass")
    planted = np.repeat(np.array([[True], [False], [True], [True]]), 3, axis=1)
    assert fitted_share(p, planted).share == pytest.approx(2 / 3)
