"""Which images an epoch draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.job import Rows
from autopeft.training.sampling import CAP, cell_weights, epoch_order, label_weights


def make_rows(label, **groups):
    n = len(label)
    return Rows(
        np.arange(n).astype(str),
        np.arange(n),
        np.arange(n).astype(str),
        np.asarray(label, np.float32).reshape(n, -1),
        {k: np.asarray(v) for k, v in groups.items()},
    )


def totals(weight, cell):
    """Total weight of each cell."""
    return {c: weight[[k == c for k in cell]].sum() for c in set(cell)}


LABEL = np.array([0] * 12 + [1] * 4)
SEX = np.array(["F"] * 10 + ["M"] * 2 + ["F"] * 1 + ["M"] * 3)


def test_plain_has_no_weights():
    assert cell_weights(make_rows(LABEL), "plain") is None


@pytest.mark.parametrize(
    ("sampling", "cell"),
    [
        ("label", LABEL.tolist()),
        ("group", SEX.tolist()),
        ("label_x_group", list(zip(LABEL.tolist(), SEX.tolist(), strict=True))),
    ],
)
def test_each_cell_gets_the_same_total(sampling, cell):
    weight = cell_weights(make_rows(LABEL, sex=SEX), sampling)
    assert weight.mean() == pytest.approx(1)
    found = list(totals(weight, cell).values())
    np.testing.assert_allclose(found, 16 / len(found))
    for c in set(cell):
        assert len({w for w, k in zip(weight, cell, strict=True) if k == c}) == 1


def test_cells_are_label_and_group_combinations():
    label = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, np.nan], [1, 1]])
    weight = cell_weights(make_rows(label), "label")
    np.testing.assert_allclose(weight, 6 / 5 * np.array([1, 1, 1, 0.5, 1, 0.5]))
    rows = make_rows(np.zeros(4), sex=["F", "F", "M", "unknown"], age=["a", "b", "a", "a"])
    np.testing.assert_allclose(cell_weights(rows, "group"), 1)  # four combinations, one row each


@given(st.lists(st.integers(0, 6), min_size=2, max_size=80), st.integers(0, 3000))
def test_no_image_is_drawn_more_than_the_cap(cells, common):
    label = np.array(cells + [7] * common)
    weight = cell_weights(make_rows(np.zeros(len(label)), g=label), "group")
    assert weight.mean() == pytest.approx(1)
    assert weight.max() <= 1.01 * CAP
    assert weight.min() > 0
    sizes = np.bincount(label)[label]
    rare_first = np.argsort(sizes, kind="stable")
    assert (np.diff(weight[rare_first]) <= 1e-12).all()  # a rarer cell never weighs less


def test_plain_epochs_see_each_row_once_in_another_order():
    seen = set()
    for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        order, occurrence = epoch_order(50, None, *key)
        assert sorted(order) == list(range(50))
        assert (occurrence == 0).all()
        assert np.array_equal(order, epoch_order(50, None, *key)[0])
        seen.add(tuple(order))
    assert len(seen) == 4


def test_weighted_epochs_draw_by_weight_and_count_repeats():
    weight = np.array([8.0, 1, 1, 0])
    drawn = np.zeros(4)
    for epoch in range(400):
        order, occurrence = epoch_order(4, weight, 0, 0, epoch)
        drawn += np.bincount(order, minlength=4)
        for i, row in enumerate(order):
            assert occurrence[i] == (order[:i] == row).sum()
    np.testing.assert_allclose(drawn / 1600, [0.8, 0.1, 0.1, 0], atol=0.03)


def test_sampling_evens_out_what_an_epoch_sees():
    label = np.array([0] * 900 + [1] * 100)
    weight = cell_weights(make_rows(label), "label")
    order, _ = epoch_order(1000, weight, 0, 0, 0)
    assert abs(label[order].mean() - 0.5) < 0.06


def test_label_weights_are_negatives_over_positives_within_bounds():
    label = np.full((1000, 4), np.nan, np.float32)
    label[:, 0] = [1] * 250 + [0] * 750
    label[:10, 1] = [1] * 5 + [0] * 5  # the rest is missing
    label[:, 2] = [1] + [0] * 999
    label[:, 3] = 1
    got = label_weights(label)
    np.testing.assert_allclose(got, [3, 1, 10, 0.1])
    assert got.dtype == np.float32
