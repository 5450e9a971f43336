"""Intervals over patients: bootstrap, paired differences, recipes over seeds, and the verdict.

The unit is the patient: a resample draws patients with replacement and takes all their rows
(TRAPS A7). Everything that is compared is computed on the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.classification import auroc_by_class, auroc_statistic
from autopeft.metrics.delong import components
from autopeft.metrics.fairness import Counted
from autopeft.metrics.groups import LEAST, class_counts, patient_index
from autopeft.metrics.pairs import defined
from autopeft.metrics.resampling import (
    MetricName,
    check_same_rows,
    difference,
    patient_weights,
    prepared,
)

Verdict = Literal["better", "not worse", "worse", "cannot tell"]

# Higher is better, and paired intervals are known: what a verdict can be about.
COMPARABLE = ("auroc", "worst_group_auroc", "average_precision", "accuracy")

# Averaged over the classes that have both labels.
_RANKINGS = (
    "auroc",
    "average_precision",
    "tpr_at_specificity",
    "calibration_intercept",
    "calibration_slope",
)

# Fewer defined resamples than this share and the interval would describe a selection of them.
DEFINED = 0.5


@dataclass(frozen=True)
class Interval:
    """A value with its two-sided percentile (or t) interval.

    Attributes:
        value: the metric, or difference, on the data itself.
        low: lower bound, alpha / 2.
        high: upper bound, 1 - alpha / 2.
        floor: one-sided lower bound at alpha (non-inferiority, PROTOCOL 4).
        se: standard error.
        patients: how many patients carry it.
        dropped: resamples left out because a class or group was missing in them.
        enough: whether every class that the metric averages has 10 positive and 10 negative
            patients. A percentile interval of fewer is too narrow (of 3 positives that rank
            first it is a point), so that without it no verdict is given.
    """

    value: float
    low: float
    high: float
    floor: float
    se: float
    patients: int
    dropped: int = 0
    enough: bool = True

    def to_dict(self) -> dict[str, float]:
        """What ``result.json`` holds: the value, its bounds, and how far to trust them."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "dropped": self.dropped,
            "enough": self.enough,
        }


def bootstrap(
    p: Predictions | Sequence[Predictions],
    metric: MetricName = "auroc",
    n: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
    counted: Counted | None = None,
    labels: Counted | None = None,
) -> Interval | None:
    """Percentile interval over resampled patients (Efron & Tibshirani 1993, chapter 13).

    Args:
        p: predictions of one model, or a list of repeats on the same rows (their mean).
        metric: one of `COMPARABLE`, ``brier``, ``log_loss``, ``tpr_at_specificity``,
            ``calibration_slope``, ``calibration_intercept``; any of these of one class, as
            ``auroc:NAME``; AUROC of one group (``auroc:sex=F``; of the others take the group's
            rows); or any function of predictions (slow: rows are copied).
        n: resamples.
        seed: seed of the draws.
        alpha: 1 - coverage.
        counted: attribute -> groups that count, for metrics of groups.
        labels: attribute -> labels that count, fixed before trial 1; None = all.

    Returns:
        None where the metric is undefined, with fewer than two patients, or when more than half
        of the resamples are undefined. Undefined resamples are dropped and counted. None also for
        ``auroc_gap`` of one model: a resampled gap is biased upwards, so that its percentile
        interval cannot contain 0 and may miss the value itself (PROTOCOL 3). Pair it instead.
    """
    repeats = [p] if isinstance(p, Predictions) else list(p)
    return _interval(repeats, [], metric, n, seed, alpha, counted, labels)


def paired(
    a: Predictions | Sequence[Predictions],
    b: Predictions | Sequence[Predictions],
    metric: MetricName = "auroc",
    n: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
    counted: Counted | None = None,
    labels: Counted | None = None,
) -> Interval | None:
    """Interval of metric(a) - metric(b) on the same rows, with the same draws for both.

    Args:
        a: predictions, or a list of repeats (their mean is compared).
        b: the same rows scored by the other model; the number of repeats may differ.
        metric: as in `bootstrap`, or ``auroc_gap`` (of which lower is better).
        n: resamples.
        seed: seed of the draws.
        alpha: 1 - coverage.
        counted: as in `bootstrap`.
        labels: as in `bootstrap`.

    Returns:
        As `bootstrap`. Of a model with itself it is exactly 0.

    Raises:
        ValueError: the predictions are not on the same rows.
    """
    first = [a] if isinstance(a, Predictions) else list(a)
    second = [b] if isinstance(b, Predictions) else list(b)
    return _interval(first, second, metric, n, seed, alpha, counted, labels)


