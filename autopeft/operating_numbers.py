"""What ``result.json`` says about decisions and probabilities: operating point and calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from autopeft.answer import Answer
from autopeft.evaluation import Predictions
from autopeft.metrics.calibration import ece
from autopeft.metrics.classification import average_precision, log_loss
from autopeft.metrics.intervals import bootstrap
from autopeft.metrics.operating import operating_interval

_RESAMPLES = 500  # of a calibration slope, which is fitted anew in each

RATES = ("sensitivity", "specificity", "f1")


def operating_numbers(answer: Answer, name: str) -> dict[str, Any]:
    """One model on test, at the threshold of its own search scores.

    Returns:
        Rates with intervals that refit the threshold in each resample; proper scores and average
        precision; calibration overall and in each counted group.
    """
    test, search = (answer.scored[(name, 0, split)] for split in ("test", "search"))
    rates = {
        rate: None
        if (found := operating_interval(test, search, rate)) is None
        else found.to_dict()
        for rate in RATES
    }
    groups = {
        group: calibration(test.take(np.flatnonzero(test.groups[attribute] == group)))
        for attribute, names in answer.audience.counted.items()
        for group in names
    }
    return {
        "rates": rates,
        "average_precision": average_precision(test),
        "log_loss": log_loss(test),
        "calibration": {"all": calibration(test), **groups},
    }


def calibration(p: Predictions) -> dict[str, Any]:
    """Debiased error, Brier score, and intercept and slope of each class, with intervals.

    The error has none: a resample adds noise to a number that is corrected for noise.
    """
    several = len(p.classes) > 1
    found: dict[str, Any] = {"ece": ece(p), "brier": _told(p, "brier"), "classes": {}}
    for label in p.classes:
        suffix = f":{label}" if several else ""
        found["classes"][label] = {
            name: _told(p, f"calibration_{name}{suffix}") for name in ("intercept", "slope")
        }
    return found


def _told(p: Predictions, metric: str) -> dict[str, Any] | None:
    interval = bootstrap(p, metric, n=_RESAMPLES)
    return None if interval is None else interval.to_dict() | {"enough": interval.enough}
