"""What an objective asks of a candidate, when its search patients are drawn again.

A resample is a weight of each patient. Metrics of rankings and of rows know weights; what is
measured on other patients, or counted, stays what it is; anything else is computed on copied rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from autopeft.evaluation import Evaluation, Floats
from autopeft.metrics import METRICS
from autopeft.metrics.classification import operating_points
from autopeft.metrics.decided import DECIDED, decided
from autopeft.metrics.pairs import Indices
from autopeft.metrics.resampling import Weighted, prepared
from autopeft.metrics.weighted import WEIGHTED
from autopeft.terms import Measure, measure

How = Literal["weighted", "held", "copied"]

_COUNTED = ("trainable_params", "adapter_bytes", "train_seconds")
_RANKED = {"auroc", "worst_group_auroc", "auroc_gap"} | (WEIGHTED.keys() & METRICS.keys())


def how(metric: Measure) -> How:
    """How a metric follows resampled search patients.

    Returns:
        ``weighted``: exactly, a thousand resamples at once. ``held``: it does not depend on the
        search patients, and keeps its value. ``copied``: one call for each resample.
    """
    if not isinstance(metric, str):
        return "copied"
    if metric in _COUNTED or "memorization" in METRICS[metric].needs:
        return "held"
    return "weighted" if metric in _RANKED or metric in DECIDED else "copied"


def redrawn(metric: Measure, evaluation: Evaluation, unit: Indices) -> Weighted:
    """A metric of one candidate as a function of patient weights [U, B] -> [B].

    Args:
        metric: a name, or a function of an evaluation.
        evaluation: of the candidate.
        unit: [N], index of each search row's patient.
    """
    kind = how(metric)
    if kind == "weighted":
        assert isinstance(metric, str)
        make = decided if metric in DECIDED else prepared
        return make(evaluation.search, unit, metric, evaluation.counted, evaluation.labels)
    if kind == "held":
        return Held(measure(metric, evaluation))
    return Redone(metric, evaluation, unit)


@dataclass(frozen=True)
class Held:
    """A value that resampling the search patients does not move."""

    value: float | None

    def values(self, weight: Floats) -> Floats:
        """The same in every resample, [B]."""
        return np.full(weight.shape[1], np.nan if self.value is None else self.value)


@dataclass(frozen=True)
class Redone:
    """A metric without a weighted form: the rows are copied for each resample."""

    metric: Measure
    evaluation: Evaluation
    unit: Indices

    def values(self, weight: Floats) -> Floats:
        """The metric [B] under whole-numbered weights [U, B]."""
        found = np.full(weight.shape[1], np.nan)
        for b in range(weight.shape[1]):
            value = measure(self.metric, copied(self.evaluation, self.unit, weight[:, b]))
            found[b] = np.nan if value is None else value
        return found


def copied(evaluation: Evaluation, unit: Indices, weight: Floats) -> Evaluation:
    """The evaluation on one resample; a patient drawn twice is two patients.

    Thresholds are fitted again: they were fitted on these very patients.

    Args:
        evaluation: of the candidate.
        unit: [N], index of each search row's patient.
        weight: [U], how often each was drawn.
    """
    times = weight[unit].astype(np.intp)
    rows = np.repeat(np.arange(len(unit)), times)
    copy = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    patient = unit[rows] * (int(times.max(initial=0)) + 1) + copy
    search = replace(evaluation.search.take(rows), patient=patient)
    refitted = operating_points(search) if evaluation.thresholds else ()
    return replace(evaluation, search=search, thresholds=refitted)
