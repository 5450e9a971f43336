import numpy as np
import pytest

from autopeft.evaluation import Predictions
from autopeft.metrics.frozen import RATES, frozen_rate, wilson


def made(probability, target, patient=None):
    q = np.clip(np.array(probability, np.float64), 1e-6, 1 - 1e-6)
    n = len(q)
    return Predictions(
        score=np.log(q / (1 - q))[:, None],
        target=np.array(target, np.float32)[:, None],
        patient=np.arange(n) if patient is None else np.array(patient),
        part=np.zeros(n, np.int64),
        groups={},
        classes=("ill",),
        kind="binary",
        split="external",
    )


def test_rates_are_those_of_a_table_of_two_by_two():
    # 6 ill: 4 called; 10 healthy: 3 called; one unknown that is called and does not count.
    p = made(
        [0.9] * 4 + [0.1] * 2 + [0.8] * 3 + [0.2] * 7 + [0.9],
        [1] * 6 + [0] * 10 + [np.nan],
    )
    found = {rate: frozen_rate(p, 0, 0.5, rate, n=400) for rate in RATES}
    assert found["sensitivity"].value == pytest.approx(4 / 6)
    assert found["specificity"].value == pytest.approx(7 / 10)
    assert found["ppv"].value == pytest.approx(4 / 7)
    for interval in found.values():
        assert interval.low < interval.value < interval.high
    assert not found["sensitivity"].enough  # 6 positive patients


def test_a_score_at_the_threshold_is_a_call():
    p = made([0.5, 0.5, 0.4], [1, 0, 0])
    limit = float(p.probability[0, 0])
    assert frozen_rate(p, 0, limit, "sensitivity").value == 1
    assert frozen_rate(p, 0, limit, "specificity").value == 0.5


def test_the_patient_is_the_unit():
    rng = np.random.default_rng(0)
    per_patient = np.repeat(rng.random(60), 10)  # ten images that agree
    one = made(per_patient, np.ones(600), np.repeat(np.arange(60), 10))
    many = made(per_patient, np.ones(600))
    wide, narrow = (frozen_rate(p, 0, 0.5, "sensitivity") for p in (one, many))
    assert wide.value == narrow.value
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)
    assert (wide.patients, narrow.patients) == (60, 600)


def test_the_interval_is_near_the_binomial_s_own():
    from scipy.stats import binom

    p = made([0.9] * 120 + [0.1] * 40, np.ones(160))
    found = frozen_rate(p, 0, 0.5, "sensitivity", n=4000)
    low, high = binom.ppf([0.025, 0.975], 160, 0.75) / 160
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)


def test_all_found_is_not_certainty():
    from scipy.stats import binomtest

    p = made([0.9] * 30, [1] * 30)
    found = frozen_rate(p, 0, 0.5, "sensitivity")
    expected = binomtest(30, 30).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    none = frozen_rate(p, 0, 0.95, "sensitivity")
    assert (none.value, none.low) == (0, 0)
    assert 0.08 < none.high < 0.15
    few = made([0.9] * 30, [1] * 30, np.repeat(np.arange(3), 10))  # three patients
    assert frozen_rate(few, 0, 0.5, "sensitivity").low < 0.5


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for k, n in ((0, 5), (3, 17), (17, 17), (400, 1000)):
        expected = binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k / n, n) == pytest.approx((expected.low, expected.high))


def test_what_cannot_be_counted_is_none():
    healthy = made([0.1, 0.2, 0.3], [0, 0, 0])
    assert frozen_rate(healthy, 0, 0.5, "sensitivity") is None
    assert frozen_rate(healthy, 0, 0.5, "ppv") is None  # nothing is called
    assert frozen_rate(healthy, 0, None, "specificity") is None
    assert frozen_rate(made([0.9], [1]), 0, 0.5, "sensitivity") is None
