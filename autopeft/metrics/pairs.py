"""Positive-negative pairs, sorted once: an AUROC under any weights is then a cumulative sum.

The engine below every ranking metric and every interval: a metric is a `Statistic`, a function of
the AUROCs of some cells (a label, or a label inside a group), and a bootstrap resample is nothing
but another integer weight of each patient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats

Indices = npt.NDArray[np.intp]
Placed = tuple[Indices, Floats]


@dataclass(frozen=True)
class Steps:
    """Running sums of row weights, at the few places where they are read.

    Attributes:
        unit: [n], unit of each row, in the order of the sum.
        edges: [E], ascending: a sum takes so many first rows.
    """

    unit: Indices
    edges: Indices

    def sums(self, weight: Floats) -> Floats:
        """[E, B] under unit weights [U, B]."""
        if weight.shape[1] == 1:  # not worth a matrix
            total = np.append(0.0, np.cumsum(weight[self.unit, 0]))
            return total[self.edges, None]
        return np.cumsum(self._blocks @ weight[: self._blocks.shape[1]], axis=0)

    @cached_property
    def _blocks(self) -> Any:
        """How often each unit stands between two edges: ten times faster than row by row."""
        block = np.searchsorted(self.edges, np.arange(len(self.unit)), side="right")
        kept = block < len(self.edges)
        return counts(block[kept], self.unit[kept], len(self.edges))


def counts(row: Indices, unit: Indices, rows: int, value: float = 1.0) -> Any:
    """Sparse matrix [rows, units] that adds the weights of units into rows."""
    from scipy.sparse import csr_array  # a third of a second that one AUROC need not wait for

    units = int(unit.max()) + 1 if len(unit) else 0
    return csr_array((np.full(len(unit), value), (row, unit)), shape=(rows, units))


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
        lower = np.einsum("eb,eb->b", self._few(weight), self._steps.sums(weight))
        few, many = (np.bincount(units, minlength=len(weight)) for units in (self.few, self.many))
        pairs = (few @ weight) * (many @ weight)
        return (lower if self.few_positive else pairs - lower), pairs

    def _few(self, weight: Floats) -> Floats:
        """[E, B]: weight of `few` at each edge, a half where it starts and ends to outrank."""
        if weight.shape[1] == 1:
            at, unit = self._places
            return np.bincount(at, weight[unit, 0] / 2).astype(np.float64)[:, None]
        return self._halves @ weight[: self._halves.shape[1]]  # type: ignore[no-any-return]

    @cached_property
    def _steps(self) -> Steps:
        return Steps(self.many, np.unique([self.below, self.up_to]))

    @cached_property
    def _places(self) -> tuple[Indices, Indices]:
        at = np.searchsorted(self._steps.edges, np.concatenate([self.below, self.up_to]))
        return at, np.concatenate([self.few, self.few])

    @cached_property
    def _halves(self) -> Any:
        return counts(*self._places, len(self._steps.edges), 0.5)

    def placements(self) -> tuple[Placed, Placed]:
        """Of each positive and negative: its unit, and the share of pairs in right order."""
        few = (self.below + self.up_to) / 2  # how many of `many` each of `few` outranks
        ends = (np.bincount(at, minlength=len(self.many) + 1) for at in (self.below, self.up_to))
        # A `few` at position k of the sorted `many` outranks exactly those before k.
        outranked = np.sum([len(self.few) - np.cumsum(at)[:-1] for at in ends], axis=0) / 2
        few, many = few / len(self.many), outranked / len(self.few)
        if self.few_positive:
            return (self.few, few), (self.many, many)
        return (self.many, 1 - many), (self.few, 1 - few)


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
