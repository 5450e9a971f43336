"""Which groups enter objectives and constraints, decided on the data before the first trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.settings import Settings

# Objectives on groups score none with fewer patients (LEAST in metrics/groups.py, which this
# package may not import), so no hint names a smaller --min-group.
_LEAST = 10


@dataclass(frozen=True)
class CountedGroups:
    """The result of `counted_groups`.

    Attributes:
        groups: attribute -> names of the groups that count.
        labels: attribute -> classes that can be scored in all counted groups.
        left_out: attribute -> group -> (positive, negative) patients in search of the groups
            that do not count (for several labels: of the label that decides).
        notes: the groups that do not count, in words.
    """

    groups: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, Mapping[str, tuple[int, int]]]
    notes: tuple[str, ...]


def counted_groups(task: Task, min_group: int) -> CountedGroups:
    """Groups with enough positive and negative patients in ``search``.

    A label can be scored in a group from ``min_group`` positive and ``min_group`` negative
    patients on. A group counts when at least half of the labels can be scored in it.

    Args:
        task: the task.
        min_group: the settings' ``--min-group``.
    """
    table = task.counts("search")
    enough = (table["positives"] >= min_group) & (table["negatives"] >= min_group)
    table = table.assign(enough=enough)
    groups: dict[str, tuple[str, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, dict[str, tuple[int, int]]] = {}
    for attribute in task.attributes:
        names = task.groups_of(attribute)
        here = table[table["attribute"] == attribute]
        good = {g: here[(here["group"] == g) & here["enough"]]["class"].tolist() for g in names}
        kept = [g for g in names if 2 * len(good[g]) >= len(task.classes)]
        groups[attribute] = tuple(kept)
        shared = set(task.classes).intersection(*(good[g] for g in kept)) if kept else set()
        labels[attribute] = tuple(c for c in task.classes if c in shared)
        left_out[attribute] = {g: _deciding(here, g) for g in names if g not in kept}
    notes = tuple(
        f"{group} does not count: {p} positive and {n} negative patients in search "
        f"(--min-group {min_group})"
        for out in left_out.values()
        for group, (p, n) in out.items()
    )
    return CountedGroups(groups, labels, left_out, notes)


def check_groups(task: Task, settings: Settings, needed: bool = True) -> CountedGroups:
    """Decides the inner level, or says why the run cannot start.

    Args:
        task: the task.
        settings: inner and min_group.
        needed: whether groups matter to this run: the objective needs them, or the user
            declared them. Otherwise nothing is refused for small groups.

    Returns:
        The groups that count; name ``notes`` in the report.

    Raises:
        UserError: ``cv5`` was asked for or would be chosen, or an attribute drops out.
    """
    if settings.inner == "cv5":
        raise UserError(
            "cross-validation inside the search is not in this version",
            "--inner cv5",
            "Take --inner holdout.",
        )
    counted = counted_groups(task, settings.min_group)
    if not needed:
        return counted
    short = {g: n for out in counted.left_out.values() for g, n in out.items()}
    if short and settings.inner == "auto":
        lowest = min(min(n) for n in short.values())
        fixes = ["drop the --group"]
        if lowest >= _LEAST:
            fixes.insert(0, f"lower --min-group to {lowest}")
        if all(len(counted.groups[a]) >= 2 for a in task.attributes):
            fixes.insert(0, "take --inner holdout (such groups are then shown but do not count)")
        fix = ", or ".join(fixes)
        raise UserError(
            f"too few patients in search for --min-group {settings.min_group}: {_listed(short)}",
            "--inner auto would take cv5, which is not in this version",
            f"{fix[0].upper()}{fix[1:]}.",
        )
    for attribute in task.attributes:
        if len(counted.groups[attribute]) < 2:
            out = counted.left_out[attribute]
            best = sorted((min(n) for n in out.values()), reverse=True)
            absent = 2 - len(counted.groups[attribute])
            need = best[absent - 1] if len(best) >= absent else 0
            lower = f", or lower --min-group to {need}" if need >= _LEAST else ""
            raise UserError(
                f"fewer than two groups of {attribute!r} have {settings.min_group} positive and "
                f"{settings.min_group} negative patients in search: {_listed(out)}",
                f"--group {attribute}",
                f"Drop this --group{lower}.",
            )
    return counted


def _deciding(table: pd.DataFrame, group: str) -> tuple[int, int]:
    """Patients of the label that decides whether a group counts: the best but half of them."""
    rows = table[table["group"] == group]
    pairs = zip(rows["positives"].tolist(), rows["negatives"].tolist(), strict=True)
    ranked = sorted(pairs, key=min, reverse=True)
    return ranked[(len(ranked) - 1) // 2] if ranked else (0, 0)


def _listed(groups: Mapping[str, tuple[int, int]]) -> str:
    return "; ".join(f"{g} has {p} positive and {n} negative" for g, (p, n) in groups.items())
