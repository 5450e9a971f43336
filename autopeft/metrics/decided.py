"""Decisions under patient weights: what is counted at a threshold that the same weights have set.

The numbers are those of their namesakes on copied rows with thresholds fitted again
(`operating_points`), for many resamples at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.fairness import Counted
from autopeft.metrics.groups import scored_groups
from autopeft.metrics.pairs import Indices, Steps

Bools = npt.NDArray[np.bool_]
TARGET = 0.90  # sensitivity of the operating point, as `fit_threshold` has it


@dataclass(frozen=True)
class _Part:
    """One model's rows of one class: its positives set the threshold.

    Attributes:
        fitted: [n], unit of each positive, highest probability first.
        called: for each wanted set of rows, those that are called at each of these thresholds,
            and at the end all of them.
    """

    fitted: Indices
    called: tuple[Steps, ...]

    def counts(self, weight: Floats) -> tuple[Floats, Floats]:
        """Weight of the calls (NaN without positives) and of all rows of each set, [sets, B]."""
        reached = np.cumsum(weight[self.fitted], axis=0)
        at = (reached < TARGET * reached[-1] - 1e-9).sum(axis=0), np.arange(weight.shape[1])
        sums = [steps.sums(weight) for steps in self.called]
        calls = np.stack([s[at] for s in sums])
        return np.where(reached[-1] > 0, calls, np.nan), np.stack([s[-1] for s in sums])


def _parts(p: Predictions, unit: Indices, column: int, sets: Sequence[Bools]) -> list[_Part]:
    """One entry a part that has positives; a class without any has none."""
    q, found = p.probability[:, column], []
    for part in np.unique(p.part):
        own = p.part == part
        fitted = np.flatnonzero(own & (p.target[:, column] == 1))
        if not len(fitted):
            return []
        fitted = fitted[np.argsort(-q[fitted], kind="stable")]
        called = []
        for rows in (np.flatnonzero(own & chosen) for chosen in sets):
            rows = rows[np.argsort(-q[rows], kind="stable")]
            edges = np.searchsorted(-q[rows], -q[fitted], side="right")
            called.append(Steps(unit[rows], np.append(edges, len(rows))))
        found.append(_Part(unit[fitted], tuple(called)))
    return found


@dataclass(frozen=True)
class Rates:
    """Share of several sets of rows that is called, e.g. of each group's positives."""

    parts: list[_Part]
    sets: int

    def counts(self, weight: Floats) -> tuple[Floats, Floats]:
        """Calls and rows of each set over all parts, each [sets, B]."""
        if not self.parts:
            nobody = np.full((self.sets, weight.shape[1]), np.nan)
            return nobody, nobody
        every = [part.counts(weight) for part in self.parts]
        return sum(c for c, _ in every), sum(n for _, n in every)  # type: ignore[return-value]

    def values(self, weight: Floats) -> Floats:
        """[sets, B]; NaN of a set without rows."""
        calls, rows = self.counts(weight)
        return np.divide(calls, rows, out=np.full_like(rows, np.nan), where=rows > 0)


@dataclass(frozen=True)
class Decided:
    """Mean over the classes of an attribute, the worst over attributes, under patient weights."""

    attributes: tuple[tuple[Rates, ...], ...]
    of_class: Callable[[Rates, Floats], Floats]
    worst: Callable[[Sequence[Floats]], Floats]

    def values(self, weight: Floats) -> Floats:
        """The metric [B] under weights [U, B]; NaN where undefined."""
        if not self.attributes:
            return np.full(weight.shape[1], np.nan)
        every = [[self.of_class(r, weight) for r in rates] for rates in self.attributes]
        return self.worst([np.mean(values, axis=0) for values in every])


