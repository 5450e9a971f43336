"""From the canonical frame that every loader makes to a Task: the checks that all share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from autopeft.data.disk import check_exist, relative_to
from autopeft.data.groups import Attribute, find_column, group_names, parse
from autopeft.data.splits import SPLITS, cells, make_splits, shared_patients, shares
from autopeft.data.task import Task, Unit
from autopeft.errors import UserError
from autopeft.evaluation import Kind
from autopeft.job import Rows

Labels = npt.NDArray[np.float32]
Names = npt.NDArray[np.str_]

_GIVEN = {"train": "train", "training": "train", "search": "search", "confirm": "confirm"}
_GIVEN |= {"val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val"}
_GIVEN |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Source:
    """What a loader hands over: one row an image, words instead of codes.

    Attributes:
        name: the task's name.
        where: the file named in messages.
        root: folder of the images.
        kind: see ``Task``.
        unit: see ``Task``.
        classes: names of the C labels.
        frame: columns ``path``, ``patient_id`` (str), the group attributes, and optionally
            ``split`` (the data set's own words).
        label: labels under the training policy, float32 [N, C], NaN = ignore.
        judged: labels for evaluated splits (NaN where uncertain); None = the same.
        notes: what a reader of the report must know.
        external: names in ``split`` that are external checks.
    """

    name: str
    where: str
    root: Path
    kind: Kind
    unit: Unit
    classes: tuple[str, ...]
    frame: pd.DataFrame
    label: Labels
    judged: Labels | None = None
    notes: tuple[str, ...] = ()
    external: tuple[str, ...] = ()


def build_task(source: Source, groups: Sequence[str], split_seed: int) -> Task:
    """Checks a source and splits it.

    Args:
        source: what a loader read.
        groups: ``--group`` flags.
        split_seed: the settings' ``--split-seed``.

    Raises:
        UserError: see the functions below; nothing has been written.
    """
    where, notes = source.where, list(source.notes)
    if not len(source.frame):
        raise UserError("holds no rows", where, "Give a table with one row for each image.")
    paths = relative_to(source.root, source.frame["path"].tolist(), where)
    _refuse_duplicates(paths, where)
    check_exist(source.root, paths, where)

    label = source.label
    judged = label if source.judged is None else source.judged
    order = np.argsort(np.array(paths, dtype=object), kind="stable")
    labeled = np.any(np.isfinite(label) | np.isfinite(judged), axis=1, keepdims=False)
    kept = order[labeled[order]]
    frame = source.frame.iloc[kept].reset_index(drop=True).assign(path=np.array(paths)[kept])
    label, judged = label[kept], judged[kept]
    _refuse_one_class(judged, source, where)

    attributes = [parse(flag) for flag in groups]
    _refuse_repeated(attributes, frame, where)
    named = {a.flag: group_names(frame, a, where) for a in attributes}
    patient = frame["patient_id"].to_numpy(dtype=object).astype(np.str_)
    split = _splits(frame, patient, cells(judged, list(named.values())), source, split_seed, notes)
    final = np.where((split == "train")[:, None], label, judged)
    empty = np.isnan(final).all(1)
    dropped = len(order) - len(kept) + int(empty.sum())
    if dropped:
        notes.append(f"{dropped} images without a known label were left out")

    rest = np.flatnonzero(~empty)
    path = frame["path"].to_numpy(dtype=object).astype(np.str_)[rest]
    left = {flag: names[rest] for flag, names in named.items()}
    rows = Rows(path, np.arange(len(rest)), patient[rest], final[rest].astype(np.float32), left)
    notes += [_unknown_note(flag, names, patient[rest]) for flag, names in left.items()]
    task = Task(
        source.name, source.kind, source.unit, source.classes, source.root.resolve(),
        tuple(named), tuple(n for n in notes if n), source.external, rows, split[rest],
    )  # fmt: skip
    return _check_splits(task, where)


def _refuse_duplicates(paths: list[str], where: str) -> None:
    twice = pd.Series(paths)[pd.Series(paths).duplicated()].unique()
    if len(twice):
        raise UserError(
            f"{len(twice)} path(s) occur more than once, e.g. {', '.join(twice[:3])}",
            where,
            "Keep one row for each image.",
        )


def _refuse_repeated(attributes: list[Attribute], frame: pd.DataFrame, where: str) -> None:
    """One attribute under two spellings would count twice in every objective on groups."""
    seen: dict[tuple[str, float | None], str] = {}
    for a in attributes:
        key = (find_column(a.column, frame.columns, f"--group {a.flag}", where), a.cut)
        if key in seen:
            raise UserError(
                f"the same group as --group {seen[key]}", f"--group {a.flag}", "Name it once."
            )
        seen[key] = a.flag


def _refuse_one_class(label: Labels, source: Source, where: str) -> None:
    """A label that holds only one value cannot be learnt."""
    for c, name in enumerate(source.classes):
        positive, negative = int((label[:, c] == 1).sum()), int((label[:, c] == 0).sum())
        if not positive or not negative:
            raise UserError(
                f"label {name!r} has one class: {positive} positive, {negative} negative images",
                where,
                "Choose another --label, or add images of the other class.",
            )


def _unknown_note(flag: str, names: Names, patient: Names) -> str:
    unknown = names == "unknown"
    if not unknown.any():
        return ""
    return (
        f"{int(unknown.sum())} images of {len(np.unique(patient[unknown]))} patients have no "
        f"known {flag}: in no group of it, in everything else"
    )


def _splits(
    frame: pd.DataFrame, patient: Names, strata: Any, source: Source, seed: int, notes: list[str]
) -> Names:
    """Our own splits, or the given ones with what is missing cut from them."""
    if "split" not in frame:
        share = shares(len(np.unique(patient)))
        return make_splits(patient, strata, share, seed)
    split = _given(frame["split"], source)
    _refuse_shared(patient, split, frame, source)

    def cut(name: str, parts: dict[str, float]) -> None:
        here = np.flatnonzero(split == name)
        split[here] = make_splits(patient[here], strata[here], parts, seed)

    if (split == "val").any():
        cut("val", {"search": 0.5, "confirm": 0.5})
        notes.append("the given validation split was halved by patient into search and confirm")
    inside = ~np.isin(split, source.external)
    absent = [s for s in SPLITS[1:] if not (split == s).any()]
    if absent and (split == "train").any():
        share = shares(len(np.unique(patient[inside])))
        cut("train", {s: share[s] for s in ("train", *absent)})
        if set(absent) != set(SPLITS[1:]):
            notes.append(f"{', '.join(absent)} cut by patient from the given train split")
    return split


def _given(values: pd.Series[Any], source: Source) -> Names:
    """Given splits in our words."""
    text = values.astype("string").str.strip().str.lower().fillna("")
    known = _GIVEN | {name: name for name in source.external}
    words = text.map(known)
    if words.isna().any():
        counts = values.astype("string").fillna("(blank)").value_counts().head(8)
        raise UserError(
            "the split column holds " + ", ".join(f"{v!r} x {n}" for v, n in counts.items()),
            source.where,
            "Write train, search (or val), confirm or test in every row.",
        )
    return words.to_numpy(dtype=object).astype("U32")


def _refuse_shared(patient: Names, split: Names, frame: pd.DataFrame, source: Source) -> None:
    shared = shared_patients(patient, split)
    if len(shared):
        paths = [str(frame["path"].to_numpy()[np.argmax(patient == p)]) for p in shared[:3]]
        raise UserError(
            f"{len(shared)} {source.unit}(s) are in two of the given splits, e.g. those of "
            f"{', '.join(paths)}",
            source.where,
            "Give each patient one split"
            + (
                "; an official check must hold other patients than train."
                if source.external
                else ", or leave --split-column out: the splits are then made by patient."
            ),
        )


def _check_splits(task: Task, where: str) -> Task:
    """Each split has rows, and at least one class that can be scored."""
    notes = []
    for split in SPLITS:
        # Images, not patients: a patient with images of every class is one to score, too.
        images = task.count_images(split)
        lacking = [name for name, pair in images.items() if not all(pair)]
        if len(lacking) == len(images):
            counts = "; ".join(
                f"{name}: {positive} positive and {negative} negative images"
                for name, (positive, negative) in list(images.items())[:3]
            )
            raise UserError(
                f"the {split} split cannot be scored ({counts})",
                where,
                "More patients with images of both classes are needed, or another --split-seed.",
            )
        if lacking:
            notes.append(f"not scored in {split} (one class only): {', '.join(lacking)}")
    return replace(task, notes=(*task.notes, *notes))
