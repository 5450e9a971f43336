import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.metrics.pairs import Statistic, defined, macro, pair

row = st.tuples(
    st.integers(0, 5),  # score: few values, so ties are the rule
    st.sampled_from([0.0, 1.0, np.nan]),
    st.integers(0, 4),  # unit
    st.integers(0, 2),  # part
)


def brute(score, target, weight, part):
    """Every pair, one by one."""
    won = total = 0.0
    for i in np.flatnonzero(target == 1):
        for j in np.flatnonzero(target == 0):
            if part[i] == part[j]:
                w = weight[i] * weight[j]
                won += w * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
                total += w
    return won / total if total else np.nan


@settings(deadline=None)
@given(rows=st.lists(row, max_size=25), weight=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_weighted_auroc_is_the_share_of_pairs(rows, weight):
    score, target, unit, part = (np.array(v) for v in zip(*rows, strict=True)) if rows else (
        np.zeros(0), np.zeros(0), np.zeros(0, int), np.zeros(0, int)
    )  # fmt: skip
    unit = unit.astype(int)
    w = np.array(weight, dtype=float)
    found = pair(score, target, unit, part).auroc(np.stack([w, np.ones(5)], axis=1))
    expected = [brute(score, target, v[unit], part) for v in (w, np.ones(5))]
    np.testing.assert_allclose(found, expected, rtol=1e-12, equal_nan=True)


@settings(deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=25))
def test_integer_weights_equal_copied_rows(rows):
    score, target, unit, part = (np.array(v) for v in zip(*rows, strict=True))
    w = np.array([0, 1, 2, 3, 1], dtype=float)
    copied = np.repeat(np.arange(len(rows)), w[unit].astype(int))
    weighted = pair(score, target, unit, part).auroc(w[:, None])
    plain = pair(score[copied], target[copied], np.zeros(len(copied), int), part[copied]).auroc(
        np.ones((1, 1))
    )
    assert np.array_equal(weighted, plain, equal_nan=True)


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        pair(np.array([0.1, np.nan]), np.array([0, 1]), np.arange(2))


def test_statistic_without_cells_is_undefined():
    assert Statistic((), macro, 3).value is None
    assert np.isnan(Statistic((), macro, 3).values(np.ones((3, 4)))).all()


def test_undefined_has_one_spelling():
    assert defined(np.nan) is None
    assert defined(np.inf) is None
    assert defined(np.float32(0.5)) == 0.5
