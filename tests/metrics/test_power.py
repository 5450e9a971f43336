"""What patients can show: formulas against simulations that share nothing with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from autopeft.metrics.power import (
    auroc_error,
    mean_error,
    smallest_difference,
    smallest_gap,
    times_more,
    worst_group_difference,
)

SIDE = st.integers(10, 5000)


def aurocs(positive, negative):
    """AUROC of each draw: scores [draws, m] and [draws, n], without ties."""
    return (positive[:, :, None] > negative[:, None, :]).mean(axis=(1, 2))


def test_the_error_is_that_of_exponential_scores_where_the_formula_is_exact():
    drawn, auroc = np.random.default_rng(0), 0.8
    negative = drawn.exponential(1.0, (4000, 35))
    positive = drawn.exponential(auroc / (1 - auroc), (4000, 20))
    assert aurocs(positive, negative).std() == pytest.approx(auroc_error(20, 35, auroc), rel=0.04)


def test_the_error_is_near_that_of_normal_scores():
    drawn, auroc = np.random.default_rng(1), 0.85
    shift = 2**0.5 * norm.ppf(auroc)
    found = aurocs(drawn.normal(shift, 1, (2000, 50)), drawn.normal(0, 1, (2000, 50))).std()
    assert found == pytest.approx(auroc_error(50, 50, auroc), rel=0.08)
    assert auroc_error(50, 50, auroc) == pytest.approx(0.039, abs=0.001)  # docs/fairness.md


def two_models(drawn, draws, m, n, first, second, alike):
    """Exponential scores of two models on the same patients: [2, draws, m] and [2, draws, n]."""
    sides = []
    for count, up in ((m, 1), (n, 0)):
        shared = drawn.normal(size=(draws, count))
        own = drawn.normal(size=(2, draws, count))
        normal = alike**0.5 * shared + (1 - alike) ** 0.5 * own
        scale = np.array([(a / (1 - a)) ** up for a in (first, second)])[:, None, None]
        sides.append(scale * -np.log(norm.sf(normal)))
    return sides


def delong(positive, negative):
    """AUROCs [2] and the standard error of their difference, scores [2, m] and [2, n]."""
    wins = (positive[:, :, None] > negative[:, None, :]).astype(float)
    parts = [np.cov(x) / x.shape[1] for x in (wins.mean(axis=2), wins.mean(axis=1))]
    d = np.array([1.0, -1.0])
    return wins.mean(axis=(1, 2)), float(np.sqrt(d @ (parts[0] + parts[1]) @ d))


def test_a_difference_of_that_size_is_found_four_times_in_five():
    drawn, m, n, auroc, draws = np.random.default_rng(2), 60, 90, 0.85, 800
    positive, negative = two_models(drawn, 3 * draws, m, n, auroc, auroc, 0.8)
    both = np.array([aurocs(p, q) for p, q in zip(positive, negative, strict=True)])
    r = float(np.corrcoef(both)[0, 1])  # of the AUROCs; the formula takes it as given
    assert 0.6 < r < 0.9
    delta = smallest_difference([(m, n)], r, auroc)
    better, worse = auroc + delta / 2, auroc - delta / 2
    positive, negative = two_models(drawn, draws, m, n, better, worse, 0.8)
    found = 0
    for i in range(draws):
        (one, two), error = delong(positive[:, i], negative[:, i])
        found += abs(one - two) > norm.ppf(0.975) * error
    assert found / draws == pytest.approx(0.8, abs=0.06)


def test_counting_patients_is_on_the_careful_side_of_several_images():
    drawn, draws, m, n, images = np.random.default_rng(3), 800, 40, 60, 3
    shift = 2**0.5 * norm.ppf(0.85)

    def scores(count, up, alike):
        patient = drawn.normal(size=(draws, count, 1)) * alike**0.5
        image = drawn.normal(size=(draws, count, images)) * (1 - alike) ** 0.5
        return (up * shift + patient + image).reshape(draws, -1)

    for alike, least in ((0.95, 0.9), (0.5, 0.5)):
        found = aurocs(scores(m, 1, alike), scores(n, 0, alike)).std()
        assert least * auroc_error(m, n) < found < 1.08 * auroc_error(m, n)


def test_labels_that_share_nothing_average_out_and_labels_that_share_all_do_not():
    four = [(50, 80)] * 4
    one = auroc_error(50, 80)
    assert mean_error(four, shared=0.0) == pytest.approx(one / 2)
    assert mean_error(four, shared=1.0) == pytest.approx(one)
    assert mean_error(four[:1]) == pytest.approx(one)


@given(SIDE, SIDE, st.integers(0, 5000), st.integers(0, 5000), st.floats(0.55, 0.98))
def test_more_patients_show_smaller_differences_and_gaps(m, n, more, others, auroc):
    few, many = [(m, n)], [(m + more, n + others)]
    assert smallest_difference(many, auroc=auroc) <= smallest_difference(few, auroc=auroc) + 1e-12
    assert smallest_gap([few, many], auroc=auroc) <= smallest_gap([few, few], auroc=auroc) + 1e-9


@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=5), st.floats(0.0, 0.95))
def test_models_that_rank_alike_show_smaller_differences(labels, r):
    assert smallest_difference(labels, r + 0.04) < smallest_difference(labels, r)
    assert smallest_difference(labels, power=0.9) > smallest_difference(labels)


def test_too_few_patients_show_nothing():
    assert smallest_difference([(9, 500)]) is None
    assert smallest_difference([(50, 50), (500, 9)]) is None
    assert smallest_difference([]) is None
    assert smallest_gap([[(50, 50)]]) is None
    assert smallest_gap([[(50, 50)], [(50, 9)]]) is None


def test_a_gap_is_that_of_two_independent_groups_and_grows_with_the_tests():
    groups = [[(60, 140)], [(45, 90)]]
    error = np.hypot(*(auroc_error(*g[0]) for g in groups))
    expected = (norm.ppf(0.975) + norm.ppf(0.8)) * error
    assert smallest_gap(groups) == pytest.approx(expected, rel=1e-3)
    assert smallest_gap(groups, attributes=2) > smallest_gap(groups)


def share_where_all_pass(drawn, groups, margin, draws=500):
    """How often every group of one of two equal models passes against the other's first group."""
    both = [
        np.array(
            [aurocs(p, q) for p, q in zip(*two_models(drawn, draws, *g, *equal), strict=True)]
        )
        for g in groups
        for equal in [(0.85, 0.85, 0.8)]
    ]
    other = both[0][1]
    gaps = np.array([mine - other for mine, _ in both])
    return ((gaps - 1.96 * gaps.std(axis=1, keepdims=True)) > -margin).all(axis=0).mean()


