"""How well scores rank, calibrate and decide: AUROC, Brier, operating points and more.

Three rules hold for all of them: a row with a NaN target is ignored, scores of different models
(parts) are never pooled into one ranking, and what cannot be computed is None, never NaN or 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.pairs import Indices, Statistic, defined, macro, pair


def auroc_binary(
    score: Floats,
    target: Floats,
    part: npt.NDArray[Any] | None = None,
    weight: Floats | None = None,
) -> float | None:
    """Probability that a positive scores above a negative of the same part (ties count half).

    Args:
        score: [N].
        target: [N], 0, 1 or NaN (ignored).
        part: [N], id of the model that scored the row.
        weight: [N], non-negative row weights, e.g. how often a bootstrap drew the patient.

    Returns:
        None without a positive or without a negative (Hanley & McNeil 1982).
    """
    rows = np.arange(len(score))
    weights = np.ones(len(score)) if weight is None else np.asarray(weight, dtype=np.float64)
    return defined(pair(score, target, rows, part).auroc(weights[:, None])[0])


def auroc_statistic(
    p: Predictions, unit: Indices, classes: Sequence[str] | None = None
) -> Statistic:
    """Macro AUROC over the classes that have both labels, ready for patient weights.

    Args:
        p: predictions.
        unit: [N], index of each row's unit.
        classes: the classes to average; None = all.
    """
    wanted = [c for c, name in enumerate(p.classes) if classes is None or name in classes]
    score = p.rank_score
    found = [pair(score[:, c], p.target[:, c], unit, p.part) for c in wanted]
    cells = tuple(cell for cell in found if cell.segments)
    return Statistic(cells, macro, int(unit.max()) + 1 if len(unit) else 0)


def auroc(p: Predictions) -> float | None:
    """Macro AUROC: the mean over the classes in which it is defined."""
    return auroc_statistic(p, np.arange(len(p.patient))).value


def auroc_by_class(p: Predictions) -> dict[str, float | None]:
    """AUROC of each class, None where a class has only one label."""
    score = p.rank_score
    return {
        name: auroc_binary(score[:, c], p.target[:, c], p.part) for c, name in enumerate(p.classes)
    }


def average_precision(p: Predictions) -> float | None:
    """Macro average precision; inside a class the parts are averaged by their positives."""
    return _macro(p, average_precision_by_class(p))


def average_precision_by_class(p: Predictions) -> dict[str, float | None]:
    """Average precision of each class: precision times the step in recall, summed.

    Not interpolated. None where a class has only one label: positives alone would give 1.
    """
    score = p.rank_score
    found: dict[str, float | None] = {}
    for c, name in enumerate(p.classes):
        parts = [p.part == value for value in np.unique(p.part)]
        each = [_average_precision(score[rows, c], p.target[rows, c]) for rows in parts]
        counts = [int((p.target[rows, c] == 1).sum()) for rows in parts]
        kept = [(v, n) for v, n in zip(each, counts, strict=True) if v is not None]
        total = sum(n for _, n in kept)
        found[name] = sum(v * n for v, n in kept) / total if total else None
    return found


def brier(p: Predictions) -> float | None:
    """Macro Brier score: mean squared error of the probability, one class against the rest."""
    return _proper(p, lambda q, y: (q - y) ** 2)


def log_loss(p: Predictions) -> float | None:
    """Mean negative log-likelihood: of the true class for multiclass, else macro over classes."""
    if p.kind == "multiclass":
        rows = ~np.isnan(p.target).any(axis=1)
        q = (p.probability[rows] * p.target[rows]).sum(axis=1)
        return defined(-np.log(np.maximum(q, _TINY)).mean()) if rows.any() else None
    return _proper(p, lambda q, y: -np.log(np.maximum(np.where(y == 1, q, 1 - q), _TINY)))


def accuracy(p: Predictions) -> float | None:
    """Share of right decisions: likeliest class for multiclass, else probability >= .5."""
    if p.kind == "multiclass":
        rows = ~np.isnan(p.target).any(axis=1)
        right = p.score[rows].argmax(axis=1) == p.target[rows].argmax(axis=1)
        return float(right.mean()) if rows.any() else None
    return _proper(p, lambda q, y: ((q >= 0.5) == (y == 1)).astype(np.float64))


def fit_threshold(p: Predictions, sensitivity: float = 0.90) -> tuple[float | None, ...]:
    """One operating point a class: the highest probability that still reaches the sensitivity.

    Fit it on ``search`` and freeze it: fitted on the split it judges, it flatters (TRAPS A5).

    Args:
        p: predictions on the split that may be fitted on.
        sensitivity: share of positive rows that must score at or above the threshold, in (0, 1].

    Returns:
        A probability for each class; None for a class without positives.
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity {sensitivity} is not in (0, 1]")
    found: list[float | None] = []
    for c in range(len(p.classes)):
        positive = np.sort(p.probability[p.target[:, c] == 1, c])[::-1]
        # The subtraction keeps 0.9 * 10 = 9.000000000000002 from asking for a tenth positive.
        needed = math.ceil(sensitivity * len(positive) - 1e-9)
        found.append(float(positive[needed - 1]) if len(positive) else None)
    return tuple(found)


def sensitivity(p: Predictions, thresholds: Sequence[float | None]) -> dict[str, float | None]:
    """Share of positive rows at or above each class's frozen threshold."""
    return _share(p, thresholds, 1, lambda q, t: q >= t)


def specificity(p: Predictions, thresholds: Sequence[float | None]) -> dict[str, float | None]:
    """Share of negative rows below each class's frozen threshold."""
    return _share(p, thresholds, 0, lambda q, t: q < t)


def decisions(p: Predictions, thresholds: Sequence[float | None]) -> Floats:
    """0/1 decisions [N, C] at the frozen thresholds; NaN where target or threshold is."""
    limits = np.array([np.nan if t is None else t for t in thresholds], dtype=np.float64)
    made = (p.probability >= limits).astype(np.float64)
    return np.where(np.isnan(p.target) | np.isnan(limits), np.nan, made)


_TINY = np.finfo(np.float64).tiny


def _macro(p: Predictions, by_class: dict[str, float | None]) -> float | None:
    values = [v for v in by_class.values() if v is not None]
    return float(np.mean(values)) if values else None


def _proper(p: Predictions, error: Callable[[Floats, Floats], Floats]) -> float | None:
    q, values = p.probability, []
    for c in range(len(p.classes)):
        rows = ~np.isnan(p.target[:, c])
        if rows.any():
            values.append(error(q[rows, c], p.target[rows, c]).mean())
    return float(np.mean(values)) if values else None


def _share(
    p: Predictions,
    thresholds: Sequence[float | None],
    label: int,
    rule: Callable[[Floats, float], npt.NDArray[np.bool_]],
) -> dict[str, float | None]:
    q, found = p.probability, {}
    for c, (name, limit) in enumerate(zip(p.classes, thresholds, strict=True)):
        rows = p.target[:, c] == label
        known = limit is not None and rows.any()
        found[name] = (
            float(rule(q[rows, c], limit).mean()) if known and limit is not None else None
        )
    return found


def _average_precision(score: Floats, target: Floats) -> float | None:
    known = ~np.isnan(target)
    score, target = score[known], target[known]
    positives = target.sum()
    if positives == 0 or positives == len(target):
        return None
    order = np.argsort(-score.astype(np.float64), kind="stable")
    score, target = score[order], target[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # ties move together
    hits = np.cumsum(target)[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / positives)
