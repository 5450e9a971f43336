"""Fairness between groups of patients: worst group, gap, ranking across groups.

The search ranks by worst-group AUROC. The gap is shown and never optimized alone: a constant
score has gap 0, and so has hurting the better group (TRAPS A4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.evaluation import Evaluation, Floats, Predictions
from autopeft.metrics.classification import auroc_binary
from autopeft.metrics.groups import (
    LEAST,
    UNKNOWN,
    Scored,
    class_counts,
    scored_groups,
)
from autopeft.metrics.pairs import Indices, Pairs, Statistic, macro, pair

Counted = Mapping[str, Sequence[str]]


def group_aurocs(
    p: Predictions,
    attribute: str,
    groups: Sequence[str],
    labels: Sequence[str] | None = None,
    least: int = LEAST,
) -> dict[str, float | None]:
    """AUROC inside each group, over the labels that all scored groups of the attribute share.

    Args:
        p: predictions.
        attribute: e.g. ``sex``.
        groups: the groups that count.
        labels: the labels that count, fixed before trial 1; None = all.
        least: positive and negative patients needed.

    Returns:
        None for a group that is not scored.
    """
    fixed = None if labels is None else {attribute: labels}
    found: dict[str, float | None] = dict.fromkeys(groups)
    rows = np.arange(len(p.patient))
    for scored in scored_groups(p, {attribute: groups}, fixed, least):
        cells = group_cells(p, scored, rows)
        for g, group in enumerate(scored.groups):
            own = cells[g * len(scored.columns) : (g + 1) * len(scored.columns)]
            found[group] = Statistic(own, macro, len(rows)).value
    return found


def group_statistic(
    p: Predictions, unit: Indices, group: str, counted: Counted, labels: Counted | None = None
) -> Statistic:
    """AUROC inside one group, over its attribute's label set, ready for patient weights."""
    for scored in scored_groups(p, counted, labels):
        if group in scored.groups:
            start = scored.groups.index(group) * len(scored.columns)
            cells = group_cells(p, scored, unit)[start : start + len(scored.columns)]
            return Statistic(cells, macro, _units(unit))
    return Statistic((), macro, _units(unit))


def worst_group_statistic(
    p: Predictions, unit: Indices, counted: Counted, labels: Counted | None = None
) -> Statistic:
    """Lowest AUROC over all scored groups of all attributes, ready for patient weights.

    The minimum of noisy values lies below the lowest true value (two equal groups of 150
    patients: .026 too low), never above: pessimistic, and more so for a model whose groups are
    near each other. A difference of two models' lowest values flatters the one whose groups
    differ: no claim rests on it alone (`autopeft.metrics.worst`).
    """
    shapes, cells = _plan(p, unit, counted, labels)

    def lowest(values: Floats) -> Floats:
        groups = [block.mean(axis=2) for block in _blocks(values, shapes)]
        return np.concatenate(groups, axis=1).min(axis=1)  # type: ignore[no-any-return]

    return Statistic(cells, lowest, _units(unit))


def gap_statistic(
    p: Predictions, unit: Indices, counted: Counted, labels: Counted | None = None
) -> Statistic:
    """Highest minus lowest group AUROC per label, mean over labels, largest over attributes.

    An attribute needs two scored groups. Biased upwards, and its percentile interval cannot
    contain 0 (PROTOCOL 3): show intervals of paired differences only.
    """
    shapes, cells = _plan(p, unit, counted, labels, least_groups=2)

    def widest(values: Floats) -> Floats:
        gaps = [np.ptp(block, axis=1).mean(axis=1) for block in _blocks(values, shapes)]
        return np.stack(gaps, axis=1).max(axis=1)  # type: ignore[no-any-return]

    return Statistic(cells, widest, _units(unit))


def worst_group_auroc(evaluation: Evaluation) -> float | None:
    """Lowest AUROC over all counted groups of all attributes (each over its label set)."""
    p = evaluation.search
    rows = np.arange(len(p.patient))
    return worst_group_statistic(p, rows, evaluation.counted, evaluation.labels).value


