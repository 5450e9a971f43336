from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.metrics import classification as m
from autopeft.metrics.groups import patient_index
from autopeft.metrics.operating import operating_interval
from autopeft.metrics.resampling import patient_weights

RATES = {"sensitivity": m.sensitivity, "specificity": m.specificity, "f1": m.f1}


def simulate(table, seed, patients=60, first=0, classes=2, ties=1, unknown=0.1, shift=1.0):
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2) + first
    y = (rng.random((2 * patients, classes)) < 0.4).astype(float)
    score = np.round(rng.normal(size=y.shape) + shift * y, ties)
    y[rng.random(y.shape) < unknown] = np.nan
    return table(score, y, patient=patient)


def copies(p, n, seed):
    unit, patients = patient_index(p)
    drawn = np.concatenate(list(patient_weights(patients, len(unit), n, seed)), axis=1)
    rows = np.arange(len(unit))
    return [p.take(np.repeat(rows, drawn[unit, b].astype(int))) for b in range(n)]


def rate(metric, judged, fitted, target=0.9):
    found = RATES[metric](judged, m.fit_threshold(fitted, target)).values()
    return np.nan if None in found else float(np.mean(list(found)))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), ties=st.integers(0, 1), target=st.sampled_from([0.8, 0.9, 1.0]))
@pytest.mark.parametrize("metric", sorted(RATES))
def test_equals_copying_rows_and_fitting_again(table, metric, seed, ties, target):
    test = simulate(table, seed, ties=ties)
    search = simulate(table, seed + 1, patients=40, first=500, ties=ties)
    found = operating_interval(test, search, metric, target, n=25, seed=seed)
    again = np.random.SeedSequence(seed).spawn(1)[0]
    every = zip(copies(test, 25, seed), copies(search, 25, again), strict=True)
    expected = [rate(metric, q, s, target) for q, s in every]
    assert found.value == pytest.approx(rate(metric, test, search, target))
    assert found.se == pytest.approx(np.nanstd(expected, ddof=1))
    low, high = np.nanquantile(expected, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high))


def test_judged_where_it_was_fitted_one_draw_serves_both(table):
    p = simulate(table, 0)
    found = operating_interval(p, p, "sensitivity", n=30)
    expected = [rate("sensitivity", q, q) for q in copies(p, 30, 0)]
    assert found.low == pytest.approx(np.quantile(expected, 0.025))
    assert found.low >= 0.9 - 1e-12  # by construction: it says nothing of new patients
    with pytest.raises(ValueError, match="in search too"):
        operating_interval(p, simulate(table, 1))


def test_refitting_is_wider_than_pretending_to_know_the_threshold(table):
    test = simulate(table, 0, patients=300, classes=1, ties=6)
    search = simulate(table, 1, patients=60, first=1000, classes=1, ties=6)
    limit = m.fit_threshold(search)
    refitted = operating_interval(test, search, n=300)
    frozen = [m.sensitivity(q, limit)["c0"] for q in copies(test, 300, 0)]
    assert refitted.value == pytest.approx(m.sensitivity(test, limit)["c0"])
    assert refitted.se > 1.3 * np.std(frozen)


def test_one_class_and_a_group_can_be_asked_for(table):
    test, search = simulate(table, 0), simulate(table, 1, first=500)
    rows = np.arange(len(test.patient)) % 3 > 0
    for metric, function in RATES.items():
        one = operating_interval(test, search, f"{metric}:c1", n=20)
        limits = m.fit_threshold(search)
        assert one.value == pytest.approx(function(test, limits)["c1"])
        group = operating_interval(test.take(rows), search, f"{metric}:c1", n=20)
        assert group.value == pytest.approx(function(test.take(rows), limits)["c1"])


def test_a_difference_shares_the_draws_of_both_splits(table):
    a, b = simulate(table, 0, shift=2.0), simulate(table, 0)
    sa, sb = (simulate(table, 7, first=500, shift=d) for d in (2.0, 1.0))
    found = operating_interval(a, sa, "specificity", baseline=(b, sb), n=30)
    again = np.random.SeedSequence(0).spawn(1)[0]
    drawn = [
        rate("specificity", *one) - rate("specificity", *other)
        for one, other in zip(
            zip(copies(a, 30, 0), copies(sa, 30, again), strict=True),
            zip(copies(b, 30, 0), copies(sb, 30, again), strict=True),
            strict=True,
        )
    ]
    assert found.value == pytest.approx(rate("specificity", a, sa) - rate("specificity", b, sb))
    assert found.se == pytest.approx(np.std(drawn, ddof=1))
    same = operating_interval(a, sa, baseline=(a, sa), n=20)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="same rows"):
        operating_interval(a, sa, baseline=(b.take(np.arange(10)), sb))


def test_what_is_undefined_is_none(table):
    test, search = simulate(table, 0), simulate(table, 1, first=500)
    nothing = replace(search, target=np.zeros_like(search.target))
    assert operating_interval(test, nothing) is None  # no positive to fit on
    ill = replace(test, target=np.ones_like(test.target))
    assert operating_interval(ill, search, "specificity", n=20) is None
    assert operating_interval(ill, search, "f1", n=20) is None
    assert operating_interval(ill, search, n=20) is not None
    one = replace(test, patient=np.full(len(test.patient), -1))
    assert operating_interval(one, search, n=20) is None
    with pytest.raises(ValueError, match="auroc"):
        operating_interval(test, search, "auroc")
    with pytest.raises(ValueError, match="Nobody"):
        operating_interval(test, search, "f1:Nobody")


@pytest.mark.parametrize(("positives", "enough"), [(9, False), (10, True)])
def test_enough_counts_patients_on_both_splits(table, positives, enough):
    def few(first, count):
        y = (np.arange(80) < count).astype(float)
        return table(np.random.default_rng(0).normal(size=80) + y, y, np.arange(80) + first)

    for test, search in ((few(0, positives), few(99, 40)), (few(0, 40), few(99, positives))):
        assert operating_interval(test, search, n=30).enough == enough
