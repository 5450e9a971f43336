"""Which groups and labels are scored, decided on counts alone, and the table that shows them.

Nothing here looks at a score before it has decided what is scored, so the set of groups cannot
vary between two models on the same patients (PROTOCOL 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.evaluation import Points, Predictions
from autopeft.metrics.classification import auroc_binary, decisions
from autopeft.metrics.pairs import Indices

UNKNOWN = "unknown"
LEAST = 10  # positive and negative patients from which a counted group is scored (PROTOCOL 3)


@dataclass(frozen=True)
class Scored:
    """What is scored of one attribute.

    Attributes:
        attribute: e.g. ``sex``.
        groups: the groups that are scored.
        columns: the labels (columns) that are scorable in all of these groups.
    """

    attribute: str
    groups: tuple[str, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class GroupRow:
    """One group and one label in the table of groups.

    Attributes:
        attribute: e.g. ``sex``.
        group: e.g. ``sex=F``; ``unknown`` is counted, never scored.
        label: class name.
        images: rows of the group with a known label.
        positives: patients with a positive row.
        negatives: patients with known rows, none of them positive.
        auroc: None where fewer than 10 + 10 patients.
        missed: share of positive rows below the frozen threshold (1 - sensitivity), or None.
    """

    attribute: str
    group: str
    label: str
    images: int
    positives: int
    negatives: int
    auroc: float | None
    missed: float | None = None

    @property
    def text(self) -> str:
        """``.861``, or ``n/a (12+/3-)`` where it is not scored."""
        return cell_text(self.auroc, self.positives, self.negatives)


def cell_text(value: float | None, positives: int, negatives: int, shared: bool = False) -> str:
    """A cell of a table by group: the value, or the counts where it is not scored.

    Args:
        value: e.g. an AUROC; None = not scored.
        positives: positive patients.
        negatives: negative patients.
        shared: whether the table leaves the house; counts below 11 then read ``<11``.
    """
    if value is not None:
        return f"{value:.3f}"
    return f"n/a ({count_text(positives, shared)}+/{count_text(negatives, shared)}-)"


def count_text(patients: int, shared: bool = False) -> str:
    """A number of patients; ``<11`` for 0 to 10 in a table that leaves the house."""
    return "<11" if shared and patients < 11 else str(patients)


def patient_index(p: Predictions) -> tuple[Indices, int]:
    """Index [N] of each row's patient (by sorted id) and the number of patients."""
    ids, index = np.unique(p.patient, return_inverse=True)
    return index, len(ids)


def class_counts(p: Predictions) -> tuple[Indices, Indices]:
    """Positive and negative patients of each class, each [C].

    A patient is positive when any of their rows is, negative when they have known rows and none
    is positive.
    """
    unit, count = patient_index(p)
    positive, negative = (np.zeros(len(p.classes), dtype=np.intp) for _ in "+-")
    for c in range(len(p.classes)):
        y = p.target[:, c]
        has = np.bincount(unit[y == 1], minlength=count) > 0
        known = np.bincount(unit[~np.isnan(y)], minlength=count) > 0
        positive[c], negative[c] = has.sum(), (known & ~has).sum()
    return positive, negative


def patient_counts(
    p: Predictions, attribute: str, groups: Sequence[str]
) -> tuple[Indices, Indices]:
    """Positive and negative patients, each [groups, C]: `class_counts` of each group's rows."""
    positive, negative = (np.zeros((len(groups), len(p.classes)), dtype=np.intp) for _ in "+-")
    for g, group in enumerate(groups):
        positive[g], negative[g] = class_counts(p.take(p.groups[attribute] == group))
    return positive, negative


