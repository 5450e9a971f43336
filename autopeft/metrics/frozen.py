"""Sensitivity, specificity and predictive value at a threshold that is given, not fitted.

Where the threshold itself is part of what is judged, `autopeft.metrics.operating` fits it again in
every resample. An adapter that is taken to another hospital brings one number with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.groups import patient_index
from autopeft.metrics.intervals import Interval, percentile_interval, sides_enough
from autopeft.metrics.resampling import patient_weights

RATES = ("sensitivity", "specificity", "ppv")
# Whether positive, and negative, patients are needed.
_NEEDED = {"sensitivity": (True, False), "specificity": (False, True), "ppv": (True, True)}


def frozen_rate(
    p: Predictions,
    column: int,
    threshold: float | None,
    rate: str,
    n: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Interval | None:
    """A rate at a frozen threshold, with an interval over resampled patients.

    Args:
        p: predictions.
        column: the class.
        threshold: a probability; at or above it a finding is called. None = there is none.
        rate: ``sensitivity``, ``specificity`` or ``ppv`` (the share of calls that are right).
        n: resamples.
        seed: of the draws.
        alpha: 1 - coverage.

    Returns:
        None without a threshold, without rows to count, for fewer than two patients, or where
        more than half of the resamples hold none. A rate of 0 or 1 varies in no resample: its
        interval is Wilson's (1927) with one trial a patient.
    """
    if threshold is None:
        return None
    y = p.target[:, column]
    called = p.probability[:, column] >= threshold
    among, right = {
        "sensitivity": (y == 1, called),
        "specificity": (y == 0, ~called),
        "ppv": (called & ~np.isnan(y), y == 1),
    }[rate]
    unit, patients = patient_index(p)
    if not among.any() or patients < 2:
        return None
    count = np.bincount(unit[among], minlength=patients).astype(np.float64)
    hits = np.bincount(unit[among & right], minlength=patients).astype(np.float64)
    value = float(hits.sum() / count.sum())
    drawn = [_ratio(hits @ w, count @ w) for w in patient_weights(patients, len(unit), n, seed)]
    enough = sides_enough(p, [column], _NEEDED[rate])
    found = percentile_interval(value, np.concatenate(drawn), n, alpha, patients, enough)
    if found is None or 0 < value < 1:
        return found
    low, high = wilson(value, int((count > 0).sum()), alpha)
    floor = wilson(value, int((count > 0).sum()), 2 * alpha)[0]
    return replace(found, low=low, high=high, floor=floor)


def wilson(share: float, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of n independent trials."""
    from scipy.special import ndtri

    z = float(ndtri(1 - alpha / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _ratio(above: Floats, below: Floats) -> Floats:
    found: Floats = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return found
