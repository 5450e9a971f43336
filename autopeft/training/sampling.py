"""Which images an epoch draws, and how much each label weighs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.job import Rows
from autopeft.training.augment import mix

CAP = 10.0  # no image is drawn more than this many times as often as the average one


def cell_weights(rows: Rows, sampling: str) -> npt.NDArray[np.float64] | None:
    """Sampling weights [N] with mean 1, or None for plain sampling.

    Each cell (label combination, group combination, or both) gets the same total weight, up to
    ``CAP``; patients of unknown group form a cell of their own.
    """
    if sampling == "plain":
        return None
    cell = cells(rows, sampling)
    count = np.bincount(cell)
    weight = 1.0 / count[cell]
    while weight.max() > 1.001 * CAP * weight.mean():  # a cap lowers the mean, hence the cap
        weight = np.minimum(weight, CAP * weight.mean())
    return weight / weight.mean()  # type: ignore[no-any-return]


def cells(rows: Rows, sampling: str) -> npt.NDArray[np.int64]:
    """Cell of each row [N], numbered from 0: what ``sampling`` draws equally often."""
    assert rows.label is not None
    keys = np.zeros(len(rows), np.int64)
    if sampling in ("label", "label_x_group"):
        keys = _cells(keys, np.nan_to_num(rows.label, nan=-1).astype(np.int64).T)
    if sampling in ("group", "label_x_group"):
        keys = _cells(keys, rows.groups.values())
    return keys


def _cells(keys: npt.NDArray[np.int64], columns: Any) -> npt.NDArray[np.int64]:
    for column in columns:
        _, code = np.unique(column, return_inverse=True)
        keys = keys * (int(code.max()) + 1) + code
        _, keys = np.unique(keys, return_inverse=True)
    return keys


def epoch_order(
    n: int, weight: npt.NDArray[np.float64] | None, seed: int, repeat: int, epoch: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers [n] of one epoch in training order, and how often each was drawn before [n].

    Depends on (seed, repeat, epoch) only, so a resumed training sees the same order.
    """
    rng = np.random.default_rng(int(mix(seed, repeat, epoch, 1)))
    if weight is None:
        return rng.permutation(n), np.zeros(n, np.int64)
    order = rng.choice(n, n, p=weight / weight.sum())
    by_row = np.argsort(order, kind="stable")
    sorted_rows = order[by_row]
    starts = np.r_[True, sorted_rows[1:] != sorted_rows[:-1]]
    position = np.arange(n)
    first = np.maximum.accumulate(np.where(starts, position, 0))
    occurrence = np.empty(n, np.int64)
    occurrence[by_row] = position - first
    return order, occurrence


def label_weights(label: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Weight of a positive per class [C], negatives / positives, clipped to 0.1..10."""
    positive = np.nansum(label == 1, axis=0).astype(np.float64)
    negative = np.nansum(label == 0, axis=0).astype(np.float64)
    ratio: npt.NDArray[np.float32] = (negative / np.maximum(positive, 1)).astype(np.float32)
    return ratio.clip(0.1, 10)
