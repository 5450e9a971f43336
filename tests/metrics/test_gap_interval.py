import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import chi2, ncx2

from autopeft.metrics.gap_interval import RangeTest, detectable, range_interval, wald

SIGMA = np.diag([0.02, 0.03, 0.025, 0.04]) ** 2


def related(seed, groups):
    """A covariance with ties between groups, as patients in two groups make them."""
    rng = np.random.default_rng(seed)
    loading = rng.normal(size=(groups, groups)) * 0.01
    return loading @ loading.T + np.diag(rng.uniform(0.01, 0.05, groups) ** 2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(2, 5))
def test_wald_equals_the_test_of_contrasts(seed, groups):
    rng = np.random.default_rng(seed)
    value, sigma = rng.uniform(0.7, 0.9, groups), related(seed, groups)
    contrast = np.eye(groups)[1:] - np.eye(groups)[:1]
    difference = contrast @ value
    expected = difference @ np.linalg.solve(contrast @ sigma @ contrast.T, difference)
    assert wald(value, sigma) == pytest.approx(expected)
    assert wald(value + 0.05, sigma) == pytest.approx(expected)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(2, 4), d=st.floats(0.005, 0.3))
def test_the_distance_is_the_one_a_general_solver_finds(seed, groups, d):
    value, sigma = np.random.default_rng(seed).uniform(0.7, 0.9, groups), related(seed, groups)
    found, nearest = RangeTest.of(sigma, n=10).distance(value[None], d)
    assert np.ptp(nearest[0]) == pytest.approx(d)
    inverse = np.linalg.inv(sigma)
    assert found[0] == pytest.approx((value - nearest[0]) @ inverse @ (value - nearest[0]))
    best = np.inf
    for i in range(groups):
        for j in range(groups):
            if i != j:
                best = min(best, _solved(value, inverse, i, j, d))
    assert found[0] == pytest.approx(best, rel=1e-3, abs=1e-3)


def _solved(value, inverse, highest, lowest, d):
    """Nearest point with the given highest and lowest group, by SLSQP."""

    def at(u):
        theta = u[0] + np.clip(u[1:], 0, d)
        theta[highest], theta[lowest] = u[0] + d, u[0]
        return theta

    def distance(u):
        return (value - at(u)) @ inverse @ (value - at(u))

    start = np.concatenate([[value.mean() - d / 2], np.clip(value - value.mean() + d / 2, 0, d)])
    box = [(None, None)] + [(0, d)] * len(value)
    return minimize(distance, start, bounds=box, method="L-BFGS-B").fun


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(2, 4), spread=st.floats(0, 0.15))
def test_0_is_inside_exactly_when_equal_groups_are_not_rejected(seed, groups, spread):
    rng = np.random.default_rng(seed)
    value = 0.8 + spread * rng.random(groups)
    sigma = np.diag(rng.uniform(0.01, 0.05, groups)) ** 2
    p = chi2.sf(wald(value, sigma), groups - 1)
    assume(abs(p - 0.05) > 1e-6)
    low, high = range_interval(value, sigma, n=200)
    assert (low == 0) == (p >= 0.05)
    assert low <= np.ptp(value) <= high


def test_two_groups_far_apart_have_the_usual_interval():
    value, sigma = np.array([0.7, 0.9]), np.diag([0.02, 0.03]) ** 2
    half = 1.96 * np.hypot(0.02, 0.03)
    found = range_interval(value, sigma, n=20_000)
    assert found == pytest.approx((0.2 - half, 0.2 + half), abs=0.003)


def test_other_levels_and_a_common_shift():
    value = np.array([0.80, 0.84, 0.86, 0.93])
    wide, narrow = range_interval(value, SIGMA, 0.01), range_interval(value, SIGMA, 0.2)
    assert wide[0] < narrow[0] < 0.13 < narrow[1] < wide[1]
    assert range_interval(value - 0.1, SIGMA) == pytest.approx(range_interval(value, SIGMA))


@pytest.mark.parametrize("shape", [(0, 1, 1, 1), (0, 1 / 3, 2 / 3, 1)], ids=["one", "even"])
@pytest.mark.parametrize("gap", [0.0, 0.02, 0.05, 0.1])
def test_it_covers_the_truth(shape, gap):
    rng = np.random.default_rng(1)
    drawn = gap * np.array(shape) + rng.multivariate_normal(np.zeros(4), SIGMA, 300)
    tester = RangeTest.of(SIGMA, n=400)
    assert 0.91 <= np.mean([tester.keeps(value, gap) for value in drawn]) <= 0.995


@pytest.mark.parametrize("shape", [(0, 1), (0, 1, 1, 1), (0, 0, 1, 1)], ids=["2", "4", "halves"])
def test_it_covers_the_truth_where_groups_are_tied(shape):
    """Around estimates that are spread wider than the truth it did so in .93 of 2,000 draws."""
    groups = len(shape)
    drawn = 5.0 * np.array(shape) + np.random.default_rng(1).normal(size=(1000, groups))
    tester = RangeTest.of(np.eye(groups), n=600)
    assert 0.942 <= np.mean([tester.keeps(value, 5.0) for value in drawn]) <= 0.975


def test_the_smallest_detectable_gap_is_found_four_times_in_five():
    found = detectable(SIGMA)
    assert found == pytest.approx((ncx2_noncentrality(3) * (0.03**2 + 0.04**2)) ** 0.5, rel=1e-6)
    rng = np.random.default_rng(0)
    middle = (0.03**-2 * 0 + 0.04**-2 * found) / (0.03**-2 + 0.04**-2)  # where they help least
    truth = np.array([middle, 0, middle, found])
    drawn = truth + rng.multivariate_normal(np.zeros(4), SIGMA, 4000)
    power = np.mean([wald(value, SIGMA) > chi2.isf(0.05, 3) for value in drawn])
    assert power == pytest.approx(0.8, abs=0.02)
    assert detectable(4 * SIGMA) == pytest.approx(2 * found)


def ncx2_noncentrality(df):
    from scipy.optimize import brentq

    return brentq(lambda nc: ncx2.sf(chi2.isf(0.05, df), df, nc) - 0.8, 0.1, 100)
