"""Scores of several models: no metric ranks, bins or cuts them together."""

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from autopeft.evaluation import Cost, Evaluation, concatenated
from autopeft.metrics import METRICS, calibration, intervals
from autopeft.metrics import classification as m
from autopeft.metrics.fairness import across_groups, group_aurocs
from autopeft.metrics.folds import fold_interval
from autopeft.metrics.groups import group_table, patient_index
from autopeft.metrics.missing import missing_bounds
from autopeft.metrics.operating import operating_interval
from autopeft.metrics.resampling import prepared

COUNTED = {"sex": ("F", "M")}
seeds = st.integers(0, 2**32 - 1)


def folds(table, seed, patients=300, n=5, signal=1.0, images=2):
    """Five models with scales and levels of their own, each on its own patients."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, images + 1, patients))
    part = (np.arange(patients) % n)[who]
    y = (rng.random(patients) < 0.4).astype(float)[who]
    sex = np.array(["F", "M"])[rng.integers(0, 2, patients)][who]
    level, scale = rng.normal(size=n) * 3, rng.uniform(0.3, 3, n)
    z = (signal * y + rng.normal(size=len(who))) * scale[part] + level[part]
    return table(z, y, patient=who, part=part, groups={"sex": sex}, kind="binary")


def evaluation(p):
    points = m.operating_points(p)
    return Evaluation(p, Cost(1, 1), counted=COUNTED, thresholds=points)


def moved(p, seed=0):
    """Each model's scores on another scale: its own order stays."""
    rng = np.random.default_rng(seed)
    number = np.unique(p.part, return_inverse=True)[1]
    shift, scale = rng.normal(size=9)[number] * 3, rng.uniform(0.3, 1, 9)[number]
    return replace(p, score=p.score * scale[:, None] + shift[:, None])


RANKED = (
    "auroc", "average_precision", "tpr_at_specificity", "f1", "specificity", "worst_group_auroc",
    "auroc_gap", "equalized_odds_difference", "equalized_odds_ratio",
    "demographic_parity_difference", "demographic_parity_ratio",
)  # fmt: skip


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_the_scales_of_the_models_do_not_matter_to_what_ranks_or_decides(table, seed):
    p = folds(table, seed)
    one, other = evaluation(p), evaluation(moved(p, seed))
    for name in RANKED:
        assert METRICS[name](one) == pytest.approx(METRICS[name](other)), name
    for row, same in zip(across_groups(p, "sex", "FM"), across_groups(moved(p), "sex", "FM"),
                         strict=True):  # fmt: skip
        assert (row.bpsn, row.bnsp) == pytest.approx((same.bpsn, same.bnsp))


def test_every_metric_is_either_here_or_of_single_rows():
    """A new metric must be thought about: are its scores of one model?"""
    rows = {"accuracy", "brier", "log_loss"}  # means over rows, each at its own model's value
    each = {"ece", "calibration_slope_error", "calibration_intercept_error"}  # see below
    alone = {"memorization", "generalization_gap"}  # of the one model that is kept
    counted = {"trainable_params", "adapter_bytes", "train_seconds"}
    assert set(METRICS) == {*RANKED} | rows | each | alone | counted


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_a_value_over_folds_is_made_of_the_folds_own(table, seed):
    """Brute force: sklearn on each fold, weighted by its pairs, positives or rows."""
    p = folds(table, seed)
    y, z, q = p.target[:, 0], p.score[:, 0], p.probability[:, 0]
    parts = [p.part == k for k in range(5)]
    pairs = [(y[r] == 1).sum() * (y[r] == 0).sum() for r in parts]
    positive = [(y[r] == 1).sum() for r in parts]
    size = [r.sum() for r in parts]
    auroc = np.average([sk.roc_auc_score(y[r], z[r]) for r in parts], weights=pairs)
    assert m.auroc(p) == pytest.approx(auroc)
    ap = np.average([sk.average_precision_score(y[r], z[r]) for r in parts], weights=positive)
    assert m.average_precision(p) == pytest.approx(ap)
    brier = np.average([np.mean((q[r] - y[r]) ** 2) for r in parts], weights=size)
    assert m.brier(p) == pytest.approx(brier)
    points = m.operating_points(p)
    for k, r in enumerate(parts):
        assert points[k] == m.fit_threshold(p.take(r))
        assert np.mean(q[r & (y == 1)] >= points[k][0]) >= 0.9
    cleared = [(q[r & (y == 0)] < points[k][0]).sum() for k, r in enumerate(parts)]
    assert m.specificity(p, points)["c0"] == pytest.approx(sum(cleared) / (y == 0).sum())
    for sex, value in group_aurocs(p, "sex", ("F", "M")).items():
        rows = [r & (p.groups["sex"] == sex) for r in parts]
        both = [r for r in rows if len(set(y[r])) == 2]
        own = [sk.roc_auc_score(y[r], z[r]) for r in both]
        weight = [(y[r] == 1).sum() * (y[r] == 0).sum() for r in both]
        assert value == pytest.approx(np.average(own, weights=weight))