def decided(
    p: Predictions,
    unit: Indices,
    metric: str,
    counted: Counted | None = None,
    labels: Counted | None = None,
) -> Decided:
    """One of `DECIDED`, ready for patient weights.

    Args:
        p: predictions, on the patients that the thresholds are fitted on.
        unit: [N], index of each row's patient.
        metric: a name of `DECIDED`.
        counted: attribute -> groups that count.
        labels: attribute -> labels that count.
    """
    of_class, worst = DECIDED[metric]
    if metric in ("f1", "specificity"):
        rates = [r for c in range(len(p.classes)) if (r := _of_everyone(p, unit, c, metric))]
        return Decided((tuple(rates),) if rates else (), of_class, worst)
    found = []
    for scored in scored_groups(p, counted or {}, labels):
        if len(scored.groups) > 1:
            members = [p.groups[scored.attribute] == group for group in scored.groups]
            found.append(tuple(_of_groups(p, unit, c, members) for c in scored.columns))
    return Decided(tuple(found), of_class, worst)


def _of_everyone(p: Predictions, unit: Indices, column: int, metric: str) -> Rates | None:
    """Positives and negatives of a class in which the metric is defined."""
    y = p.target[:, column]
    positive, negative = y == 1, y == 0
    if not positive.any() or not negative.any():
        return None
    return Rates(_parts(p, unit, column, [positive, negative]), 2)


def _of_groups(p: Predictions, unit: Indices, column: int, members: Sequence[Bools]) -> Rates:
    """Each group's positives, then each group's negatives."""
    y = p.target[:, column]
    sets = [member & (y == label) for label in (1, 0) for member in members]
    return Rates(_parts(p, unit, column, sets), len(sets))


def _specificity(rates: Rates, weight: Floats) -> Floats:
    return 1 - rates.values(weight)[1]  # type: ignore[no-any-return]


def _f1(rates: Rates, weight: Floats) -> Floats:
    calls, rows = rates.counts(weight)
    known = (rows > 0).all(axis=0)
    below = rows[0] + calls.sum(axis=0)
    return np.divide(2 * calls[0], below, out=np.full_like(below, np.nan), where=known)  # type: ignore[no-any-return]


def _odds(spread: Callable[[Floats], Floats], worst: str) -> Callable[[Rates, Floats], Floats]:
    """Over groups, of the rates among positives and among negatives: the worse of the two."""

    def value(rates: Rates, weight: Floats) -> Floats:
        each = rates.values(weight)
        sides = np.stack([spread(side) for side in np.split(each, 2)])
        return getattr(sides, worst)(axis=0)  # type: ignore[no-any-return]

    return value


def _parity(spread: Callable[[Floats], Floats]) -> Callable[[Rates, Floats], Floats]:
    """Over groups, of the share of all rows that is called."""

    def value(rates: Rates, weight: Floats) -> Floats:
        calls, rows = (sum(np.split(both, 2)) for both in rates.counts(weight))
        lost = np.isnan(rates.values(weight)).any(axis=0)  # a group without a class
        shares = np.divide(calls, rows, out=np.full_like(rows, np.nan), where=rows > 0)
        return np.where(lost, np.nan, spread(shares))

    return value


def _ratio(rates: Floats) -> Floats:
    low, high = rates.min(axis=0), rates.max(axis=0)
    return np.divide(low, high, out=np.full_like(low, np.nan), where=high > 0)  # type: ignore[no-any-return]


def _range(rates: Floats) -> Floats:
    return np.ptp(rates, axis=0)  # type: ignore[no-any-return]


def _highest(values: Sequence[Floats]) -> Floats:
    return np.max(values, axis=0)  # type: ignore[no-any-return]


def _lowest(values: Sequence[Floats]) -> Floats:
    return np.min(values, axis=0)  # type: ignore[no-any-return]


DECIDED: Mapping[
    str, tuple[Callable[[Rates, Floats], Floats], Callable[[Sequence[Floats]], Floats]]
] = {
    "specificity": (_specificity, _highest),
    "f1": (_f1, _highest),
    "equalized_odds_difference": (_odds(_range, "max"), _highest),
    "equalized_odds_ratio": (_odds(_ratio, "min"), _lowest),
    "demographic_parity_difference": (_parity(_range), _highest),
    "demographic_parity_ratio": (_parity(_ratio), _lowest),
}
