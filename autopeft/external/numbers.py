"""What an adapter reaches on new patients: each label, overall and in each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autopeft.evaluation import Predictions
from autopeft.metrics.calibration import ece_by_class
from autopeft.metrics.frozen import RATES, frozen_rate
from autopeft.metrics.groups import UNKNOWN, class_counts
from autopeft.metrics.intervals import bootstrap

RANKED = ("auroc", "average_precision", "brier")
FITTED = ("calibration_intercept", "calibration_slope")
METRICS = (*RANKED, *RATES, *FITTED)
RESAMPLES, REFITS = 1000, 500  # of an interval; of one that fits in every resample

Told = dict[str, Any]


def label_rows(p: Predictions, thresholds: Sequence[float | None]) -> list[Told]:
    """Every label on all patients: counts, and metrics with intervals over patients.

    Args:
        p: predictions of the adapter; NaN targets where a class has no label in the data.
        thresholds: the adapter's own, one a class; empty = it has none.
    """
    return [
        {"label": label, **_row(p, c, thresholds), "ece": ece_by_class(p)[label]}
        for c, label in enumerate(p.classes)
    ]


def group_rows(p: Predictions, thresholds: Sequence[float | None], least: int) -> list[Told]:
    """Every group and label.

    Args:
        p: as in `label_rows`.
        thresholds: as in `label_rows`.
        least: positive and negative patients that a group needs; below that counts only.
    """
    rows = []
    for attribute, names in p.groups.items():
        for group in sorted(set(names.tolist()), key=lambda g: (g == UNKNOWN, g)):
            inside = p.take(np.flatnonzero(names == group))
            for c, label in enumerate(p.classes):
                row = _row(inside, c, thresholds, None if group == UNKNOWN else least)
                rows.append({"attribute": attribute, "group": group, "label": label, **row})
    return rows


def _row(
    p: Predictions, column: int, thresholds: Sequence[float | None], least: int | None = 0
) -> Told:
    """One label on some patients.

    Args:
        p: predictions on them.
        column: the label.
        thresholds: see `label_rows`.
        least: patients needed on either side to be scored; None = counted only.
    """
    positive, negative = (int(side[column]) for side in class_counts(p))
    y = p.target[:, column]
    counts = {
        "images": int((~np.isnan(y)).sum()),
        "positives": positive,
        "negatives": negative,
        "prevalence": None if np.isnan(y).all() else float(np.nanmean(y)),
    }
    if least is None or min(positive, negative) < least:
        return {**counts, "scored": False, "metrics": dict.fromkeys(METRICS)}
    name = p.classes[column]
    suffix = f":{name}" if len(p.classes) > 1 else ""
    both = positive > 0 and negative > 0
    found: Told = {
        metric: bootstrap(p, f"{metric}{suffix}", n=REFITS if metric in FITTED else RESAMPLES)
        if both
        else None
        for metric in (*RANKED, *FITTED)
    }
    limit = thresholds[column] if column < len(thresholds) else None
    found |= {rate: frozen_rate(p, column, limit, rate, n=RESAMPLES) for rate in RATES}
    told = {
        metric: i.to_dict() if (i := found[metric]) is not None else None for metric in METRICS
    }
    return {**counts, "scored": True, "metrics": told}


def mean_auroc(p: Predictions) -> Told | None:
    """Mean AUROC over the labels that have both classes; None for one label."""
    found = bootstrap(p, "auroc", n=RESAMPLES) if len(p.classes) > 1 else None
    return None if found is None else found.to_dict()
