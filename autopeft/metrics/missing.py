"""What patients with an unknown group could do to the gap, when there are many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.groups import LEAST, UNKNOWN, Scored, scored_groups
from autopeft.metrics.pairs import pair

MANY = 0.10  # share of patients without a value from which bounds are due (PROTOCOL 3)
_STEPS = 21  # the worst case is searched in steps of 5% of the unknown rows of each class


@dataclass(frozen=True)
class Bounds:
    """The gap under assumptions about patients whose group is unknown.

    Attributes:
        attribute: e.g. ``race``.
        share: of the patients whose group is unknown.
        value: the gap without them (highest minus lowest mean AUROC).
        together: the group that all of them are put into -> the gap then.
        low: smallest of ``together``: all missing, best case.
        high: largest of ``together``: all missing, worst case.
        least: no division of them among the groups has a smaller gap.
        most: no division of them among the groups has a larger gap.
    """

    attribute: str
    share: float
    value: float
    together: dict[str, float]
    low: float
    high: float
    least: float
    most: float

    @property
    def due(self) -> bool:
        """Whether more than 10% of the patients are unknown."""
        return self.share > MANY


def missing_bounds(
    p: Predictions,
    attribute: str,
    groups: Sequence[str],
    labels: Sequence[str] | None = None,
    least: int = LEAST,
) -> Bounds | None:
    """Bounds of the gap for the unknown group, best and worst case.

    ``low`` and ``high`` put all unknown patients into one group, each in turn. ``least`` and
    ``most`` let every unknown row choose (Manski 1990): a group's AUROC is highest with the
    top-scoring unknown positives and the lowest-scoring unknown negatives, lowest the other way
    round, how many of each being searched. That rows may be counted in two groups at once only
    widens them; they are wide.

    Args:
        p: predictions.
        attribute: e.g. ``race``.
        groups: the groups that count.
        labels: labels that count, fixed before trial 1; None = all.
        least: positive and negative patients needed.

    Returns:
        None without two scored groups or without unknown patients, and for scores of several
        models (folds): which of their rows rank highest cannot be said. Show it when `Bounds.due`.
    """
    if len(np.unique(p.part)) > 1:
        return None
    unknown = p.groups[attribute] == UNKNOWN
    fixed = None if labels is None else {attribute: labels}
    for scored in scored_groups(p, {attribute: groups}, fixed, least):
        if len(scored.groups) < 2 or not unknown.any():
            continue
        patients = len(np.unique(p.patient))
        together = {g: float(np.ptp(_aurocs(_moved(p, scored, g), scored))) for g in scored.groups}
        ends = np.array([_extremes(p, scored, group, unknown) for group in scored.groups])
        lowest, highest = ends[:, 0], ends[:, 1]
        apart = highest[:, None] - lowest[None, :]
        np.fill_diagonal(apart, -np.inf)
        return Bounds(
            attribute,
            len(np.unique(p.patient[unknown])) / patients,
            float(np.ptp(_aurocs(p, scored))),
            together,
            min(together.values()),
            max(together.values()),
            float(max(0.0, lowest.max() - highest.min())),
            float(apart.max()),
        )
    return None


def _moved(p: Predictions, scored: Scored, group: str) -> Predictions:
    names = p.groups[scored.attribute]
    moved = np.where(names == UNKNOWN, group, names)
    return replace(p, groups={**p.groups, scored.attribute: moved})


def _aurocs(p: Predictions, scored: Scored) -> Floats:
    """Mean AUROC of each group over the label set, [G]."""
    found = []
    for group in scored.groups:
        rows = np.flatnonzero(p.groups[scored.attribute] == group)
        own, one = np.zeros(len(rows), dtype=np.intp), np.ones((1, 1))
        cells = [
            pair(p.rank_score[rows, c], p.target[rows, c], own, p.part[rows])
            for c in scored.columns
        ]
        found.append(np.mean([cell.auroc(one)[0] for cell in cells]))
    return np.array(found)


def _extremes(
    p: Predictions, scored: Scored, group: str, unknown: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> tuple[float, float]:
    """Lowest and highest mean AUROC of a group that may take any of the unknown rows."""
    own = p.groups[scored.attribute] == group
    low, high = [], []
    for c in scored.columns:
        rows = np.flatnonzero(own | unknown)
        score, target = p.rank_score[rows, c], p.target[rows, c]
        cell = pair(score, target, np.arange(len(rows)), p.part[rows])
        every = [cell.auroc(_choices(score, target, unknown[rows], up)) for up in (False, True)]
        low.append(np.nanmin(every[0]))
        high.append(np.nanmax(every[1]))
    return float(np.mean(low)), float(np.mean(high))


def _choices(
    score: Floats, target: Floats, free: np.ndarray[tuple[int], np.dtype[np.bool_]], up: bool
) -> Floats:
    """Weights [rows, choices]: some share of the free positives, and of the free negatives."""
    shares, columns = np.linspace(0, 1, _STEPS), []
    for label in (1, 0):
        rows = np.flatnonzero(free & (target == label))
        order = rows[np.argsort(score[rows], kind="stable")]
        if up == (label == 1):
            order = order[::-1]  # the best first
        weight = np.tile((~free & (target == label)).astype(np.float64)[:, None], _STEPS)
        for s, share in enumerate(shares):
            weight[order[: round(share * len(order))], s] = 1.0
        columns.append(weight)
    positive, negative = columns
    both = positive[:, :, None] + negative[:, None, :]
    return np.ascontiguousarray(both.reshape(len(score), _STEPS * _STEPS))
