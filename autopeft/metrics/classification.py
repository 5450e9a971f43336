"""How well scores rank, calibrate and decide: AUROC, Brier, operating points and more.

Three rules hold for all of them: a row with a NaN target is ignored, scores of different models
(parts) are never pooled into one ranking, and what cannot be computed is None, never NaN or 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats, Points, Predictions
from autopeft.metrics.pairs import Indices, Statistic, Steps, defined, macro, pair

SPECIFICITY = 0.90  # where TPR at a fixed specificity is read


@dataclass(frozen=True)
class Ranked:
    """One class's known rows of one part, highest score first, read where a positive is found.

    Attributes:
        positive: running sum of the positives, at each run of equal scores that holds one.
        every: running sum of all rows there, and at the end.
    """

    positive: Steps
    every: Steps

    def _counts(self, weight: Floats) -> tuple[Floats, Floats, Floats]:
        """Positives and negatives down to each place [E, B], and all negatives [B]."""
        hits, seen = self.positive.sums(weight), self.every.sums(weight)
        false = seen - np.concatenate([hits, hits[-1:]])
        return hits, false[:-1], false[-1]

    def average_precision(self, weight: Floats) -> tuple[Floats, Floats]:
        """Average precision and weighted positives, each [B], under unit weights [U, B]."""
        if not len(self.positive.unit):
            return np.full(weight.shape[1], np.nan), np.zeros(weight.shape[1])
        hits, false, negatives = self._counts(weight)
        seen = hits + false
        precision = np.divide(hits, seen, out=np.zeros_like(seen), where=seen > 0)
        total = (np.diff(hits, axis=0, prepend=0) * precision).sum(axis=0)
        return _where_both(total, hits[-1], negatives)

    def tpr_at_specificity(
        self, weight: Floats, specificity: float = SPECIFICITY
    ) -> tuple[Floats, Floats]:
        """Highest sensitivity that keeps the specificity, and weighted positives, each [B]."""
        if not len(self.positive.unit):
            return np.full(weight.shape[1], np.nan), np.zeros(weight.shape[1])
        hits, false, negatives = self._counts(weight)
        kept = (false <= (1 - specificity) * negatives + _SLACK).sum(axis=0)
        found = np.concatenate([np.zeros((1, weight.shape[1])), hits])
        return _where_both(found[kept, np.arange(len(kept))], hits[-1], negatives)


def ranked(p: Predictions, column: int, unit: Indices) -> list[Ranked]:
    """Sorts one class's known rows, part by part.

    Args:
        p: predictions.
        column: the class.
        unit: [N], index of each row's unit.

    Raises:
        ValueError: a score is NaN.
    """
    score, found = p.rank_score[:, column], []
    known = ~np.isnan(p.target[:, column])
    if np.isnan(score[known]).any():
        raise ValueError("scores hold NaN; such a trial must be told as failed, not ranked")
    for part in np.unique(p.part):
        rows = np.flatnonzero(known & (p.part == part))
        rows = rows[np.argsort(-score[rows], kind="stable")]
        positive = p.target[rows, column] == 1
        # Ties move together: each positive is read at the end of its run of equal scores.
        ends = np.searchsorted(-score[rows], -score[rows[positive]], side="right")
        places, last = np.unique(ends, return_counts=True)
        every = np.append(places, len(rows))
        steps = Steps(unit[rows[positive]], np.cumsum(last))
        found.append(Ranked(steps, Steps(unit[rows], every)))
    return found


def _where_both(total: Floats, positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """Total over positives, NaN where a side is missing; and the positives."""
    both = (positives > 0) & (negatives > _SLACK)
    return np.divide(total, positives, out=np.full_like(total, np.nan), where=both), positives


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
    return _macro(average_precision_by_class(p))


def average_precision_by_class(p: Predictions) -> dict[str, float | None]:
    """Average precision of each class: precision times the step in recall, summed.

    Not interpolated. None where a class has only one label: positives alone would give 1.
    """
    return _by_ranking(p, Ranked.average_precision)


def tpr_at_specificity(p: Predictions, specificity: float = SPECIFICITY) -> float | None:
    """Macro sensitivity where the ROC curve reaches the specificity."""
    return _macro(tpr_at_specificity_by_class(p, specificity))


def tpr_at_specificity_by_class(
    p: Predictions, specificity: float = SPECIFICITY
) -> dict[str, float | None]:
    """Highest sensitivity of each class among thresholds that keep the specificity.

    A point of the ROC curve of these rows, not interpolated: it describes a ranking. The share
    of findings that a frozen threshold finds is `sensitivity`. With several parts each model has
    its own threshold. None where a class has only one label.
    """
    if not 0 <= specificity <= 1:
        raise ValueError(f"specificity {specificity} is not in [0, 1]")
    return _by_ranking(p, lambda r, w: r.tpr_at_specificity(w, specificity))


def brier(p: Predictions) -> float | None:
    """Macro Brier score: mean squared error of the probability, one class against the rest."""
    return _mean(brier_rows(p))


def log_loss(p: Predictions) -> float | None:
    """Mean negative log-likelihood: of the true class for multiclass, else macro over classes."""
    return _mean(log_loss_rows(p))


def accuracy(p: Predictions) -> float | None:
    """Share of right decisions: likeliest class for multiclass, else probability >= .5."""
    return _mean(accuracy_rows(p))


def brier_rows(p: Predictions) -> Floats:
    """Squared error of each probability [N, C]; NaN where the target is unknown."""
    return (p.probability - p.target) ** 2


def log_loss_rows(p: Predictions) -> Floats:
    """Negative log-likelihood: [N, 1] for multiclass, else [N, C]; NaN where unknown."""
    q, y = p.probability, p.target
    if p.kind == "multiclass":
        return -np.log(np.maximum((q * y).sum(axis=1, keepdims=True), _TINY))  # type: ignore[no-any-return]
    loss = -np.log(np.maximum(np.where(y == 1, q, 1 - q), _TINY))
    return np.where(np.isnan(y), np.nan, loss)


def accuracy_rows(p: Predictions) -> Floats:
    """1 for a right decision, else 0: [N, 1] for multiclass, else [N, C]; NaN where unknown."""
    unknown = np.isnan(p.target)
    if p.kind == "multiclass":
        right = p.score.argmax(axis=1) == np.nan_to_num(p.target).argmax(axis=1)
        return np.where(unknown.any(axis=1), np.nan, right)[:, None]
    right = (p.probability >= 0.5) == (p.target == 1)
    return np.where(unknown, np.nan, right)


def fit_threshold(p: Predictions, sensitivity: float = 0.90) -> tuple[float | None, ...]:
    """One operating point a class: the highest probability that still reaches the sensitivity.

    Fit it on ``search`` and freeze it: fitted on the split it judges, it flatters (TRAPS A5).

    Args:
        p: predictions of one model on the split that may be fitted on.
        sensitivity: share of positive rows that must score at or above the threshold, in (0, 1].

    Returns:
        A probability for each class; None for a class without positives.

    Raises:
        ValueError: scores of several models, which have no threshold in common.
    """
    if len(np.unique(p.part)) > 1:
        raise ValueError("a threshold belongs to one model: take operating_points of folds")
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity {sensitivity} is not in (0, 1]")
    found: list[float | None] = []
    for c in range(len(p.classes)):
        positive = np.sort(p.probability[p.target[:, c] == 1, c])[::-1]
        needed = math.ceil(sensitivity * len(positive) - _SLACK)
        found.append(float(positive[needed - 1]) if len(positive) else None)
    return tuple(found)


def operating_points(p: Predictions, sensitivity: float = 0.90) -> Points:
    """`fit_threshold`, or of several models (folds) part -> the thresholds of each.

    Decisions may be counted together over folds, scores not: each model calls at its own point.
    """
    parts = np.unique(p.part)
    if len(parts) < 2:
        return fit_threshold(p, sensitivity)
    return {int(k): fit_threshold(p.take(p.part == k), sensitivity) for k in parts}


def f1(p: Predictions, thresholds: Points) -> dict[str, float | None]:
    """F1 of each class at its frozen threshold: 2 TP / (2 TP + FP + FN).

    None without a threshold, or where a class has only one label: of positives alone, calling
    everything would be perfect.
    """
    made, found = decisions(p, thresholds), dict[str, float | None]()
    for c, name in enumerate(p.classes):
        known = ~np.isnan(made[:, c])
        called, y = made[known, c], p.target[known, c]
        right = float((called * y).sum())
        both = known.any() and 0 < y.sum() < len(y)
        found[name] = 2 * right / float(called.sum() + y.sum()) if both else None
    return found


def sensitivity(p: Predictions, thresholds: Points) -> dict[str, float | None]:
    """Share of positive rows at or above each class's frozen threshold."""
    return _share(p, thresholds, 1)


