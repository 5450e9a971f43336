"""Holdout or folds, and which groups count: decided on the data before the first trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from autopeft.data.splits import LARGE_FROM, PROBE, SPLITS
from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.settings import Settings

# Objectives on groups score none with fewer patients (LEAST in metrics/groups.py, which this
# package may not import), so no hint names a smaller --min-group.
_LEAST = 10

_PLACE = {"holdout": "in search", "cv5": "in all folds"}

# Data sets whose train labels may differ from the judged ones, and what makes them equal.
_EQUAL = {
    "chexpert": "--data-option uncertain=ignore",
    "phantom": "--data-option label_noise_split=all",
}

Inner = Literal["holdout", "cv5"]


@dataclass(frozen=True)
class CountedGroups:
    """The result of `counted_groups`.

    Attributes:
        groups: attribute -> names of the groups that count.
        labels: attribute -> classes that can be scored in all counted groups.
        left_out: attribute -> group -> (positive, negative) patients of the groups that do not
            count (for several labels: of the label that decides).
        notes: the groups that do not count, in words.
        inner: what the search measures on: ``search``, or five folds of ``train`` and ``search``.
        why: why ``--inner auto`` took it, in words; empty where the user said so.
    """

    groups: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, Mapping[str, tuple[int, int]]]
    notes: tuple[str, ...]
    inner: Inner = "holdout"
    why: str = ""


def counted_groups(task: Task, min_group: int, inner: Inner = "holdout") -> CountedGroups:
    """Groups with enough positive and negative patients in ``search``, or in all folds.

    A label can be scored in a group from ``min_group`` positive and ``min_group`` negative
    patients on. A group counts when at least half of the labels can be scored in it.

    Args:
        task: the task.
        min_group: the settings' ``--min-group``.
        inner: with ``cv5`` the patients of ``train`` and ``search`` together are counted.
    """
    table = _counts(task, inner)
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
        f"{group} does not count: {p} positive and {n} negative patients {_PLACE[inner]} "
        f"(--min-group {min_group})"
        for out in left_out.values()
        for group, (p, n) in out.items()
    )
    return CountedGroups(groups, labels, left_out, notes, inner)


def check_groups(task: Task, settings: Settings, needed: bool = True) -> CountedGroups:
    """Decides the inner level and the groups, or says why the run cannot start.

    Args:
        task: the task.
        settings: inner and min_group.
        needed: whether groups matter to this run: the objective needs them, or the user
            declared them. Otherwise nothing is refused for small groups.

    Returns:
        The groups that count; name ``notes`` in the report.

    Raises:
        UserError: an attribute drops out, or a share of the labels and folds were asked for.
    """
    inner, why = choose_inner(task, settings, needed)
    counted = replace(counted_groups(task, settings.min_group, inner), why=why)
    if not needed:
        return counted
    for attribute in task.attributes:
        if len(counted.groups[attribute]) < 2:
            out = counted.left_out[attribute]
            raise UserError(
                f"fewer than two groups of {attribute!r} have {settings.min_group} positive and "
                f"{settings.min_group} negative patients {_PLACE[inner]}: {_listed(out)}",
                f"--group {attribute}",
                f"Drop this --group{_other_ways(task, settings, counted, attribute)}.",
            )
    return counted


def choose_inner(task: Task, settings: Settings, needed: bool) -> tuple[Inner, str]:
    """What ``--inner`` says, or what ``auto`` decides on the counts of ``search`` (PROTOCOL 1).

    From 5,000 patients on ``auto`` is a holdout. Below it is ``cv5`` where the smallest declared
    group, or everyone where no groups matter, has fewer than ``--min-group`` positive or negative
    patients in ``search``; for several labels the label that decides is looked at. Where train
    patients cannot judge (see `_no_folds`) it stays a holdout.

    Args:
        task: the task.
        settings: inner, min_group, label_fraction, dataset and init_adapter.
        needed: as in `check_groups`.

    Returns:
        The inner level, and why ``auto`` took it.

    Raises:
        UserError: ``cv5`` was asked for together with a share of the labels, or where train has
            other labels than what is judged.
    """
    if settings.inner == "cv5" and settings.label_fraction < 1:
        raise UserError(
            "folds train on the search patients too, beyond the share of the labels",
            f"--inner cv5 with --label-fraction {settings.label_fraction:g}",
            "Take --inner holdout, or leave out --label-fraction.",
        )
    if settings.inner == "cv5" and task.policy_differs:
        equal = f"{_EQUAL[settings.dataset]}, or " if settings.dataset in _EQUAL else ""
        raise UserError(
            "folds judge by train patients, but train has labels (of a policy for uncertain ones, "
            "or noise) that nobody is judged by",
            "--inner cv5",
            f"Take {equal}--inner holdout.",
        )
    if settings.inner != "auto":
        return ("cv5" if settings.inner == "cv5" else "holdout"), ""
    if settings.label_fraction < 1:
        return "holdout", "--label-fraction leaves search as it is"
    patients = sum(_everyone(task, s) for s in (*SPLITS, PROBE))
    if patients >= LARGE_FROM:
        return "holdout", f"{patients} {task.unit}s, {LARGE_FROM} or more"
    table = _counts(task, "holdout")
    pairs = {"search": _deciding(table[table["attribute"] == "all"], "all")}
    for attribute in task.attributes if needed else ():
        here = table[table["attribute"] == attribute]
        pairs |= {g: _deciding(here, g) for g in task.groups_of(attribute)}
    name, (p, n) = min(pairs.items(), key=lambda item: min(item[1]))
    where = "" if name == "search" else " in search"
    told = f"{name} has {p} positive and {n} negative {task.unit}s{where}"
    if min(p, n) >= settings.min_group:
        return "holdout", told
    told, barred = f"{told}, --min-group {settings.min_group}", _no_folds(task, settings)
    return ("holdout", f"{told}, but {barred}") if barred else ("cv5", told)


def _no_folds(task: Task, settings: Settings) -> str:
    """Why ``auto`` lets no train patient judge; empty where they may."""
    if task.policy_differs:
        return "train has labels that nobody is judged by"
    if settings.init_adapter is not None:
        return "train patients may have trained the --init-adapter"
    return ""


def _counts(task: Task, inner: Inner) -> pd.DataFrame:
    """Patients of ``search``, or of all folds; no patient is in two splits."""
    splits = ("search", "train") if inner == "cv5" else ("search",)
    every = pd.concat([task.counts(split) for split in splits])
    keys = ["class", "attribute", "group"]
    return every.groupby(keys, sort=False, as_index=False).sum()


def _everyone(task: Task, split: str) -> int:
    table = task.counts(split)
    return int(table[table["attribute"] == "all"]["patients"].max())


def _other_ways(task: Task, settings: Settings, counted: CountedGroups, attribute: str) -> str:
    """What else than dropping the attribute would let the run start."""
    out = counted.left_out[attribute]
    best = sorted((min(n) for n in out.values()), reverse=True)
    absent = 2 - len(counted.groups[attribute])
    need = best[absent - 1] if len(best) >= absent else 0
    ways = f", or lower --min-group to {need}" if need >= _LEAST else ""
    if counted.inner == "holdout" and settings.label_fraction == 1 and not task.policy_differs:
        folds = counted_groups(task, settings.min_group, "cv5").groups[attribute]
        ways += ", or take --inner cv5" if len(folds) >= 2 else ""
    return ways


def _deciding(table: pd.DataFrame, group: str) -> tuple[int, int]:
    """Patients of the label that decides whether a group counts: the best but half of them."""
    rows = table[table["group"] == group]
    pairs = zip(rows["positives"].tolist(), rows["negatives"].tolist(), strict=True)
    ranked = sorted(pairs, key=min, reverse=True)
    return ranked[(len(ranked) - 1) // 2] if ranked else (0, 0)


def _listed(groups: Mapping[str, tuple[int, int]]) -> str:
    return "; ".join(f"{g} has {p} positive and {n} negative" for g, (p, n) in groups.items())