@settings(deadline=None, max_examples=15)
@given(seed=seeds)
def test_calibration_is_of_each_model(table, seed):
    p = folds(table, seed, patients=1500)
    each = [p.take(p.part == k) for k in range(5)]
    size = [len(q.part) for q in each]
    intercept, slope = (
        [calibration.calibration_by_class(q)["c0"][i] for q in each] for i in (0, 1)
    )
    told = calibration.calibration_by_class(p)["c0"]
    assert told == pytest.approx(
        (np.average(intercept, weights=size), np.average(slope, weights=size))
    )
    error = np.average(np.abs(intercept), weights=size)
    assert calibration.intercept_error(p) == pytest.approx(error)
    assert calibration.slope_error(p) == pytest.approx(
        np.average(np.abs(np.array(slope) - 1), weights=size)
    )
    squares = np.average([calibration.ece(q) ** 2 for q in each], weights=size)
    floored = [calibration.ece(q) for q in each].count(0.0)
    assert calibration.ece(p) == pytest.approx(np.sqrt(squares), abs=1e-9 if not floored else 0.02)
    unit, patients = patient_index(p)
    one = np.ones((patients, 1))
    for i, name in enumerate(("calibration_intercept", "calibration_slope")):
        assert prepared(p, unit, name).values(one)[0] == pytest.approx(told[i])


def test_two_models_wrong_in_opposite_ways_are_not_right_together(table):
    rng = np.random.default_rng(0)
    n = 4000
    true = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-true))).astype(float)
    part = np.arange(n) % 2
    p = table(true + np.where(part == 0, 1.5, -1.5), y, part=part, kind="binary")
    pooled = replace(p, part=np.zeros(n, int))
    assert calibration.intercept_error(pooled) < 0.2
    assert calibration.intercept_error(p) == pytest.approx(1.5, abs=0.15)
    assert calibration.ece(p) > calibration.ece(pooled) + 0.03


def test_what_belongs_to_one_model_is_refused_for_several(table):
    p = folds(table, 0)
    for fit in (m.fit_threshold, calibration.fit_temperature):
        with pytest.raises(ValueError, match="belongs to one model"):
            fit(p)
    with pytest.raises(ValueError, match="belongs to one model"):
        operating_interval(p, p)
    unknown = replace(p, groups={"sex": np.where(p.patient % 7 == 0, "unknown", p.groups["sex"])})
    assert missing_bounds(unknown, "sex", ("F", "M")) is None
    alone = unknown.take(unknown.part == 0)
    assert missing_bounds(alone, "sex", ("F", "M"), least=1) is not None


