"""What a refit of the probabilities alone would mend: two numbers a label, no weight changed.

Logistic recalibration, logit P(y) = a + b z (Cox 1958; as a last step of a classifier, Platt
1999). It keeps the order of the scores, so that neither AUROC nor any decision at a threshold that
is moved along changes. Judged out of fold: each patient by numbers fitted on the others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from autopeft.data.splits import cells, make_splits
from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.calibration import class_logit, logistic_fit
from autopeft.metrics.groups import LEAST, class_counts
from autopeft.metrics.intervals import bootstrap, paired

FOLDS = 5
METRICS = ("brier", "log_loss", "calibration_intercept", "calibration_slope")


def recalibration(p: Predictions, n: int = 1000, fitted: int = 500) -> dict[str, Any]:
    """Each label's refit, before and after.

    Args:
        p: predictions on all patients of the new data.
        n: resamples of an interval.
        fitted: resamples of a calibration intercept or slope, which is fitted in each.

    Returns:
        Label -> ``intercept`` and ``slope`` fitted on everyone (to be used), ``before`` and
        ``after`` (metric -> interval, out of fold) and ``change`` of the Brier score and the
        log-loss (paired, after minus before); or ``reason`` why there is none.
    """
    return {label: _of_label(_alone(p, c), n, fitted) for c, label in enumerate(p.classes)}


def _of_label(p: Predictions, n: int, fitted: int) -> dict[str, Any]:
    positive, negative = (int(side[0]) for side in class_counts(p))
    if min(positive, negative) < 2 * LEAST:
        return {
            "reason": f"{positive} patients with and {negative} without it: "
            f"{2 * LEAST} of both are needed"
        }
    z, y = p.score[:, 0].astype(np.float64), p.target[:, 0].astype(np.float64)
    whole = logistic_fit(z, y)
    if whole is None or whole[1] <= 0:
        return {
            "reason": "the scores separate the labels: there is nothing to fit"
            if whole is None
            else "the scores do not rank better than chance: a refit would turn them round"
        }
    after, folds = out_of_fold(p)
    if after is None:
        return {"reason": "too few patients to fit it without the patients that it is judged on"}
    # Refitted probabilities have one scale, whichever fold fitted them.
    after = replace(after, part=p.part)
    both = {"before": p, "after": after}
    found: dict[str, Any] = {
        side: {m: _told(q, m, fitted if "calibration" in m else n) for m in METRICS}
        for side, q in both.items()
    }
    change = {m: paired(after, p, m, n=n) for m in ("brier", "log_loss")}
    return {
        "intercept": whole[0],
        "slope": whole[1],
        "folds": folds,
        **found,
        "change": {m: None if i is None else i.to_dict() for m, i in change.items()},
    }


def out_of_fold(p: Predictions) -> tuple[Predictions | None, int]:
    """One label's scores, each refitted by numbers from the other folds' patients.

    Args:
        p: predictions of one class, every target known.

    Returns:
        The predictions, ``part`` the fold, and the number of folds; None where a fit does not
        exist or would turn the scores round.
    """
    z, y = p.score[:, 0].astype(np.float64), p.target[:, 0].astype(np.float64)
    names = [str(k) for k in range(FOLDS)]
    split = make_splits(
        p.patient, cells(p.target.astype(np.float32), []), dict.fromkeys(names, 1.0), 0
    )
    score: Floats = np.empty_like(p.score, dtype=np.float64)
    for name in names:
        held = split == name
        fit = logistic_fit(z[~held], y[~held])
        if fit is None or fit[1] <= 0:
            return None, FOLDS
        score[held, 0] = fit[0] + fit[1] * z[held]
    return replace(p, score=score, part=split.astype(np.int64)), FOLDS


def _alone(p: Predictions, column: int) -> Predictions:
    """One class against the rest: its log-odds, on the rows whose label is known."""
    known = np.flatnonzero(~np.isnan(p.target[:, column]))
    one = replace(
        p,
        score=class_logit(p, column)[:, None],
        target=p.target[:, [column]],
        classes=(p.classes[column],),
        kind="binary",
    )
    return one.take(known)


def _told(p: Predictions, metric: str, n: int) -> dict[str, Any] | None:
    found = bootstrap(p, metric, n=n)
    return None if found is None else found.to_dict()
