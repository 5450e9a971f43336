import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from autopeft.metrics import calibration, classification
from autopeft.metrics.groups import patient_index
from autopeft.metrics.intervals import bootstrap
from autopeft.metrics.pairs import Steps
from autopeft.metrics.resampling import Copied, prepared
from autopeft.metrics.weighted import WEIGHTED, statistic

seeds = st.integers(0, 2**16)


def mean_of(which):
    def function(p):
        found = [pair[which] for pair in calibration.calibration_by_class(p).values()]
        return None if None in found or not found else float(np.mean(found))

    return function


FUNCTIONS = {
    "brier": classification.brier,
    "log_loss": classification.log_loss,
    "accuracy": classification.accuracy,
    "average_precision": classification.average_precision,
    "tpr_at_specificity": classification.tpr_at_specificity,
    "calibration_intercept": mean_of(0),
    "calibration_slope": mean_of(1),
}


def simulate(table, seed, kind="multilabel", rows=60, ties=1, unknown=0.1, parts=1):
    rng = np.random.default_rng(seed)
    y = (rng.random((rows, 3)) < 0.4).astype(float)
    if kind == "multiclass":
        y = np.eye(3)[rng.integers(0, 3, rows)]
    score = np.round(rng.normal(size=y.shape) + y, ties)
    missing = rng.random((rows, 3)) < unknown
    y[missing.any(axis=1) if kind == "multiclass" else missing] = np.nan
    patient = rng.integers(0, rows // 3, rows)
    return table(score, y, patient=patient, part=patient % parts, kind=kind)


def test_every_weighted_metric_has_a_namesake():
    assert set(FUNCTIONS) == set(WEIGHTED)


@settings(max_examples=12, deadline=None)
@given(
    seed=seeds,
    kind=st.sampled_from(["multilabel", "multiclass"]),
    ties=st.integers(0, 2),
    parts=st.integers(1, 2),
)
@pytest.mark.parametrize("metric", sorted(FUNCTIONS))
def test_weights_equal_copied_rows(table, metric, seed, kind, ties, parts):
    p = simulate(table, seed, kind, ties=ties, parts=parts)
    unit, units = patient_index(p)
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(units, np.full(units, 1 / units), 6).T.astype(float)
    found = prepared(p, unit, metric).values(weight)
    expected = Copied(p, unit, FUNCTIONS[metric]).values(weight)
    # Classes undefined on the data are left out here and make the copy undefined; a resample in
    # which a class lost a label is undefined here while the copy averages the others.
    both = np.isfinite(found) & np.isfinite(expected)
    assume(both.any())
    np.testing.assert_allclose(found[both], expected[both], atol=1e-8)
    alone = prepared(p, unit, metric).values(weight[:, :1])
    np.testing.assert_allclose(alone, found[:1], atol=1e-9, equal_nan=True)


@settings(deadline=None)
@given(seed=seeds)
def test_average_precision_under_weights_equals_sklearn(table, seed):
    p = simulate(table, seed, unknown=0)
    weight = np.random.default_rng(seed).integers(0, 3, (60, 2)).astype(float)
    for c in range(3):
        found = statistic(p, np.arange(60), "average_precision", (f"c{c}",)).values(weight)
        for b in range(2):
            drawn = p.target[weight[:, b] > 0, c]
            if len(set(drawn)) == 2:
                expected = sk.average_precision_score(
                    p.target[:, c], p.score[:, c], sample_weight=weight[:, b]
                )
                assert found[b] == pytest.approx(expected, abs=1e-12)
            else:
                assert np.isnan(found[b])


def test_one_class_and_empty_tables_are_undefined(table):
    unit = np.arange(3)
    for metric in WEIGHTED:
        nothing = table([[0.1], [0.2], [0.3]], [[np.nan]] * 3)
        assert np.isnan(statistic(nothing, unit, metric).values(np.ones((3, 2)))).all(), metric
        one = table([[0.1], [0.2], [0.3]], [[1.0]] * 3)
        known = metric in ("brier", "log_loss", "accuracy")
        assert np.isfinite(statistic(one, unit, metric).values(np.ones((3, 2)))).all() == known


@pytest.mark.parametrize("metric", sorted(FUNCTIONS))
def test_bootstrap_knows_them_by_name_and_class(table, metric):
    p = simulate(table, 0, rows=200)
    unit, units = patient_index(p)
    whole, one = bootstrap(p, metric, n=40), bootstrap(p, f"{metric}:c1", n=40)
    assert whole.value == pytest.approx(FUNCTIONS[metric](p), abs=1e-8)
    only = table(p.score[:, 1], p.target[:, 1], patient=p.patient)
    assert one.value == pytest.approx(FUNCTIONS[metric](only), abs=1e-8)
    assert one.low < one.value < one.high
    assert np.isfinite([whole.low, whole.high]).all()


@settings(deadline=None)
@given(
    unit=st.lists(st.integers(0, 4), max_size=12),
    edges=st.lists(st.integers(0, 12), max_size=6),
    seed=seeds,
)
def test_steps_are_running_sums(unit, edges, seed):
    unit = np.array(unit, dtype=int)
    edges = np.sort(np.minimum(np.array(edges, dtype=int), len(unit)))
    weight = np.random.default_rng(seed).integers(0, 4, (5, 3)).astype(float)
    expected = np.array([weight[unit[:e]].sum(axis=0) for e in edges]).reshape(len(edges), 3)
    if len(edges):
        np.testing.assert_array_equal(Steps(unit, edges).sums(weight), expected)
        one = Steps(unit, edges).sums(weight[:, :1])
        np.testing.assert_array_equal(one, expected[:, :1])
