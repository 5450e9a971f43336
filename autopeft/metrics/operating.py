"""Intervals at an operating point: the threshold is fitted again in every resample.

A threshold is an estimate too. Its search patients and the judged patients are different people,
so that both are resampled, independently (PROTOCOL 3: "intervals refit it").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.classification import f1, fit_threshold
from autopeft.metrics.classification import sensitivity as found_share
from autopeft.metrics.classification import specificity as cleared_share
from autopeft.metrics.groups import patient_index
from autopeft.metrics.intervals import Interval, percentile_interval, sides_enough
from autopeft.metrics.pairs import Indices, Steps
from autopeft.metrics.resampling import check_same_rows, patient_weights

RATES = {"sensitivity": found_share, "specificity": cleared_share, "f1": f1}
_NEEDED = {"sensitivity": (True, False), "specificity": (False, True), "f1": (True, True)}


@dataclass(frozen=True)
class _Class:
    """One class: its positives on search, and what each of them as the threshold would call.

    Attributes:
        fitted: [n], unit of each search positive, highest probability first.
        positive: judged positives that are called at each of these thresholds, and all.
        negative: the same of the judged negatives.
    """

    fitted: Indices
    positive: Steps
    negative: Steps

    def rate(self, name: str, fitting: Floats, weight: Floats, target: float) -> Floats:
        """Sensitivity, specificity or F1 [B] at the thresholds that the fitting weights give.

        Args:
            name: which rate.
            fitting: [V, B], weights of the search units.
            weight: [U, B], weights of the judged units.
            target: sensitivity for which the threshold is fitted.
        """
        if not len(self.fitted):
            return np.full(weight.shape[1], np.nan)
        reached = np.cumsum(fitting[self.fitted], axis=0)
        at = (reached < target * reached[-1] - 1e-9).sum(axis=0), np.arange(weight.shape[1])
        hits, calls = self.positive.sums(weight), self.negative.sums(weight)
        right, false, positives, negatives = hits[at], calls[at], hits[-1], calls[-1]
        above, below = {
            "sensitivity": (right, positives),
            "specificity": (negatives - false, negatives),
            "f1": (2 * right, right + false + positives),
        }[name]
        known = (reached[-1] > 0) & (below > 0)
        if name == "f1":
            known &= (positives > 0) & (negatives > 0)
        return np.divide(above, below, out=np.full(len(known), np.nan), where=known)  # type: ignore[no-any-return]


def operating_interval(
    p: Predictions,
    search: Predictions,
    metric: str = "sensitivity",
    target: float = 0.90,
    baseline: tuple[Predictions, Predictions] | None = None,
    n: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Interval | None:
    """Interval of a rate at the operating point, for the procedure "fit on search, then freeze".

    The value is the rate at the threshold that all of ``search`` gives. Each resample draws
    search patients, fits the threshold, draws judged patients and counts. So the interval says
    how the rate varies over new patients and new search sets of these sizes; for the one frozen
    number alone it is too wide (docs/metrics.md). For a group give ``p.take(rows)``.

    Args:
        p: predictions on the judged split (or some of its rows).
        search: predictions of the same model on ``search``. The very same object as ``p`` means
            "judged where it was fitted": then one draw serves both.
        metric: ``sensitivity``, ``specificity`` or ``f1``, macro over the classes in which it is
            defined, or of one class, ``sensitivity:NAME``.
        target: sensitivity for which the thresholds are fitted.
        baseline: (judged, search) of the model to subtract, on the same rows and the same draws.
        n: resamples.
        seed: seed of the draws.
        alpha: 1 - coverage.

    Returns:
        None where the rate is undefined, for fewer than two patients on either split, or when
        more than half of the resamples are undefined.

    Raises:
        ValueError: unknown metric, other rows in the baseline, or a patient in both splits.
    """
    name, columns = _parsed(metric, p)
    sides = [(p, search)] if baseline is None else [(p, search), baseline]
    check_same_rows([q for q, _ in sides])
    check_same_rows([q for _, q in sides])
    if search is not p and np.isin(p.patient, search.patient).any():
        raise ValueError("a patient of the judged split is in search too")
    points = [_point(q, s, name, target, columns) for q, s in sides]
    defined = [c for c in columns if all(c in point for point in points)]
    units = patient_index(p)[1], patient_index(search)[1]
    if not defined or min(units) < 2:
        return None
    means = [float(np.mean([point[c] for c in defined])) for point in points]
    value = means[0] if baseline is None else means[0] - means[1]
    classes = [[_class(q, s, c) for c in defined] for q, s in sides]
    drawn = []
    for weight, fitting in _draws(p, search, units, n, seed):
        rates = [
            np.mean([k.rate(name, fitting, weight, target) for k in side], axis=0)
            for side in classes
        ]
        drawn.append(rates[0] if baseline is None else rates[0] - rates[1])
    enough = sides_enough(p, defined, _NEEDED[name])
    enough = enough and sides_enough(search, defined, _NEEDED["sensitivity"])
    return percentile_interval(value, np.concatenate(drawn), n, alpha, units[0], enough)


def _draws(
    p: Predictions, search: Predictions, units: tuple[int, int], n: int, seed: int
) -> Iterator[tuple[Floats, Floats]]:
    """Blocks of weights of the judged patients, and of the search patients."""
    rows = max(len(p.patient), len(search.patient))  # so that blocks of both have the same size
    judged = patient_weights(units[0], rows, n, seed)
    if search is p:
        yield from ((weight, weight) for weight in judged)
        return
    fitted = patient_weights(units[1], rows, n, np.random.SeedSequence(seed).spawn(1)[0])
    yield from zip(judged, fitted, strict=True)


def _parsed(metric: str, p: Predictions) -> tuple[str, list[int]]:
    name, _, one = metric.partition(":")
    if name not in RATES or (one and one not in p.classes):
        raise ValueError(f"no interval at an operating point is known for {metric!r}")
    return name, [c for c, label in enumerate(p.classes) if one in ("", label)]


def _point(
    p: Predictions, search: Predictions, name: str, target: float, columns: Sequence[int]
) -> dict[int, float]:
    """The rate of each class in which it is defined, at the threshold of all search patients."""
    found = RATES[name](p, fit_threshold(search, target))
    return {c: value for c in columns if (value := found[p.classes[c]]) is not None}


def _class(p: Predictions, search: Predictions, column: int) -> _Class:
    fitted = np.flatnonzero(search.target[:, column] == 1)
    limits = search.probability[fitted, column]
    order = np.argsort(-limits, kind="stable")
    unit = patient_index(p)[0]
    sides = []
    for label in (1, 0):
        rows = np.flatnonzero(p.target[:, column] == label)
        q = p.probability[rows, column]
        ranks = np.argsort(-q, kind="stable")
        called = np.searchsorted(-q[ranks], -limits[order], side="right")
        sides.append(Steps(unit[rows[ranks]], np.append(called, len(rows))))
    return _Class(patient_index(search)[0][fitted[order]], *sides)