def worst_group(evaluation: Evaluation) -> tuple[str, float] | None:
    """Name and AUROC of the worst counted group."""
    found = []
    for attribute, groups in evaluation.counted.items():
        labels = (evaluation.labels or {}).get(attribute)
        values = group_aurocs(evaluation.search, attribute, groups, labels)
        found += [(value, group) for group, value in values.items() if value is not None]
    value, group = min(found, default=(None, ""))
    return None if value is None else (group, value)


def auroc_gap(evaluation: Evaluation) -> float | None:
    """Highest minus lowest group AUROC (per label, then the mean), largest over attributes."""
    p = evaluation.search
    rows = np.arange(len(p.patient))
    return gap_statistic(p, rows, evaluation.counted, evaluation.labels).value


@dataclass(frozen=True)
class Across:
    """How a group's rows rank against everybody else's, for one label (Borkan et al. 2019).

    Attributes:
        attribute: e.g. ``sex``.
        group: e.g. ``sex=F``.
        label: class name.
        bpsn: AUROC of the others' positives against the group's negatives (background positive,
            subgroup negative). Low: the group's healthy score too high, false alarms.
        bnsp: AUROC of the group's positives against the others' negatives. Low: the group's
            ill score too low, missed findings.
    """

    attribute: str
    group: str
    label: str
    bpsn: float | None
    bnsp: float | None


def across_groups(
    p: Predictions, attribute: str, groups: Sequence[str], least: int = LEAST
) -> tuple[Across, ...]:
    """BPSN and BNSP AUROC of each group and label: one threshold serves groups that rank alike.

    The background of a group is all other rows with a known group, counted or not. Equal AUROCs
    inside the groups say nothing of this: shift one group's scores and only these two move.

    Args:
        p: predictions.
        attribute: e.g. ``sex``.
        groups: the groups to compare with their background.
        least: patients needed on the side that each of the two has to supply; else None.
    """
    names, score, found = p.groups[attribute], p.rank_score, []
    for group in groups:
        own, rest = names == group, (names != group) & (names != UNKNOWN)
        counts = [class_counts(p.take(rows)) for rows in (own, rest)]
        (own_positive, own_negative), (rest_positive, rest_negative) = counts
        for c, label in enumerate(p.classes):
            y = p.target[:, c]
            values = []
            for up, down, enough in (
                (rest, own, min(rest_positive[c], own_negative[c])),
                (own, rest, min(own_positive[c], rest_negative[c])),
            ):
                rows = (up & (y == 1)) | (down & (y == 0))
                value = auroc_binary(score[rows, c], y[rows], p.part[rows])
                values.append(value if enough >= max(least, 1) else None)
            found.append(Across(attribute, group, label, *values))
    return tuple(found)


def group_cells(p: Predictions, scored: Scored, unit: Indices) -> tuple[Pairs, ...]:
    """Pairs of each group and label, group by group: cell g * labels + l.

    Args:
        p: predictions.
        scored: the groups and columns.
        unit: [N], index of each row's unit.
    """
    score, found = p.rank_score, []
    for group in scored.groups:
        rows = np.flatnonzero(p.groups[scored.attribute] == group)
        part = p.part[rows]
        found += [
            pair(score[rows, c], p.target[rows, c], unit[rows], part) for c in scored.columns
        ]
    return tuple(found)


def _plan(
    p: Predictions,
    unit: Indices,
    counted: Counted,
    labels: Counted | None,
    least_groups: int = 1,
) -> tuple[list[tuple[int, int]], tuple[Pairs, ...]]:
    """(groups, labels) of each attribute, and the cells of all attributes one after the other."""
    shapes: list[tuple[int, int]] = []
    cells: tuple[Pairs, ...] = ()
    for scored in scored_groups(p, counted, labels):
        if len(scored.groups) >= least_groups:
            shapes.append((len(scored.groups), len(scored.columns)))
            cells += group_cells(p, scored, unit)
    return shapes, cells


def _blocks(values: Floats, shapes: Sequence[tuple[int, int]]) -> list[Floats]:
    """Cuts [B, cells] into one [B, groups, labels] for each attribute."""
    ends = np.cumsum([g * n for g, n in shapes])[:-1]
    parts = np.split(values, ends, axis=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _units(unit: Indices) -> int:
    return int(unit.max()) + 1 if len(unit) else 0
