from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from autopeft.metrics import calibration as m

seeds = st.integers(0, 2**16)


def simulate(table, seed, patients=400, images=1, slope=1.0, shift=0.0, classes=1, ties=False):
    """Labels drawn from the true log-odds; the score says (true - shift) / slope."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    true = 1.5 * rng.normal(size=(patients, classes))[patient] - 1
    y = (rng.random((patients, classes))[patient] < 1 / (1 + np.exp(-true))).astype(float)
    score = (true - shift) / slope
    return table(np.round(score, 1) if ties else score, y, patient=patient)


def kumar(q, y, bins):
    """The published estimator by its formula, for probabilities that are equal inside a bin."""
    total = 0.0
    for value in bins:
        rows = q == value
        n, rate = rows.sum(), y[rows].mean()
        total += n / len(q) * ((rate - value) ** 2 - rate * (1 - rate) / (n - 1))
    return np.sqrt(max(total, 0))


@settings(deadline=None)
@given(seed=seeds, off=st.floats(0, 1.5))
def test_ece_equals_the_published_estimator(table, seed, off):
    rng = np.random.default_rng(seed)
    levels = np.array([-2.0, -1.0, 0.0, 1.5])
    score = np.repeat(levels, 80)
    y = (rng.random(320) < 1 / (1 + np.exp(-score - off))).astype(float)
    p = table(score, y)
    expected = kumar(p.probability[:, 0], y, np.unique(p.probability))
    assert m.ece(p) == pytest.approx(expected, abs=1e-12)
    mixed = rng.permutation(320)
    assert m.ece(p.take(mixed)) == pytest.approx(expected, abs=1e-12)


def test_ece_of_a_calibrated_model_is_near_zero_and_the_plain_one_is_not(table):
    found, plain = [], []
    for seed in range(60):
        p = simulate(table, seed, patients=300, images=1)
        q, y = p.probability[:, 0], p.target[:, 0]
        order = np.array_split(np.argsort(q), 10)
        plain.append(np.mean([(y[o].mean() - q[o].mean()) ** 2 for o in order]))
        found.append(m.ece(p) ** 2)
    assert np.mean(plain) > 2 * np.mean(found)  # floored at 0, else the mean would be 0
    assert np.mean(np.array(found) == 0) > 0.3


def test_ece_counts_patients_not_images(table):
    """Ten images of each patient: by rows the noise would look smaller than it is."""
    found = [m.ece(simulate(table, seed, patients=250, images=10)) for seed in range(40)]
    by_row = []
    for seed in range(40):
        p = simulate(table, seed, patients=250, images=10)
        by_row.append(m.ece(table(p.score, p.target)))
    assert np.mean(np.square(by_row)) > 2 * np.mean(np.square(found))


def test_ece_finds_what_is_there(table):
    p = simulate(table, 0, patients=20_000, slope=0.5)  # twice too sure
    q = p.probability[:, 0]
    true = 1 / (1 + np.exp(-0.5 * p.score[:, 0]))
    assert m.ece(p) == pytest.approx(np.sqrt(np.mean((q - true) ** 2)), abs=0.01)


@pytest.mark.parametrize(("patients", "known"), [(199, False), (200, True)])
def test_ece_needs_200_patients(table, patients, known):
    p = simulate(table, 1, patients=patients, images=3)
    assert (m.ece(p) is not None) == known
    p.target[:3] = np.nan  # a patient whose label is unknown does not count
    assert m.ece(p) is None or patients > 200 or not known


def test_ece_of_one_label_or_one_patient_is_undefined(table):
    rng = np.random.default_rng(0)
    assert m.ece(table(rng.normal(size=300), np.ones(300))) is None
    one = table(rng.normal(size=300), rng.integers(0, 2, 300), patient=["a"] * 300)
    assert m.ece(one) is None
    both = table(rng.normal(size=(300, 2)), np.stack([np.ones(300), np.arange(300) % 2], axis=1))
    assert m.ece_by_class(both)["c0"] is None
    assert m.ece(both) == m.ece_by_class(both)["c1"]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, ties=st.booleans(), weighted=st.booleans(), unknown=st.booleans())
def test_intercept_and_slope_equal_sklearn(table, seed, ties, weighted, unknown):
    p = simulate(table, seed, patients=80, slope=0.6, shift=0.5, ties=ties)
    rng = np.random.default_rng(seed)
    z, y = p.score[:, 0], p.target[:, 0].astype(float)
    weight = rng.integers(0, 4, 80).astype(float) if weighted else np.ones(80)
    if unknown and not weighted:
        weight = (rng.random(80) < 0.8).astype(float)
        p.target[weight == 0] = np.nan
    drawn = weight > 0
    if len(set(y[drawn])) < 2 or not m._overlap(z, y, weight[:, None])[0]:
        return
    fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    fit.fit(z[drawn, None], y[drawn], sample_weight=weight[drawn])

    def excess(a):
        return (weight * (y - 1 / (1 + np.exp(-a - z)))).sum()

    intercept, slope = (fit(z, y, weight[:, None]) for fit in (m.intercepts, m.slopes))
    assert slope[0] == pytest.approx(fit.coef_[0, 0], rel=1e-4, abs=1e-5)
    assert intercept[0] == pytest.approx(optimize.brentq(excess, -60, 60), abs=1e-8)
    if not weighted:
        assert m.calibration_by_class(p)["c0"] == pytest.approx((intercept[0], slope[0]))
        assert m.slope_error(p) == pytest.approx(abs(slope[0] - 1))
        assert m.intercept_error(p) == pytest.approx(abs(intercept[0]))


def test_many_weights_are_many_fits():
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=200)
    y = (rng.random(200) < 1 / (1 + np.exp(-z / 2))).astype(float)
    weight = rng.multinomial(200, np.full(200, 1 / 200), 30).T.astype(float)
    weight[:, 3] = y  # one label only
    weight[:, 4] = (y == 1) == (z > 0)  # separated
    together = np.array([fit(z, y, weight) for fit in (m.intercepts, m.slopes)])
    for b in range(30):
        each = [fit(z, y, weight[:, [b]])[0] for fit in (m.intercepts, m.slopes)]
        np.testing.assert_allclose(together[:, b], each, atol=1e-9)
    assert np.isnan(together[:, 3]).all()
    assert np.isfinite(together[0, 4])
    assert np.isnan(together[1, 4])


@pytest.mark.parametrize(
    ("score", "target", "intercept", "slope"),
    [
        ([1, 2, 3], [1, 1, 1], False, False),
        ([1, 2, 3], [np.nan] * 3, False, False),
        ([1, 2, 3, 4], [0, 0, 1, 1], True, False),  # separated
        ([1, 2, 2, 4], [0, 0, 1, 1], True, False),  # separated up to a tie
        ([4, 3, 2, 1], [0, 0, 1, 1], True, False),
        ([2, 2, 2, 2], [0, 1, 0, 1], True, False),  # constant
        ([1, 2, 3, 4], [0, 1, 0, 1], True, True),
        ([-900, 2, 3, 900], [0, 1, 0, 1], True, True),
        ([-np.inf, 2, 3, 4], [0, 1, 0, 1], False, False),
    ],
)
def test_what_does_not_exist_is_none(table, score, target, intercept, slope):
    found = m.calibration_by_class(table(score, target))["c0"]
    assert (found[0] is not None, found[1] is not None) == (intercept, slope)


def test_shift_and_slope_of_a_known_model_are_found(table):
    p = simulate(table, 0, patients=40_000, slope=0.5, shift=0.0)
    assert m.calibration_by_class(p)["c0"][1] == pytest.approx(0.5, abs=0.02)
    p = simulate(table, 0, patients=40_000, shift=0.7)
    intercept, slope = m.calibration_by_class(p)["c0"]
    assert intercept == pytest.approx(0.7, abs=0.04)
    assert slope == pytest.approx(1, abs=0.04)


def test_logit_of_a_softmax_is_one_class_against_the_rest(table):
    rng = np.random.default_rng(0)
    p = table(3 * rng.normal(size=(50, 4)), np.eye(4)[rng.integers(0, 4, 50)], kind="multiclass")
    q = p.probability
    for c in range(4):
        np.testing.assert_allclose(m.class_logit(p, c), np.log(q[:, c] / (1 - q[:, c])), rtol=1e-9)


def loss(p, t):
    margin = np.where(p.target == 1, 1, -1) * m.apply_temperature(p, t).score
    return np.nanmean(np.logaddexp(0, -margin) + 0 * p.target, axis=0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, slope=st.floats(0.2, 3))
def test_temperature_is_the_best_of_all(table, seed, slope):
    p = simulate(table, seed, patients=150, slope=slope, classes=2)
    p.target[::7, 0] = np.nan
    t = m.fit_temperature(p)
    for c in range(2):
        if t[c] is None:
            continue

        def of(log_t, c=c):
            return loss(p, tuple(np.exp(log_t) if k == c else 1.0 for k in range(2)))[c]

        best = optimize.minimize_scalar(of, bounds=(-4, 4), method="bounded").x
        assert of(np.log(t[c])) <= of(best) + 1e-9
        assert np.log(t[c]) == pytest.approx(best, abs=1e-3)


def test_temperature_of_a_softmax_is_the_best_of_all(table):
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=(300, 3))
    y = np.array([rng.choice(3, p=np.exp(r) / np.exp(r).sum()) for r in z])
    p = table(3 * z, np.eye(3)[y], kind="multiclass")
    t = m.fit_temperature(p)
    assert t[0] == t[1] == t[2] == pytest.approx(3, abs=0.5)

    def of(value):
        q = m.apply_temperature(p, (value,) * 3).probability
        return -np.log(q[np.arange(300), y]).mean()

    best = optimize.minimize_scalar(of, bounds=(0.2, 20), method="bounded").x
    assert t[0] == pytest.approx(best, abs=1e-3)


def test_temperature_mends_the_slope_and_keeps_every_order_and_sign(table):
    p = simulate(table, 3, patients=2000, slope=0.4, classes=2)
    cooled = m.apply_temperature(p, m.fit_temperature(p))
    assert m.slope_error(p) > 0.4
    assert m.slope_error(cooled) < 0.1
    assert m.ece(cooled) < m.ece(p) / 2
    for c in range(2):
        order = np.argsort(p.score[:, c])
        assert all(a <= b for a, b in pairwise(cooled.score[order, c]))
    np.testing.assert_array_equal(np.sign(cooled.score), np.sign(p.score))
    assert m.apply_temperature(p, (None, 2.0)).score[:, 0].tolist() == p.score[:, 0].tolist()


@pytest.mark.parametrize(
    ("score", "target"),
    [
        ([1, 2, 3], [1, 1, 1]),  # one label
        ([-1, -2, 1, 2], [0, 0, 1, 1]),  # every answer right: colder is always better
        ([-1, -2, 1, 2], [1, 1, 0, 0]),  # every answer wrong: hotter is always better
        ([0, 0, 0, 0], [1, 1, 0, 0]),
        ([np.nan, 2], [np.nan, np.nan]),
    ],
)
def test_no_temperature_where_none_is_best(table, score, target):
    p = table(score, target)
    assert m.fit_temperature(p) == (None,)


@pytest.mark.parametrize("wrong", [(0.0,), (-1.0,), (1.0, 1.0), (float("nan"),)])
def test_impossible_temperatures_are_refused(table, wrong):
    with pytest.raises(ValueError, match="temperatures"):
        m.apply_temperature(table([1, 2], [0, 1]), wrong)
