"""Positive-negative pairs, sorted once: an AUROC under any weights is then a cumulative sum.

The engine below every ranking metric and every interval: a metric is a `Statistic`, a function of
the AUROCs of some cells (a label, or a label inside a group), and a bootstrap resample is nothing
but another integer weight of each patient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class _Segment:
    """The pairs of one label in one part: where each row of the rarer side stands."""

    many: Indices  # units of the commoner side, by ascending score
    few: Indices  # units of the rarer side, by ascending score
    below: Indices  # how many of `many` score lower than each of `few`
    up_to: Indices  # the same, ties included
    few_positive: bool

    def concordance(self, weight: Floats) -> tuple[Floats, Floats]:
        """Weighted concordant pairs (ties count half) and weighted pairs, each [B]."""
        total = np.zeros((len(self.many) + 1, weight.shape[1]))
        np.cumsum(weight[self.many], axis=0, out=total[1:])
        few = weight[self.few]
        pairs = few.sum(axis=0) * total[-1]
        lower = np.einsum("ib,ib->b", few, total[self.below] + total[self.up_to]) / 2
        return (lower if self.few_positive else pairs - lower), pairs


@dataclass(frozen=True)
class Pairs:
    """All positive-negative pairs of one cell; a pair never joins two parts."""

    segments: tuple[_Segment, ...]

    def auroc(self, weight: Floats) -> Floats:
        """AUROC under each weighting of the units.

        Args:
            weight: [U, B], one non-negative weight for each unit and resample.

        Returns:
            [B]; NaN where a resample has no pair (callers drop it or say None).
        """
        concordant, pairs = np.zeros(weight.shape[1]), np.zeros(weight.shape[1])
        for segment in self.segments:
            c, n = segment.concordance(weight)
            concordant, pairs = concordant + c, pairs + n
        return np.divide(concordant, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def pair(
    score: Floats, target: Floats, unit: Indices, part: npt.NDArray[Any] | None = None
) -> Pairs:
    """Sorts one label's rows into pairs.

    Args:
        score: [N], higher = more positive.
        target: [N], 1, 0 or NaN (the row is ignored).
        unit: [N], index of the unit (patient) that carries the row's weight.
        part: [N], id of the model that scored the row; None = one model.

    Returns:
        The pairs; without any pair its AUROC is NaN.

    Raises:
        ValueError: a score is NaN (a rank among NaN means nothing).
    """
    score = np.asarray(score, dtype=np.float64)
    if np.isnan(score).any():
        raise ValueError("scores hold NaN; such a trial must be told as failed, not ranked")
    groups = [slice(None)] if part is None else [part == value for value in np.unique(part)]
    found = [_segment(score[rows], np.asarray(target)[rows], unit[rows]) for rows in groups]
    return Pairs(tuple(s for s in found if s is not None))


def _segment(score: Floats, target: Floats, unit: Indices) -> _Segment | None:
    sides = []
    for value in (0, 1):
        rows = np.flatnonzero(target == value)
        rows = rows[np.argsort(score[rows], kind="stable")]
        sides.append((score[rows], unit[rows]))
    (_, negative), (_, positive) = sides
    if not len(negative) or not len(positive):
        return None
    few_positive = len(positive) <= len(negative)
    few, many = (sides[1], sides[0]) if few_positive else (sides[0], sides[1])
    below = np.searchsorted(many[0], few[0], side="left")
    up_to = np.searchsorted(many[0], few[0], side="right")
    return _Segment(many[1], few[1], below, up_to, few_positive)


@dataclass(frozen=True)
class Statistic:
    """A metric as a function of AUROCs, ready to be computed under many patient weights.

    Attributes:
        cells: the AUROCs that it needs, all of them defined on the data at hand.
        combine: [B, cells] -> [B]; NaN in, NaN out, so a resample without a cell is undefined.
        units: number of units (patients) that carry weights.
    """

    cells: tuple[Pairs, ...]
    combine: Callable[[Floats], Floats]
    units: int

    def values(self, weight: Floats) -> Floats:
        """The metric [B] under weights [U, B]; NaN where undefined."""
        if not self.cells:
            return np.full(weight.shape[1], np.nan)
        return self.combine(np.stack([cell.auroc(weight) for cell in self.cells], axis=1))

    @property
    def value(self) -> float | None:
        """The metric on the data itself; None where undefined."""
        return defined(self.values(np.ones((self.units, 1)))[0])


def defined(value: float | np.floating[Any]) -> float | None:
    """A Python float, or None for NaN and infinities: the only spelling of "undefined" outside."""
    return float(value) if np.isfinite(value) else None


def macro(values: Floats) -> Floats:
    """Mean over cells, [B, cells] -> [B]."""
    return values.mean(axis=1)  # type: ignore[no-any-return]
