"""Which of the new data's labels is which of the adapter's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.data.frame import Labels
from autopeft.data.whole import Whole
from autopeft.errors import UserError, nearest
from autopeft.evaluation import Kind


@dataclass(frozen=True)
class Mapped:
    """The adapter's classes in the words of the new data.

    Attributes:
        theirs: class of the adapter -> label of the data.
        unmapped: classes of the adapter that nothing can be said about.
        target: labels [N, C] of the adapter's classes: 0, 1, or NaN.
        notes: what a reader must know.
    """

    theirs: Mapping[str, str]
    unmapped: tuple[str, ...]
    target: Labels
    notes: tuple[str, ...]


def check_map(given: Mapping[str, str], classes: Sequence[str]) -> None:
    """Refuses a label map that names a class that the adapter does not have.

    Raises:
        UserError: names it, and the nearest one.
    """
    for ours, theirs in given.items():
        if ours not in classes:
            where = f"--label-map {ours}={theirs}"
            raise UserError(f"the adapter has no class {ours!r}", where, nearest(ours, classes))


def asked_labels(
    given: Sequence[str], mapping: Mapping[str, str], classes: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """The labels that are read: what was named, else what the adapter's classes are called there.

    Args:
        given: ``--label`` flags.
        mapping: ``--label-map``, class of the adapter -> label of the data.
        classes: of the adapter.
        known: names of the labels (or columns) that the data have; empty = not known.
    """
    if given:
        return tuple(given)
    spelled = {plain(name): name for name in known}
    wanted = [mapping.get(c, spelled.get(plain(c), "")) for c in classes]
    return tuple(dict.fromkeys(name for name in wanted if name))


def map_labels(
    whole: Whole, classes: Sequence[str], kind: Kind, given: Mapping[str, str]
) -> Mapped:
    """Finds each class's label and turns the labels into targets of the adapter's classes.

    Args:
        whole: the new data.
        classes: of the adapter.
        kind: of the adapter.
        given: ``--label-map``.

    Raises:
        UserError: a label of the map is not there, no class has one, or two classes of which
            exactly one is right have the same.
    """
    spelled = {plain(name): name for name in whole.classes}
    theirs: dict[str, str] = {}
    for ours in classes:
        name = spelled.get(plain(given.get(ours, ours)))
        if name is not None:
            theirs[ours] = name
        elif ours in given:
            where = f"--label-map {ours}={given[ours]}"
            what = f"the data have no label {given[ours]!r}"
            raise UserError(what, where, nearest(given[ours], whole.classes))
    if not theirs:
        raise UserError(
            f"no class of the adapter ({', '.join(classes)}) is a label of the data "
            f"({', '.join(whole.classes)})",
            "--label-map",
            f"Say which is which, e.g. --label-map {_quoted(classes[0])}="
            f"{_quoted(whole.classes[0])}.",
        )
    if kind == "multiclass":
        _refuse_shared(theirs)
    unmapped = tuple(c for c in classes if c not in theirs)
    if kind == "multiclass" and whole.kind == "multiclass":
        return _one_of_several(whole, classes, theirs, unmapped)
    assert whole.rows.label is not None
    target = np.full((len(whole.rows), len(classes)), np.nan, np.float32)
    for c, ours in enumerate(classes):
        if ours in theirs:
            target[:, c] = whole.rows.label[:, whole.classes.index(theirs[ours])]
    notes = []
    if whole.kind == "multiclass":
        notes.append("each label is one class of the data against all the others")
    return Mapped(theirs, unmapped, target, tuple(notes))


def _refuse_shared(theirs: Mapping[str, str]) -> None:
    """Of several classes exactly one is right: no two can be the same label."""
    for name in theirs.values():
        same = [ours for ours, label in theirs.items() if label == name]
        if len(same) > 1:
            raise UserError(
                f"the adapter's classes {', '.join(same)} are all the label {name!r}, and of its "
                "classes exactly one is right",
                "--label-map",
                "Give each class a label of its own.",
            )


def _one_of_several(
    whole: Whole, classes: Sequence[str], theirs: Mapping[str, str], unmapped: tuple[str, ...]
) -> Mapped:
    """Exactly one class is right, so an image of a class that the adapter lacks is left out."""
    assert whole.rows.label is not None
    columns = [whole.classes.index(name) for name in theirs.values()]
    foreign = (np.delete(whole.rows.label, columns, axis=1) == 1).any(axis=1)
    target = np.zeros((len(whole.rows), len(classes)), np.float32)
    for ours, column in zip(theirs, columns, strict=True):
        target[:, list(classes).index(ours)] = whole.rows.label[:, column]
    target[foreign | np.isnan(whole.rows.label).any(axis=1)] = np.nan
    others = [c for c in whole.classes if c not in theirs.values()]
    notes = []
    if foreign.any():
        notes.append(
            f"{int(foreign.sum())} images of classes that the adapter does not have "
            f"({', '.join(others)}) were left out"
        )
    return Mapped(theirs, unmapped, target, tuple(notes))


def plain(name: str) -> str:
    """A name without case, blanks and underscores."""
    return name.lower().replace("_", " ").strip()


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name
