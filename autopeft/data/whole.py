"""A data set as one set of judged images: no splits of ours, nothing to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopeft.data.frame import Labels, Source, listed_paths, refuse_repeated, unknown_note
from autopeft.data.groups import group_names, parse
from autopeft.data.task import Unit
from autopeft.errors import UserError, nearest
from autopeft.evaluation import Kind
from autopeft.job import Rows

ALL = "all"


@dataclass(frozen=True)
class Whole:
    """Every image with a label that is certain, sorted by path.

    Attributes:
        name: name of the data set.
        kind: see ``Task``.
        unit: see ``Task``.
        classes: names of the C columns of the labels.
        root: folder that paths are relative to.
        rows: with labels as for evaluated splits: NaN where unknown or uncertain.
        notes: what a reader must know; counts only.
    """

    name: str
    kind: Kind
    unit: Unit
    classes: tuple[str, ...]
    root: Path
    rows: Rows
    notes: tuple[str, ...]


def whole(
    source: Source, groups: Sequence[str], optional: Sequence[str] = (), split: str = ALL
) -> Whole:
    """Checks a source and takes all of it, or one of its own splits.

    A label with one class and a split with few patients are no errors here: they are counted.

    Args:
        source: what a loader read.
        groups: attributes that must be there.
        optional: attributes that are taken where the data have them; the others are noted.
        split: one of the data's own words for splits, or ``all``.

    Raises:
        UserError: paths, patients, groups or the split are not as they should be.
    """
    where, notes = source.where, list(source.notes)
    paths = np.array(listed_paths(source), dtype=object)
    judged = source.label if source.judged is None else source.judged
    order = np.argsort(paths, kind="stable")
    order = order[_inside(source, split)[order]]
    known = np.any(np.isfinite(judged[order]), axis=1, keepdims=False)
    if not known.any():
        raise UserError("holds no image with a known label", where, "Name another --label.")
    notes += _unlabelled_notes(source, judged, order, known)
    order = order[known]
    frame = source.frame.iloc[order].reset_index(drop=True).assign(path=paths[order])
    patient = frame["patient_id"].to_numpy(dtype=object).astype(np.str_)
    attributes = [parse(flag) for flag in groups]
    refuse_repeated(attributes, frame, where)
    named = {a.flag: group_names(frame, a, where) for a in attributes}
    for flag in optional:
        try:
            named[parse(flag).flag] = group_names(frame, parse(flag), where)
        except UserError as error:
            why = error.what.removesuffix(f" (--group {flag})").removesuffix(f" ({flag})")
            notes.append(f"no groups by {flag.partition(':')[0]}: {why}")
    notes += [unknown_note(flag, names, patient) for flag, names in named.items()]
    rows = Rows(
        frame["path"].to_numpy(dtype=object).astype(np.str_),
        np.arange(len(order)),
        patient,
        judged[order].astype(np.float32),
        named,
    )
    return Whole(
        source.name, source.kind, source.unit, source.classes, source.root.resolve(), rows,
        tuple(n for n in notes if n),
    )  # fmt: skip


def _inside(source: Source, split: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are in the split."""
    if split == ALL:
        return np.ones(len(source.frame), np.bool_)
    if "split" not in source.frame:
        raise UserError(
            "these data have no splits of their own", f"--split {split}", "Leave it out: all."
        )
    words = source.frame["split"].astype("string").str.strip().fillna("").to_numpy(dtype=object)
    if split not in set(words):
        known = sorted(set(words) - {""})
        raise UserError(
            "there is no such split", f"--split {split}", nearest(split, [*known, ALL])
        )
    inside: np.ndarray[tuple[int], np.dtype[np.bool_]] = words == split
    return inside


def _unlabelled_notes(
    source: Source, judged: Labels, order: np.ndarray, known: np.ndarray
) -> list[str]:
    """How many labels are missing, and how many of them the source calls uncertain."""
    notes = []
    if not known.all():
        notes.append(f"{int((~known).sum())} images without a known label were left out")
    if source.unsure is not None and source.unsure[order].any():
        notes.append(
            f"{int(source.unsure[order].sum())} uncertain labels are taken for unknown: no number "
            "is made of them"
        )
    return notes
