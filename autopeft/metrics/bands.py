"""Simultaneous intervals: many groups or labels at once, of which all hold together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

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

# Between 0 and 1, and the surer the nearer to an end: their bands are made on the logit scale.
_SHARES = ("auroc", "average_precision", "tpr_at_specificity", "accuracy", "worst_group_auroc")
_END = 1e-3  # as near to 0 or 1 as a logit is taken


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
    2017). Correlated statistics cost less than Bonferroni asks for. An AUROC or another share
    that happens to be high has too small a standard error, so that without a baseline all this
    is done with log(v / (1 - v)) and the bounds are taken back.

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
        shares = [baseline is None and metrics[m].partition(":")[0] in _SHARES for m in kept]
        found_bounds = joint(value[kept], drawn[:, kept], alpha, np.array(shares))
        bounds = np.stack([value[kept], *found_bounds]).T.tolist()
        for m, (at, low, high, floor, se) in zip(kept, bounds, strict=True):
            dropped, enough = int((~defined[:, m]).sum()), metric_enough(a[0], metrics[m], counted)
            found[metrics[m]] = Interval(at, low, high, floor, se, patients, dropped, enough)
    return found


def joint(
    value: Floats, drawn: Floats, alpha: float, shares: npt.NDArray[np.bool_] | bool = False
) -> tuple[Floats, Floats, Floats, Floats]:
    """Joint lower and upper bounds, joint one-sided lower bounds, standard errors: each [K].

    Args:
        value: [K], on the data.
        drawn: [B, K], resampled; NaN (undefined) says nothing about its column.
        alpha: 1 - joint coverage.
        shares: [K], which of them are bounded on the logit scale.
    """
    at, moved = (np.where(shares, _logit(v), v) for v in (value, drawn))
    error = np.nanstd(moved, axis=0, ddof=1)
    t = np.divide(moved - at, error, out=np.zeros_like(moved), where=error > 0)
    t = np.where(np.isfinite(t), t, 0.0)
    wide = np.quantile(np.abs(t).max(axis=1), 1 - alpha)
    one_sided = np.quantile(t.max(axis=1), 1 - alpha)
    bounds = [at - wide * error, at + wide * error, at - one_sided * error]
    low, high, floor = (np.where(shares, 1 / (1 + np.exp(-b)), b) for b in bounds)
    se = np.nanstd(drawn, axis=0, ddof=1)
    # A value beyond the last logit that is taken belongs to its own band.
    return np.minimum(low, value), np.maximum(high, value), np.minimum(floor, value), se


def _logit(v: Floats) -> Floats:
    inside = np.clip(v, _END, 1 - _END)
    return np.log(inside / (1 - inside))


def _listed(p: Predictions | Sequence[Predictions]) -> list[Predictions]:
    return [p] if isinstance(p, Predictions) else list(p)
