"""Simultaneous intervals: many groups or labels at once, of which all hold together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.fairness import Counted
from autopeft.metrics.groups import patient_index
from autopeft.metrics.intervals import DEFINED, Interval, metric_enough
from autopeft.metrics.resampling import (
    MetricName,
    check_same_rows,
    difference,
    patient_weights,
    prepared,
)


def bands(
    p: Predictions | Sequence[Predictions],
    metrics: Sequence[str],
    baseline: Predictions | Sequence[Predictions] | None = None,
    n: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
    counted: Counted | None = None,
    labels: Counted | None = None,
) -> dict[str, Interval | None]:
    """Max-t bands: with probability 1 - alpha all true values lie inside their intervals.

    Every metric is computed on the same resampled patients. Each gets its bootstrap standard
    error, and all share one factor: the 1 - alpha quantile over resamples of the largest
    abs(resampled - value) / standard error (Romano & Wolf 2005; Montiel Olea & Plagborg-Moller
    2017). Correlated statistics cost less than Bonferroni asks for.

    Args:
        p: predictions of one model, or a list of repeats on the same rows (their mean).
        metrics: names as `autopeft.metrics.intervals.bootstrap` knows them, e.g.
            ``("auroc:sex=F", "auroc:sex=M")``.
        baseline: if given, bands of the paired differences.
        n: resamples.
        seed: seed of the draws.
        alpha: 1 - joint coverage; ``floor`` is a joint one-sided bound.
        counted: as in `bootstrap`.
        labels: as in `bootstrap`.

    Returns:
        One for each metric; None where it is undefined on the data or in more than half of the
        resamples: such a metric does not widen the others.

    Raises:
        ValueError: an unknown metric, or other rows in the baseline.
    """
    a, b = _listed(p), [] if baseline is None else _listed(baseline)
    check_same_rows([*a, *b])
    found: dict[str, Interval | None] = dict.fromkeys(metrics)
    unit, patients = patient_index(a[0])
    if patients < 2:
        return found
    sides = [
        tuple([prepared(q, unit, cast(MetricName, m), counted, labels) for q in s] for s in (a, b))
        for m in metrics
    ]
    blocks = [np.ones((patients, 1)), *patient_weights(patients, len(unit), n, seed)]
    every = [np.stack([difference(x, y, w) for x, y in sides], axis=1) for w in blocks]
    value, drawn = every[0][0], np.concatenate(every[1:])
    defined = np.isfinite(drawn)
    kept = np.flatnonzero(np.isfinite(value) & (defined.mean(axis=0) >= DEFINED)).tolist()
    if kept:
        bounds = np.stack([value[kept], *joint(value[kept], drawn[:, kept], alpha)]).T.tolist()
        for m, (at, low, high, floor, se) in zip(kept, bounds, strict=True):
            dropped, enough = int((~defined[:, m]).sum()), metric_enough(a[0], metrics[m], counted)
            found[metrics[m]] = Interval(at, low, high, floor, se, patients, dropped, enough)
    return found


def joint(value: Floats, drawn: Floats, alpha: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Joint lower and upper bounds, joint one-sided lower bounds, standard errors: each [K].

    Args:
        value: [K], on the data.
        drawn: [B, K], resampled; NaN (undefined) says nothing about its column.
        alpha: 1 - joint coverage.
    """
    se = np.nanstd(drawn, axis=0, ddof=1)
    t = np.divide(drawn - value, se, out=np.zeros_like(drawn), where=se > 0)
    t = np.where(np.isfinite(t), t, 0.0)
    wide = np.quantile(np.abs(t).max(axis=1), 1 - alpha)
    one_sided = np.quantile(t.max(axis=1), 1 - alpha)
    return value - wide * se, value + wide * se, value - one_sided * se, se


def _listed(p: Predictions | Sequence[Predictions]) -> list[Predictions]:
    return [p] if isinstance(p, Predictions) else list(p)