def scored_groups(
    p: Predictions,
    counted: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[str]] | None = None,
    least: int = LEAST,
) -> tuple[Scored, ...]:
    """Applies the label-set rule: for one attribute, the labels scorable in all its groups.

    A counted group in which fewer than half of the labels have ``least`` + ``least`` patients is
    left out (counts only); the labels are then those that all remaining groups can score. When
    fewer than half of the labels are left (or were left at the start, in ``labels``), the
    attribute has no summary, only values per label.

    Args:
        p: predictions (only targets, patients and groups are read).
        counted: attribute -> groups that count, fixed before trial 1.
        labels: attribute -> labels that count, fixed before trial 1; None or absent = all.
        least: patients needed on either side.

    Returns:
        One entry for each attribute with something to score.
    """
    found = []
    for attribute, groups in counted.items():
        allowed = (labels or {}).get(attribute, p.classes)
        columns = np.array([c for c, name in enumerate(p.classes) if name in allowed], dtype=int)
        known = [g for g in groups if g != UNKNOWN]
        if not known or not len(columns) or 2 * len(columns) < len(p.classes):
            continue
        enough = _enough(p, attribute, known, least)[:, columns]
        kept = 2 * enough.sum(axis=1) >= len(columns)
        common = enough[kept].all(axis=0)
        if kept.any() and 2 * common.sum() >= len(columns):
            names = tuple(g for g, k in zip(known, kept, strict=True) if k)
            found.append(Scored(attribute, names, tuple(int(c) for c in columns[common])))
    return tuple(found)


def scorable_groups(
    p: Predictions, attribute: str, groups: Sequence[str], least: int = LEAST
) -> tuple[Scored, ...]:
    """Each label alone, in all of the groups that can score it: what is left without a summary.

    Args:
        p: predictions (only targets, patients and groups are read).
        attribute: e.g. ``sex``.
        groups: the groups that count.
        least: patients needed on either side.

    Returns:
        One entry for each label that at least two groups can score.
    """
    known = [g for g in groups if g != UNKNOWN]
    enough = _enough(p, attribute, known, least)
    found = []
    for c in range(len(p.classes)):
        names = tuple(g for g, k in zip(known, enough[:, c], strict=True) if k)
        if len(names) >= 2:
            found.append(Scored(attribute, names, (c,)))
    return tuple(found)


def unscored_groups(
    p: Predictions,
    counted: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[str]] | None = None,
    least: int = LEAST,
) -> tuple[str, ...]:
    """Counted groups that `scored_groups` leaves out on these patients: to be named, not lost.

    The worst group is the worst of those that can be scored, so a group that falls below
    ``least`` + ``least`` patients on a split can no longer fail there (PROTOCOL 3). All groups
    of an attribute without a summary are named; ``unknown`` never is.

    Args:
        p: predictions (only targets, patients and groups are read).
        counted: as in `scored_groups`, and so are the other arguments.
        labels: as in `scored_groups`.
        least: as in `scored_groups`.
    """
    kept = {(s.attribute, g) for s in scored_groups(p, counted, labels, least) for g in s.groups}
    return tuple(
        group
        for attribute, groups in counted.items()
        for group in groups
        if group != UNKNOWN and (attribute, group) not in kept
    )


def group_table(
    p: Predictions,
    attributes: Sequence[str] | None = None,
    thresholds: Points | None = None,
    least: int = LEAST,
) -> list[GroupRow]:
    """Every group and label with counts, AUROC and missed findings.

    Args:
        p: predictions.
        attributes: which attributes; None = all.
        thresholds: frozen operating points (probability); None = no missed findings.
        least: patients on either side from which a group is scored.
    """
    made = None if thresholds is None else decisions(p, thresholds)
    score, rows = p.rank_score, []
    for attribute in p.groups if attributes is None else attributes:
        names = sorted(set(p.groups[attribute].tolist()), key=lambda g: (g == UNKNOWN, g))
        positive, negative = patient_counts(p, attribute, names)
        for g, group in enumerate(names):
            member = p.groups[attribute] == group
            for c, label in enumerate(p.classes):
                y = p.target[member, c]
                enough = min(positive[g, c], negative[g, c]) >= least and group != UNKNOWN
                value = auroc_binary(score[member, c], y, p.part[member]) if enough else None
                missed = None
                if made is not None and enough and not np.isnan(made[member, c][y == 1]).any():
                    missed = float((made[member, c][y == 1] == 0).mean())
                seen = int((~np.isnan(y)).sum())
                counts = int(positive[g, c]), int(negative[g, c])
                rows.append(GroupRow(attribute, group, label, seen, *counts, value, missed))
    return rows


def _enough(
    p: Predictions, attribute: str, groups: Sequence[str], least: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """[groups, C]: whether group and label have enough patients on both sides."""
    positive, negative = patient_counts(p, attribute, groups)
    return (positive >= max(least, 1)) & (negative >= max(least, 1))
