"""Decisions by group: equalized odds and demographic parity. fairlearn's only door.

fairlearn says 0 for the false-alarm rate of a group without negatives and skips an undefined one,
so that a group with one class looks perfectly fair (TRAPS A1, A2). Here only groups with enough
patients on both sides reach it, decided on counts alone, and one that lost its rows to an absent
threshold makes the answer None.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from autopeft.evaluation import Evaluation, Floats, Predictions
from autopeft.metrics.classification import decisions
from autopeft.metrics.groups import Scored, scored_groups
from autopeft.metrics.pairs import defined

_Measure = Callable[..., Any]


def equalized_odds_difference(evaluation: Evaluation) -> float | None:
    """Largest difference between groups in TPR or FPR at the frozen thresholds.

    Mean over the attribute's label set, largest over attributes (Hardt et al. 2016, through
    fairlearn). 0 is equal.
    """
    # fairlearn loads pandas and scikit-learn, seconds that most callers of this file never need.
    from fairlearn.metrics import equalized_odds_difference as measure

    return max(_each(evaluation, measure), default=None)


def equalized_odds_ratio(evaluation: Evaluation) -> float | None:
    """Smallest ratio between groups of TPRs or of FPRs at the frozen thresholds; 1 is equal.

    Mean over the attribute's label set, smallest over attributes. None where all groups have a
    rate of 0: 0 / 0 is not equality.
    """
    from fairlearn.metrics import equalized_odds_ratio as measure

    return min(_each(evaluation, measure), default=None)


def demographic_parity_difference(evaluation: Evaluation) -> float | None:
    """Largest difference between groups in the share called positive; 0 is equal.

    Mean over the attribute's label set, largest over attributes. Groups with different
    prevalence differ here under a perfect model: a description, not a goal, for diagnoses.
    """
    from fairlearn.metrics import demographic_parity_difference as measure

    return max(_each(evaluation, measure), default=None)


def demographic_parity_ratio(evaluation: Evaluation) -> float | None:
    """Smallest ratio between groups of the shares called positive; 1 is equal."""
    from fairlearn.metrics import demographic_parity_ratio as measure

    return min(_each(evaluation, measure), default=None)


def _each(evaluation: Evaluation, measure: _Measure) -> list[float]:
    """The measure of each attribute, mean over its label set; empty where any is undefined."""
    if not evaluation.thresholds:
        return []
    p, found = evaluation.search, []
    made = decisions(p, evaluation.thresholds)
    for scored in scored_groups(p, evaluation.counted, evaluation.labels):
        if len(scored.groups) < 2:
            continue
        values = [_of_label(p, made[:, c], scored, c, measure) for c in scored.columns]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return []
        found.append(float(np.mean(known)))
    return found


def _of_label(
    p: Predictions, made: Floats, scored: Scored, column: int, measure: _Measure
) -> float | None:
    """None where a scored group has lost a class, or a ratio is 0 / 0."""
    names = p.groups[scored.attribute]
    rows = np.isin(names, scored.groups) & ~np.isnan(made)
    target, decided, member = p.target[rows, column], made[rows], names[rows]
    if any(set(target[member == group]) != {0.0, 1.0} for group in scored.groups):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0
        value = measure(
            target.astype(int), decided.astype(int), sensitive_features=member.astype(str)
        )
    return defined(value)
