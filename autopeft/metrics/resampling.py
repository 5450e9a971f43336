"""What a resample is: how often each patient was drawn, and any metric under such weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.classification import auroc_statistic
from autopeft.metrics.fairness import (
    Counted,
    gap_statistic,
    group_statistic,
    worst_group_statistic,
)
from autopeft.metrics.pairs import Indices
from autopeft.metrics.weighted import WEIGHTED, statistic

MetricName = str | Callable[[Predictions], float | None]


class Weighted(Protocol):
    """A metric that can be computed under patient weights [U, B]."""

    def values(self, weight: Floats) -> Floats:
        """The metric [B]; NaN where a resample leaves it undefined."""


@dataclass(frozen=True)
class Copied:
    """Any metric, resampled by copying rows: one call of the function for each resample."""

    p: Predictions
    unit: Indices
    function: Callable[[Predictions], float | None]

    def values(self, weight: Floats) -> Floats:
        """The metric [B] under whole-numbered weights [U, B]."""
        found = np.full(weight.shape[1], np.nan)
        for b in range(weight.shape[1]):
            rows = np.repeat(np.arange(len(self.unit)), weight[self.unit, b].astype(int))
            value = self.function(self.p.take(rows))
            found[b] = np.nan if value is None else value
        return found


def prepared(
    p: Predictions,
    unit: Indices,
    metric: MetricName,
    counted: Counted | None = None,
    labels: Counted | None = None,
) -> Weighted:
    """The metric on these predictions, sorted once.

    Args:
        p: predictions.
        unit: [N], index of each row's patient.
        metric: see `autopeft.metrics.intervals.bootstrap`.
        counted: attribute -> groups that count.
        labels: attribute -> labels that count; None = all.

    Raises:
        ValueError: nobody knows a metric of that name.
    """
    if callable(metric):
        return Copied(p, unit, metric)
    if metric == "auroc":
        return auroc_statistic(p, unit)
    if metric == "worst_group_auroc":
        return worst_group_statistic(p, unit, counted or {}, labels)
    if metric == "auroc_gap":
        return gap_statistic(p, unit, counted or {}, labels)
    kind, _, name = metric.partition(":")
    if kind == "auroc" and name in p.classes:
        return auroc_statistic(p, unit, (name,))
    if kind == "auroc" and any(name in groups for groups in (counted or {}).values()):
        return group_statistic(p, unit, name, counted or {}, labels)
    if kind in WEIGHTED and (not name or name in p.classes):
        return statistic(p, unit, kind, (name,) if name else None)
    raise ValueError(f"no interval is known for metric {metric!r}")


def difference(a: Sequence[Weighted], b: Sequence[Weighted], weight: Floats) -> Floats:
    """Mean over the repeats of one side, minus that of the other, [B]; b may be empty."""
    value = np.mean([m.values(weight) for m in a], axis=0)
    return value - np.mean([m.values(weight) for m in b], axis=0) if b else value  # type: ignore[no-any-return]


def patient_weights(
    patients: int,
    rows: int,
    n: int,
    seed: int | np.random.SeedSequence,
    part: Indices | None = None,
) -> Iterator[Floats]:
    """Blocks [patients, B] that hold how often each resample drew each patient; B sums to n.

    The draws depend on the seed and the number of patients only, so that everything computed on
    the same patients with the same seed is computed on the same resamples.

    Args:
        patients: how many.
        rows: how many, for the size of a block.
        n: resamples.
        seed: of the draws.
        part: [patients], the model (fold) that scored each; drawn inside each part, so that a
            resample holds as many patients of each as there are. None = one part.
    """
    rng = np.random.default_rng(seed)
    parts = [np.arange(patients)]
    if part is not None:
        parts = [np.flatnonzero(part == value) for value in np.unique(part)]
    # A block of rows x B float64 stays near 2.5 MB: inside the second-level cache it runs twice
    # as fast as with all resamples at once.
    size = int(np.clip(320_000 // max(rows, 1), 8, 256))
    for start in range(0, n, size):
        b = min(size, n - start)
        picked = [who[rng.integers(0, len(who), (b, len(who)))] for who in parts]
        drawn = np.concatenate(picked, axis=1) + patients * np.arange(b)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=b * patients).reshape(b, patients)
        yield np.ascontiguousarray(counts.T, dtype=np.float64)


def check_same_rows(every: Sequence[Predictions]) -> None:
    """What is compared must be on the same rows.

    Raises:
        ValueError: patients, targets or groups differ.
    """
    first = every[0]
    for other in every[1:]:
        same = (
            other.score.shape == first.score.shape
            and np.array_equal(other.patient, first.patient)
            and np.array_equal(other.target, first.target, equal_nan=True)
            and other.groups.keys() == first.groups.keys()
            and all(np.array_equal(v, other.groups[k]) for k, v in first.groups.items())
        )
        if not same:
            raise ValueError("predictions to be compared are not on the same rows")