def recipe_interval(
    repeats: Sequence[Predictions],
    baseline: Sequence[Predictions] | None = None,
    metric: MetricName = "auroc",
    n: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
    counted: Counted | None = None,
    labels: Counted | None = None,
) -> Interval | None:
    """Interval for the recipe: what another training with it would do on other patients.

    Variance = patient variance of the mean over repeats + seed variance / S; t with S - 1 degrees
    of freedom (PROTOCOL 2). Repeat s of the recipe is paired with repeat s of the baseline, for
    both used the same seed.

    Args:
        repeats: S repeats on the same rows.
        baseline: S repeats of the baseline; None = the recipe's own value.
        metric: as in `bootstrap`, and so are the other arguments.
        n: resamples.
        seed: seed of the draws.
        alpha: 1 - coverage.
        counted: as in `bootstrap`.
        labels: as in `bootstrap`.

    Returns:
        None for fewer than three repeats, and as `bootstrap`.

    Raises:
        ValueError: another number of repeats for the baseline, or other rows.
    """
    from scipy.special import stdtrit

    others = list(baseline or [])
    if others and len(others) != len(repeats):
        raise ValueError(f"{len(repeats)} repeats cannot be paired with {len(others)}")
    if len(repeats) < 3:
        return None
    patient = _interval(list(repeats), others, metric, n, seed, alpha, counted, labels)
    if patient is None:
        return None
    points = _points(list(repeats), metric, counted, labels)
    if others:
        points = points - _points(others, metric, counted, labels)
    s = len(points)
    se = float(np.sqrt(patient.se**2 + points.var(ddof=1) / s))
    wide, one_sided = (float(stdtrit(s - 1, 1 - share)) for share in (alpha / 2, alpha))
    value = patient.value
    low, high = (-np.inf, np.inf) if others else _bounds(metric)
    return Interval(
        value,
        max(low, value - wide * se),
        min(high, value + wide * se),
        max(low, value - one_sided * se),
        se,
        patient.patients,
        patient.dropped,
        patient.enough,
    )


def _bounds(metric: MetricName) -> tuple[float, float]:
    """Between which values a metric lies: t of few seeds reaches beyond what an AUROC can be."""
    area = isinstance(metric, str) and "auroc" in metric and "gap" not in metric
    return (0.0, 1.0) if area else (-np.inf, np.inf)


def delong_interval(
    p: Predictions,
    baseline: Predictions | None = None,
    alpha: float = 0.05,
    classes: Sequence[str] | None = None,
) -> Interval | None:
    """Interval of the macro AUROC without resampling, a cross-check of `bootstrap` and `paired`.

    DeLong's components summed by patient (Obuchowski 1997), value +- z standard errors. It may
    leave [0, 1], and it is too narrow near 1, where the bootstrap's is skewed.

    Args:
        p: predictions.
        baseline: if given, the interval of the paired difference on the same rows.
        alpha: 1 - coverage.
        classes: the classes to average; None = all in which the AUROC is defined.

    Returns:
        None where the AUROC is undefined, or one patient carries all positives or negatives.

    Raises:
        ValueError: the baseline is on other rows.
    """
    from scipy.special import ndtri

    sides = [p] if baseline is None else [p, baseline]
    check_same_rows(sides)
    unit, patients = patient_index(p)
    cells = [c for q in sides for c in auroc_statistic(q, unit, classes).cells]
    if not cells:
        return None
    k = len(cells) // len(sides)
    sign = np.repeat([1.0, -1.0][: len(sides)], k) / k
    parts = components(cells, patients)
    value = defined(float(sign @ parts.value))
    variance = float(sign @ parts.covariance() @ sign)
    if value is None or not np.isfinite(variance):
        return None
    se = float(np.sqrt(max(variance, 0.0)))
    wide, one_sided = (float(ndtri(1 - share)) for share in (alpha / 2, alpha))
    enough = metric_enough(p, "auroc", None)
    bounds = value - wide * se, value + wide * se, value - one_sided * se
    return Interval(value, *bounds, se, patients, 0, enough)


