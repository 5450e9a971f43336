"""Whether probabilities mean what they say: debiased ECE, intercept and slope, temperature.

Of several models (parts) each is judged by itself and the mean is told, weighted by rows: of two
that are wrong in opposite ways the pooled probabilities would look right. A row with a NaN target
is ignored; what cannot be estimated is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.pairs import Indices, defined

Bools = npt.NDArray[np.bool_]

LEAST_PATIENTS = 200  # fewer and what noise alone gives is as large as what matters (PROTOCOL 3)
_BINS = 10
_COLDEST, _HOTTEST = 0.01, 100.0  # bounds of a temperature


def ece(p: Predictions) -> float | None:
    """Macro debiased calibration error, the mean over the classes in which it is defined."""
    values = [v for v in ece_by_class(p).values() if v is not None]
    return float(np.mean(values)) if values else None


def ece_by_class(p: Predictions, bins: int = _BINS) -> dict[str, float | None]:
    """Debiased root-mean-square calibration error of each class, one against the rest.

    Bins of equal size (ties stay together); of each the squared mean of label minus probability,
    less the variance of that mean, which is what noise alone adds; averaged over rows, floored at
    0, square root. The debiased estimator of Kumar, Liang & Ma (2019), on bins of equal size as
    Roelofs et al. (2022) advise, with the variance summed by patient, whose images are not
    independent. None with fewer than 200 patients or with one label only. Over several models
    (parts) the squares are averaged, and each of them needs its 200 patients.

    Args:
        p: predictions.
        bins: number of bins.
    """
    q = p.probability
    found: dict[str, float | None] = {}
    for c, name in enumerate(p.classes):
        squares: list[float] = []
        each = _parts(p, c)
        for rows in each:
            y = p.target[rows, c].astype(np.float64)
            ids, patient = np.unique(p.patient[rows], return_inverse=True)
            if len(ids) >= LEAST_PATIENTS and 0 < y.sum() < len(y):
                squares.append(_debiased(q[rows, c], y, patient, bins))
        enough = len(each) > 0 and len(squares) == len(each)
        mean = _by_rows(squares, [len(rows) for rows in each]) if enough else 0.0
        found[name] = float(np.sqrt(max(mean, 0.0))) if enough else None
    return found


def calibration_by_class(p: Predictions) -> dict[str, tuple[float | None, float | None]]:
    """Calibration intercept and slope of each class (Van Calster et al. 2019).

    Intercept: a of logit P(y) = a + logit(p), 0 when the mean probability is right, positive when
    findings are more frequent than said. Slope: b of logit P(y) = a' + b logit(p), 1 when right,
    below 1 when the model is too sure. Each is None where it does not exist: one label only, or,
    for the slope, scores that separate the labels or are all equal.
    """
    found = {}
    for c, name in enumerate(p.classes):
        fits = _fits(p, c)
        found[name] = (_over_parts(fits, 0, lambda a: a), _over_parts(fits, 1, lambda b: b))
    return found


def slope_error(p: Predictions) -> float | None:
    """Mean over classes of abs(calibration slope - 1), of each model (part) by itself."""
    every = [_over_parts(_fits(p, c), 1, lambda b: abs(b - 1)) for c in range(len(p.classes))]
    return _mean(every)


def intercept_error(p: Predictions) -> float | None:
    """Mean over classes of abs(calibration intercept), of each model (part) by itself."""
    return _mean([_over_parts(_fits(p, c), 0, abs) for c in range(len(p.classes))])


def fit_temperature(p: Predictions) -> tuple[float | None, ...]:
    """Temperature of each class that makes the log-loss of score / T least (Guo et al. 2017).

    Fit it on ``search`` and freeze it. A temperature keeps the order of the scores and their
    sign: it mends scores that are too sure or too timid, not a shifted prevalence (after a
    weighted loss look at the intercept too).

    Returns:
        One for each class; for multiclass the one of the softmax, repeated. None, to be read as
        "leave the scores alone", where none is best: one label only, scores that separate the
        labels, or scores that rank no better than chance.

    Raises:
        ValueError: scores of several models, which have no temperature in common.
    """
    if len(np.unique(p.part)) > 1:
        raise ValueError("a temperature belongs to one model, not to several folds")
    target, z = p.target.astype(np.float64), p.score.astype(np.float64)
    if p.kind == "multiclass":
        known = ~np.isnan(target).any(axis=1)
        y, z = target[known], z[known]
        z = z - z.max(axis=1, keepdims=True, initial=-np.inf)
        return (_temperature(lambda a: _softmax_slope(a, z, y)),) * len(p.classes)
    found = []
    for c in range(len(p.classes)):
        known = ~np.isnan(target[:, c])
        y_c, z_c = target[known, c], z[known, c]
        one_label = not 0 < y_c.sum() < len(y_c)
        found.append(
            None if one_label else _temperature(lambda a, y=y_c, z=z_c: _sigmoid_slope(a, z, y))  # type: ignore[misc]
        )
    return tuple(found)


def apply_temperature(p: Predictions, temperatures: Sequence[float | None]) -> Predictions:
    """The predictions with each class's scores divided by its temperature (None: left alone).

    In float64, so that no two scores become equal.
    """
    divisor = np.array([1.0 if t is None else t for t in temperatures], dtype=np.float64)
    if len(divisor) != len(p.classes) or not (divisor > 0).all():
        raise ValueError(f"temperatures {tuple(temperatures)} for classes {p.classes}")
    return replace(p, score=p.score.astype(np.float64) / divisor)


def class_logit(p: Predictions, column: int) -> Floats:
    """Log-odds [N] of one class against the rest: the score, or from the softmax."""
    z = p.score.astype(np.float64)
    if p.kind != "multiclass":
        return z[:, column]
    rest = np.delete(z, column, axis=1)
    top = rest.max(axis=1)
    return z[:, column] - top - np.log(np.exp(rest - top[:, None]).sum(axis=1))  # type: ignore[no-any-return]


def intercepts(z: Floats, y: Floats, weight: Floats) -> Floats:
    """Calibration intercept (slope fixed at 1) under row weights.

    Args:
        z: [n], log-odds.
        y: [n], 1 or 0.
        weight: [n, B], non-negative.

    Returns:
        [B]; NaN where it does not exist (see `calibration_by_class`).
    """
    both = _both(z, y, weight)
    if not both.any():
        return np.full(weight.shape[1], np.nan)
    # Newton's method inside a bracket that always holds the root.
    wide = np.abs(z).max() + 50.0
    low, high = np.full(weight.shape[1], -wide), np.full(weight.shape[1], wide)
    a = np.zeros(weight.shape[1])
    positives = y @ weight
    for _ in range(100):
        q = _sigmoid(a + z[:, None])
        excess = positives - np.einsum("nb,nb->b", weight, q)  # falls as a grows
        low, high = np.where(excess > 0, a, low), np.where(excess > 0, high, a)
        curve = np.einsum("nb,nb->b", weight, q * (1 - q))
        step = np.divide(excess, curve, out=np.full_like(a, np.inf), where=curve > 0)
        inside = (a + step > low) & (a + step < high)
        step = np.where(inside, step, (low + high) / 2 - a)
        a = a + step
        if (np.abs(step[both]) < 1e-9).all():
            break
    return np.where(both, a, np.nan)


def slopes(z: Floats, y: Floats, weight: Floats) -> Floats:
    """Calibration slope (with a free intercept) under row weights; arguments as `intercepts`."""
    found = np.full(weight.shape[1], np.nan)
    exists = _both(z, y, weight)
    scale = z.std() if exists.any() else 0.0
    if not scale > 0:
        return found
    exists &= _overlap(z, y, weight)
    if not exists.any():
        return found
    x, w = (z - z.mean()) / scale, weight[:, exists]
    # From the fit to all resamples together, each needs only a few more steps.
    start = _newton(x, y, w.mean(axis=1, keepdims=True), np.zeros((2, 1)))
    a_b = _newton(x, y, w, np.repeat(start, w.shape[1], axis=1))
    found[exists] = a_b[1] / scale
    return found


def logistic_fit(z: Floats, y: Floats) -> tuple[float, float] | None:
    """Intercept and slope of logit P(y) = a + b z: logistic recalibration (Cox 1958; Platt 1999).

    Args:
        z: [n], log-odds.
        y: [n], 1 or 0.

    Returns:
        None where it does not exist: one label only, scores that separate the labels or are all
        equal.
    """
    one = np.ones((len(z), 1))
    scale = z.std() if len(z) else 0.0
    if not scale > 0 or not _both(z, y, one).all() or not _overlap(z, y, one).all():
        return None
    at = _newton((z - z.mean()) / scale, y, one, np.zeros((2, 1)))[:, 0]
    if not np.isfinite(at).all():
        return None
    slope = float(at[1] / scale)
    return float(at[0] - slope * z.mean()), slope


def _newton(x: Floats, y: Floats, w: Floats, start: Floats) -> Floats:
    """Intercept and slope [2, B] of logistic regressions; NaN where no maximum was found."""
    powers = np.stack([np.ones_like(x), x, x**2])
    at, length = start, np.full(w.shape[1], np.inf)
    for _ in range(200):
        q = _sigmoid(at[0] + at[1] * x[:, None])
        pull = w * q
        ga, gb = powers[:2] @ (w * y[:, None] - pull)
        haa, hab, hbb = powers @ (pull * (1 - q))
        det = haa * hbb - hab**2
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.stack([hbb * ga - hab * gb, haa * gb - hab * ga]) / det
        # Far from the maximum a full step overshoots; the likelihood is concave, so that short
        # steps in Newton's direction always arrive.
        length = np.hypot(*step)
        at = at + step / np.maximum(length, 1)
        if not (length > 1e-7).any():  # it converges quadratically: the next would be 1e-14
            break
    return np.where(length < 1e-6, at, np.nan)


def _both(z: Floats, y: Floats, weight: Floats) -> Bools:
    """Whether each resample holds both labels, of scores that are numbers."""
    positives = y @ weight
    both = (positives > 0) & (weight.sum(axis=0) - positives > 0)
    return both & bool(np.isfinite(z).all())  # type: ignore[no-any-return]


def _overlap(z: Floats, y: Floats, weight: Floats) -> Bools:
    """Whether in each resample some negative outranks some positive and the other way round."""
    drawn = weight > 0
    ends = []
    for label in (0, 1):
        rows, values = drawn[y == label], z[y == label][:, None]
        ends.append(np.where(rows, values, np.inf).min(axis=0))
        ends.append(np.where(rows, values, -np.inf).max(axis=0))
    lowest_neg, highest_neg, lowest_pos, highest_pos = ends
    return (highest_neg > lowest_pos) & (highest_pos > lowest_neg)  # type: ignore[no-any-return]


def _temperature(slope: Callable[[float], float]) -> float | None:
    """1 / a where the slope of the log-likelihood in a, which only falls, crosses 0."""
    from scipy.optimize import brentq

    low, high = np.log(1 / _HOTTEST), np.log(1 / _COLDEST)
    if not (slope(float(np.exp(low))) > 0 > slope(float(np.exp(high)))):
        return None
    return float(np.exp(-brentq(lambda at: slope(float(np.exp(at))), low, high, xtol=1e-12)))


def _sigmoid_slope(a: float, z: Floats, y: Floats) -> float:
    return float((z * (y - _sigmoid(a * z))).sum())


def _softmax_slope(a: float, z: Floats, y: Floats) -> float:
    e = np.exp(a * z)
    return float(((y - e / e.sum(axis=1, keepdims=True)) * z).sum())


def _sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(z, -700, 700)))


def _debiased(q: Floats, y: Floats, patient: Indices, bins: int) -> float:
    """Mean square of the calibration error; below 0 where noise alone would be larger."""
    ordered = np.sort(q)
    cuts = ordered[(np.arange(1, bins) * len(q)) // bins]
    which = np.searchsorted(np.unique(cuts), q, side="right")
    total = 0.0
    for b in np.unique(which):
        rows = which == b
        miss = y[rows] - q[rows]
        mean = miss.mean()
        by_patient = np.bincount(patient[rows], miss - mean)
        carriers = len(np.unique(patient[rows]))
        if carriers > 1:  # of one patient's bin nothing is known but noise
            noise = carriers / (carriers - 1) * (by_patient**2).sum() / rows.sum() ** 2
            total += rows.sum() * (mean**2 - noise)
    return float(total / len(q))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _parts(p: Predictions, column: int) -> list[Indices]:
    """Rows of each model that have a label of this class."""
    known = ~np.isnan(p.target[:, column])
    every = [np.flatnonzero(known & (p.part == part)) for part in np.unique(p.part)]
    return [rows for rows in every if len(rows)]


def _fits(p: Predictions, column: int) -> list[tuple[int, float, float]]:
    """Rows, intercept and slope of each model that has rows of both labels."""
    logit, found = class_logit(p, column), []
    for rows in _parts(p, column):
        z, y = logit[rows], p.target[rows, column].astype(np.float64)
        if 0 < y.sum() < len(y):
            one = np.ones((len(z), 1))
            found.append((len(z), float(intercepts(z, y, one)[0]), float(slopes(z, y, one)[0])))
    return found


def _over_parts(
    fits: Sequence[tuple[int, float, float]], which: int, value: Callable[[float], float]
) -> float | None:
    """Mean over the models, weighted by rows; None where one of them has no such fit."""
    if not fits:
        return None
    values = [value(fit[1 + which]) for fit in fits]
    return defined(_by_rows(values, [fit[0] for fit in fits]))


def _by_rows(values: Sequence[float], rows: Sequence[int]) -> float:
    share = np.array(rows) / sum(rows)  # of one model exactly 1
    return float((np.array(values) * share).sum())
