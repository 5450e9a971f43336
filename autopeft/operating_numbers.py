"""What ``result.json`` says about decisions and probabilities: operating point and calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from autopeft.answer import Answer
from autopeft.evaluation import Predictions
from autopeft.metrics.calibration import apply_temperature, ece, fit_temperature
from autopeft.metrics.classification import average_precision, log_loss
from autopeft.metrics.intervals import bootstrap
from autopeft.metrics.operating import operating_interval

_RESAMPLES = 500  # of a calibration slope, which is fitted anew in each

RATES = ("sensitivity", "specificity", "f1")


def operating_numbers(answer: Answer, name: str) -> dict[str, Any]:
    """One model on test, at the threshold of its own search scores.

    Returns:
        Rates with intervals that refit the threshold in each resample; proper scores and average
        precision; calibration overall and in each counted group, of the scores as they are and
        divided by a temperature that was fitted on search (Guo et al. 2017): a group whose slope
        is off may not be mended by what mends everyone.
    """
    test, search = (answer.scored[(name, 0, split)] for split in ("test", "search"))
    rates = {
        rate: None
        if (found := operating_interval(test, search, rate)) is None
        else found.to_dict()
        for rate in RATES
    }
    temperature = fit_temperature(search)
    cooled = apply_temperature(test, temperature)
    return {
        "rates": rates,
        "average_precision": average_precision(test),
        "log_loss": log_loss(test),
        "calibration": _by_group(answer, test),
        "temperature": dict(zip(test.classes, temperature, strict=True)),
        "after_temperature": {
            "log_loss": log_loss(cooled),
            "calibration": _by_group(answer, cooled),
        },
    }


def _by_group(answer: Answer, p: Predictions) -> dict[str, Any]:
    """Calibration of everyone (``all``) and of each counted group."""
    groups = {
        group: calibration(p.take(np.flatnonzero(p.groups[attribute] == group)))
        for attribute, names in answer.audience.counted.items()
        for group in names
    }
    return {"all": calibration(p), **groups}


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
