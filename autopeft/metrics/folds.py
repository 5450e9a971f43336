"""The interval of a value that was measured over folds, each scored by a model of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.fairness import Counted
from autopeft.metrics.groups import patient_index
from autopeft.metrics.intervals import Interval, metric_enough, percentile_interval
from autopeft.metrics.pairs import Indices, defined
from autopeft.metrics.resampling import MetricName, Weighted, patient_weights, prepared


def fold_interval(
    p: Predictions,
    metric: MetricName = "auroc",
    n: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
    counted: Counted | None = None,
    labels: Counted | None = None,
) -> Interval | None:
    """Interval of a metric over folds: what training on other patients would give on others.

    The patients are resampled inside their folds, which says how the value varies for these
    models. That the models would be others too is added by the corrected resampled variance of
    Nadeau & Bengio (Machine Learning 52, 2003): the training sets overlap, so the variance S^2 of
    the folds' own values says too little divided by their number J; with n_2 patients held out of
    n_1 + n_2 they add n_2 / n_1 of it.

        variance = patient variance inside folds + n_2 / n_1 * S^2

    The bounds are those of t; the degrees of freedom are Satterthwaite's (1946) for a sum of two
    estimates, of which one has those of the patients and the other J - 1.

    Args:
        p: predictions; ``part`` is the fold.
        metric: as in `autopeft.metrics.intervals.bootstrap`, and so are the other arguments.
        n: resamples.
        seed: seed of the draws.
        alpha: 1 - coverage.
        counted: attribute -> groups that count.
        labels: attribute -> labels that count.

    Returns:
        None where the metric is undefined, or has a value of its own in fewer than two folds.
    """
    from scipy.special import stdtrit

    unit, patients = patient_index(p)
    fold = fold_of_patient(p, unit)
    statistic = prepared(p, unit, metric, counted, labels)
    value = defined(statistic.values(np.ones((patients, 1)))[0])
    if value is None or patients < 2:
        return None
    drawn = [statistic.values(w) for w in patient_weights(patients, len(unit), n, seed, fold)]
    enough = metric_enough(p, metric, counted)
    inside = percentile_interval(value, np.concatenate(drawn), n, alpha, patients, enough)
    sizes = np.bincount(fold)
    each = _by_fold(p, metric, counted, labels, statistic, fold, unit)
    known: Floats = each[np.isfinite(each)]
    if inside is None or len(known) < 2:
        return None
    parts = inside.se**2, float(np.mean(sizes / (patients - sizes)) * known.var(ddof=1))
    se = float(np.sqrt(sum(parts)))
    loose = parts[0] ** 2 / (patients - 1) + parts[1] ** 2 / (len(known) - 1)
    degrees = sum(parts) ** 2 / loose if loose else np.inf
    wide, one_sided = (float(stdtrit(degrees, 1 - a)) for a in (alpha / 2, alpha))
    low, high, floor = value - wide * se, value + wide * se, value - one_sided * se
    return replace(inside, low=low, high=high, floor=floor, se=se)


def _by_fold(
    p: Predictions,
    metric: MetricName,
    counted: Counted | None,
    labels: Counted | None,
    statistic: Weighted,
    fold: Indices,
    unit: Indices,
) -> Floats:
    """The metric of each fold alone, over the classes that the fold can score."""
    found = statistic.values((fold[:, None] == np.arange(fold.max() + 1)).astype(np.float64))
    for k in np.flatnonzero(~np.isfinite(found)):
        own = p.take(fold[unit] == k)
        index, many = patient_index(own)
        found[k] = prepared(own, index, metric, counted, labels).values(np.ones((many, 1)))[0]
    return found


def fold_of_patient(p: Predictions, unit: Indices) -> Indices:
    """The fold of each patient [U], numbered from 0; a patient is in one."""
    found = np.zeros(int(unit.max()) + 1, np.intp)
    found[unit] = np.unique(p.part, return_inverse=True)[1]
    return found
