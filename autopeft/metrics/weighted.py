"""Metrics under patient weights: what a bootstrap computes instead of copying rows.

A resample is another whole-numbered weight of each patient, so that each metric here is the same
number as its namesake on copied rows, for many resamples at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.calibration import class_logit, intercepts, slopes
from autopeft.metrics.classification import (
    SPECIFICITY,
    Ranked,
    accuracy_rows,
    brier_rows,
    log_loss_rows,
    ranked,
)
from autopeft.metrics.pairs import Indices

Cell = Callable[[Floats], Floats]


@dataclass(frozen=True)
class ByClass:
    """Mean over classes, under patient weights.

    Attributes:
        cells: one function a class: weights [U, B] -> [B]; all of them defined on the data.
    """

    cells: tuple[Cell, ...]

    def values(self, weight: Floats) -> Floats:
        """The metric [B] under weights [U, B]; NaN where undefined."""
        if not self.cells:
            return np.full(weight.shape[1], np.nan)
        return np.mean([cell(weight) for cell in self.cells], axis=0)  # type: ignore[no-any-return]


def statistic(
    p: Predictions, unit: Indices, metric: str, classes: Sequence[str] | None = None
) -> ByClass:
    """One of `WEIGHTED`, over the classes in which it is defined.

    Args:
        p: predictions.
        unit: [N], index of each row's unit (patient).
        metric: a name of `WEIGHTED`.
        classes: the classes to average; None = all.
    """
    units = int(unit.max()) + 1 if len(unit) else 0
    columns = [c for c, name in enumerate(p.classes) if classes is None or name in classes]
    every = WEIGHTED[metric](p, unit, units, columns)
    one = np.ones((units, 1))
    return ByClass(tuple(cell for cell in every if np.isfinite(cell(one)[0])))


def _row_means(
    rows: Callable[[Predictions], Floats],
    p: Predictions,
    unit: Indices,
    units: int,
    columns: Sequence[int],
) -> list[Cell]:
    """Means over rows: each patient's sum and count say all that is needed."""
    values = rows(p)
    wanted = columns if values.shape[1] == len(p.classes) else range(values.shape[1])
    found: list[Cell] = []
    for c in wanted:
        known = ~np.isnan(values[:, c])
        count = np.bincount(unit[known], minlength=units).astype(np.float64)
        total = np.bincount(unit[known], values[known, c], minlength=units).astype(np.float64)
        found.append(partial(_ratio, total, count))
    return found


def _ratio(total: Floats, count: Floats, weight: Floats) -> Floats:
    below = count @ weight
    return np.divide(total @ weight, below, out=np.full(len(below), np.nan), where=below > 0)  # type: ignore[no-any-return]


def _ranking(
    value: Callable[[Ranked, Floats], tuple[Floats, Floats]],
    p: Predictions,
    unit: Indices,
    units: int,
    columns: Sequence[int],
) -> list[Cell]:
    """Metrics of the ranking inside each part, averaged over parts by their positives."""
    found: list[Cell] = []
    for c in columns:
        found.append(partial(_over_parts, value, ranked(p, c, unit)))
    return found


def _over_parts(
    value: Callable[[Ranked, Floats], tuple[Floats, Floats]],
    parts: Sequence[Ranked],
    weight: Floats,
) -> Floats:
    total, positives = np.zeros(weight.shape[1]), np.zeros(weight.shape[1])
    for part in parts:
        found, count = value(part, weight)
        known = np.isfinite(found)
        total[known] += (found * count)[known]
        positives[known] += count[known]
    return np.divide(total, positives, out=np.full_like(total, np.nan), where=positives > 0)


def _calibration(
    fit: Callable[[Floats, Floats, Floats], Floats],
    p: Predictions,
    unit: Indices,
    units: int,
    columns: Sequence[int],
) -> list[Cell]:
    found: list[Cell] = []
    for c in columns:
        known, logit = ~np.isnan(p.target[:, c]), class_logit(p, c)
        each = [np.flatnonzero(known & (p.part == part)) for part in np.unique(p.part)]
        models = [(logit[r], p.target[r, c].astype(np.float64), unit[r]) for r in each]
        found.append(partial(_fitted, fit, models))
    return found


def _fitted(
    fit: Callable[[Floats, Floats, Floats], Floats],
    models: Sequence[tuple[Floats, Floats, Indices]],
    weight: Floats,
) -> Floats:
    """Mean over the models, by rows; a model that a resample left with one label has no say."""
    every, rows = [], []
    for z, y, unit in models:
        w = weight[unit]
        positive, total = y @ w, w.sum(axis=0)
        both = (positive > 0) & (positive < total)
        every.append(np.where(both, fit(z, y, w), 0.0))
        rows.append(np.where(both, total, 0.0))
    whole = np.sum(rows, axis=0)
    share = np.divide(rows, whole, out=np.zeros((len(rows), len(whole))), where=whole > 0)
    return np.where(whole > 0, (np.array(every) * share).sum(axis=0), np.nan)


_Maker = Callable[[Predictions, Indices, int, Sequence[int]], list[Cell]]

WEIGHTED: Mapping[str, _Maker] = {
    "brier": partial(_row_means, brier_rows),
    "log_loss": partial(_row_means, log_loss_rows),
    "accuracy": partial(_row_means, accuracy_rows),
    "average_precision": partial(_ranking, Ranked.average_precision),
    "tpr_at_specificity": partial(
        _ranking, partial(Ranked.tpr_at_specificity, specificity=SPECIFICITY)
    ),
    "calibration_intercept": partial(_calibration, intercepts),
    "calibration_slope": partial(_calibration, slopes),
}