def verdict(interval: Interval | None, margin: float) -> Verdict:
    """What the paired interval of winner minus baseline may be called (PROTOCOL 6).

    In this order: ``better`` when low > 0; ``not worse`` when low > -margin (also when the whole
    interval lies between -margin and 0: worse, but by less than the margin that was declared to
    matter); ``worse`` when high < 0; else ``cannot tell``. No interval, or one from too few
    patients (`Interval.enough`): ``cannot tell``.

    Args:
        interval: higher = the winner is better.
        margin: the declared non-inferiority margin, >= 0.
    """
    if interval is None or not interval.enough:
        return "cannot tell"
    if interval.low > 0:
        return "better"
    if interval.low > -margin:
        return "not worse"
    return "worse" if interval.high < 0 else "cannot tell"


def non_inferior(interval: Interval | None, margin: float) -> bool:
    """Whether the one-sided lower bound of the paired difference lies above -margin (PROTOCOL 4).

    False also when there is no interval, or one from too few patients (`Interval.enough`): then
    accuracy is "not shown to be kept".
    """
    return interval is not None and interval.enough and interval.floor > -margin


def levelled_down(groups: Mapping[str, Interval | None], margin: float) -> tuple[str, ...]:
    """Groups that certainly lost more than the margin against the baseline (PROTOCOL 4).

    Args:
        groups: group -> paired interval of winner minus baseline.
        margin: the declared margin.
    """
    return tuple(g for g, i in groups.items() if i is not None and i.high < -margin)


def _interval(
    a: list[Predictions],
    b: list[Predictions],
    metric: MetricName,
    n: int,
    seed: int,
    alpha: float,
    counted: Counted | None,
    labels: Counted | None,
) -> Interval | None:
    if metric == "auroc_gap" and not b:
        return None
    check_same_rows([*a, *b])
    unit, patients = patient_index(a[0])
    first, second = ([prepared(p, unit, metric, counted, labels) for p in side] for side in (a, b))
    value = defined(difference(first, second, np.ones((patients, 1)))[0])
    if value is None or patients < 2:
        return None
    drawn = [difference(first, second, w) for w in patient_weights(patients, len(unit), n, seed)]
    enough = metric_enough(a[0], metric, counted)
    return percentile_interval(value, np.concatenate(drawn), n, alpha, patients, enough)


def percentile_interval(
    value: float, drawn: Floats, n: int, alpha: float, patients: int, enough: bool
) -> Interval | None:
    """From [n] resampled values to an interval; None when fewer than half of them are defined."""
    kept = drawn[np.isfinite(drawn)]
    if len(kept) < max(2, DEFINED * n):
        return None
    low, high, floor = np.quantile(kept, [alpha / 2, 1 - alpha / 2, alpha]).tolist()
    se = float(kept.std(ddof=1))
    return Interval(value, low, high, floor, se, patients, n - len(kept), enough)


def sides_enough(p: Predictions, columns: Sequence[int], sides: tuple[bool, bool]) -> bool:
    """Whether these classes have `LEAST` positive, and negative, patients, where asked for."""
    counts = class_counts(p)
    return all((counts[s][list(columns)] >= LEAST).all() for s in (0, 1) if sides[s])


def metric_enough(p: Predictions, metric: MetricName, counted: Counted | None) -> bool:
    """Whether all classes that the metric averages have `LEAST` patients on both sides."""
    kind, _, name = metric.partition(":") if isinstance(metric, str) else ("", "", "")
    groups = {group for names in (counted or {}).values() for group in names}
    if kind in ("worst_group_auroc", "auroc_gap") or (name in groups and name not in p.classes):
        return True  # groups are scored from as many patients on, else there is no interval
    positive, negative = class_counts(p)
    found = (positive >= LEAST) & (negative >= LEAST)
    if kind in ("accuracy", "log_loss") and p.kind == "multiclass":
        return bool(found.any())  # a share of rows: no class is averaged
    if name:
        used = np.array([c == name for c in p.classes])
    elif kind in _RANKINGS:
        used = np.array([value is not None for value in auroc_by_class(p).values()])
    else:
        used = positive + negative > 0
    return bool(found[used].all())


def _points(
    repeats: list[Predictions],
    metric: MetricName,
    counted: Counted | None,
    labels: Counted | None,
) -> Floats:
    """The metric of each repeat on all patients, [S]."""
    unit, patients = patient_index(repeats[0])
    one = np.ones((patients, 1))
    values = [prepared(p, unit, metric, counted, labels).values(one)[0] for p in repeats]
    return np.array(values)