@pytest.mark.parametrize("groups", [[(40, 90)] * 4, [(30, 60), (35, 80), (120, 200)]])
def test_every_group_passes_in_four_of_five_tables_between_the_two_differences(groups):
    drawn, sides = np.random.default_rng(4), [[g] for g in groups]
    low, high = worst_group_difference(sides)
    assert share_where_all_pass(drawn, groups, low) < 0.83
    assert share_where_all_pass(drawn, groups, high) > 0.77
    # What a group's paired difference promised.
    paired = max(smallest_difference(s) for s in sides)
    assert share_where_all_pass(drawn, groups, paired) < 0.35


def test_the_worst_group_of_equal_groups_is_compared_with_other_patients():
    low, high = worst_group_difference([[(75, 225)]] * 4)
    assert low == pytest.approx(smallest_difference([(75, 225)], 0.0))
    assert (low, high) == pytest.approx((0.116, 0.149), abs=0.001)
    assert worst_group_difference([[(75, 225)]]) == (smallest_difference([(75, 225)]),) * 2
    two = worst_group_difference([[(75, 225)]] * 2)
    assert two[0] == low
    assert low < two[1] < high
    assert worst_group_difference([]) is None
    assert worst_group_difference([[(75, 225)], [(9, 50)]]) is None


def test_half_the_difference_takes_four_times_the_patients():
    value = smallest_difference([(100, 200)])
    assert times_more(value, value / 2) == pytest.approx(4)
    assert smallest_difference([(400, 800)]) == pytest.approx(value / 2, rel=0.02)