def test_a_fold_too_small_for_a_calibration_error_makes_it_none(table):
    p = folds(table, 0, patients=900)  # 180 a fold
    assert calibration.ece(p) is None
    assert calibration.ece(replace(p, part=np.zeros(len(p.part), int))) is not None


def test_one_model_is_what_it_was(table):
    """With one part nothing changes, bit for bit."""
    p = folds(table, 3, patients=400, n=1)
    assert m.operating_points(p) == m.fit_threshold(p)
    intercept, slope = calibration.calibration_by_class(p)["c0"]
    z, y, one = p.score[:, 0], p.target[:, 0].astype(float), np.ones((len(p.part), 1))
    assert intercept == calibration.intercepts(z, y, one)[0]
    assert slope == calibration.slopes(z, y, one)[0]


def test_decisions_of_a_model_without_a_threshold_are_unknown(table):
    p = table([0.0, 1, 2, 3], [0, 1, 0, 1], part=[0, 0, 1, 1], kind="binary")
    made = m.decisions(p, {0: (0.5,), 1: (None,)})
    assert made[:2, 0].tolist() == [1, 1]
    assert np.isnan(made[2:]).all()
    assert m.sensitivity(p, {0: (0.5,), 1: (None,)}) == {"c0": 1.0}
    rows = group_table(replace(p, groups={"sex": np.array(list("FFFF"))}), None, {0: (0.5,)}, 1)
    assert rows[0].missed is None  # of one positive nothing is known


def test_predictions_of_folds_are_put_side_by_side(table):
    one = table([1.0, 2.0], [0, 1], patient=[1, 2], groups={"sex": ["F", "M"]})
    two = table([3.0], [1], patient=[3], groups={"sex": ["F"]})
    both = concatenated({0: one, 4: two})
    assert both.part.tolist() == [0, 0, 4]
    assert both.score[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert both.patient.tolist() == [1, 2, 3]
    assert both.groups["sex"].tolist() == ["F", "M", "F"]


# ---- the interval -------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_formula(table):
    """By hand: patients drawn inside folds by copying rows, Nadeau and Bengio's n2 / n1 on top."""
    p = folds(table, 1, patients=120)
    found = fold_interval(p, n=2000)
    assert found.value == m.auroc(p)
    rng, values = np.random.default_rng(5), []
    for _ in range(800):
        rows = []
        for k in range(5):
            who = np.unique(p.patient[p.part == k])
            for w in rng.choice(who, len(who)):
                rows += np.flatnonzero(p.patient == w).tolist()
        values.append(m.auroc(p.take(np.array(rows))))
    each = [m.auroc(p.take(p.part == k)) for k in range(5)]
    inside, added = np.var(values, ddof=1), 24 / 96 * np.var(each, ddof=1)
    assert found.se == pytest.approx(np.sqrt(inside + added), rel=0.06)
    degrees = (inside + added) ** 2 / (inside**2 / 119 + added**2 / 4)
    assert 4 < degrees < 123
    wide = stats.t(degrees).ppf(0.975) * found.se
    assert (found.low, found.high) == pytest.approx(
        (found.value - wide, found.value + wide), abs=0.002
    )
    assert found.patients == 120


def test_a_worst_group_has_an_interval_though_no_fold_alone_could_score_it(table):
    p = folds(table, 2, patients=120, images=1)
    own = [group_aurocs(p.take(p.part == k), "sex", ("F", "M")) for k in range(5)]
    assert all(None in values.values() for values in own)
    found = fold_interval(p, "worst_group_auroc", n=200, counted=COUNTED)
    assert found.value == METRICS["worst_group_auroc"](evaluation(p))
    assert found.low < found.value < found.high


def test_no_interval_of_one_fold_or_of_nothing(table):
    p = folds(table, 1, patients=60)
    assert fold_interval(p.take(p.part == 0), n=50) is None
    assert fold_interval(replace(p, target=np.zeros_like(p.target)), n=50) is None
    assert isinstance(fold_interval(p, n=50), intervals.Interval)