def specificity(p: Predictions, thresholds: Points) -> dict[str, float | None]:
    """Share of negative rows below each class's frozen threshold."""
    return _share(p, thresholds, 0)


def decisions(p: Predictions, thresholds: Points) -> Floats:
    """0/1 decisions [N, C] at the frozen thresholds; NaN where target or threshold is."""
    if isinstance(thresholds, Mapping):  # each row at the threshold of the model that scored it
        limits = np.full(p.target.shape, np.nan)
        for part, own in thresholds.items():
            limits[p.part == part] = _numbers(own)
    else:
        limits = _numbers(thresholds)
    made = (p.probability >= limits).astype(np.float64)
    return np.where(np.isnan(p.target) | np.isnan(limits), np.nan, made)


def _numbers(thresholds: Sequence[float | None]) -> Floats:
    return np.array([np.nan if t is None else t for t in thresholds], dtype=np.float64)


_TINY = np.finfo(np.float64).tiny
_SLACK = 1e-9  # keeps 0.9 * 10 = 9.000000000000002 from asking for a tenth


def _macro(by_class: dict[str, float | None]) -> float | None:
    values = [v for v in by_class.values() if v is not None]
    return float(np.mean(values)) if values else None


def _mean(rows: Floats) -> float | None:
    """Mean over the columns of their means over known rows."""
    known = ~np.isnan(rows)
    means = [rows[known[:, c], c].mean() for c in range(rows.shape[1]) if known[:, c].any()]
    return float(np.mean(means)) if means else None


def _by_ranking(
    p: Predictions, value: Callable[[Ranked, Floats], tuple[Floats, Floats]]
) -> dict[str, float | None]:
    """A metric of the ranking, parts averaged by their positives; None where undefined."""
    found: dict[str, float | None] = {}
    one = np.ones((len(p.patient), 1))
    for c, name in enumerate(p.classes):
        values = [value(r, one) for r in ranked(p, c, np.arange(len(p.patient)))]
        kept = [(float(v[0]), float(n[0])) for v, n in values if np.isfinite(v[0])]
        total = sum(n for _, n in kept)
        found[name] = sum(v * n for v, n in kept) / total if total else None
    return found


def _share(p: Predictions, thresholds: Points, label: int) -> dict[str, float | None]:
    """Share of the rows with a label that are also called so."""
    made, found = decisions(p, thresholds), dict[str, float | None]()
    for c, name in enumerate(p.classes):
        rows = (p.target[:, c] == label) & ~np.isnan(made[:, c])
        found[name] = float((made[rows, c] == label).mean()) if rows.any() else None
    return found
