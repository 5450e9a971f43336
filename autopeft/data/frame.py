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
from autopeft.data.splits import SPLITS, UNCERTAIN, cells, make_splits, shared_patients, shares
from autopeft.data.task import Task, Unit
from autopeft.errors import UserError
from autopeft.evaluation import Kind
from autopeft.job import Rows

Labels = npt.NDArray[np.float32]
Names = npt.NDArray[np.str_]
Bools = npt.NDArray[np.bool_]

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
        unsure: which labels [N, C] the source calls uncertain; None = none.
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
    unsure: Bools | None = None
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
    paths = listed_paths(source)
    label, judged = source.label, source.judged if source.judged is not None else source.label
    unsure = np.zeros(label.shape, np.bool_) if source.unsure is None else source.unsure
    order = np.argsort(np.array(paths, dtype=object), kind="stable")
    known = np.any(np.isfinite(label) | np.isfinite(judged), axis=1, keepdims=False)
    order, everyone = order[known[order] | unsure[order].any(1)], len(order)
    known = known[order]  # whether any policy knows a label: who takes part in splitting
    frame = source.frame.iloc[order].reset_index(drop=True).assign(path=np.array(paths)[order])
    label, judged, unsure = label[order], judged[order], unsure[order]
    _refuse_one_class(judged, source, where)

    attributes = [parse(flag) for flag in groups]
    refuse_repeated(attributes, frame, where)
    named = {a.flag: group_names(frame, a, where) for a in attributes}
    patient = frame["patient_id"].to_numpy(dtype=object).astype(np.str_)
    strata = cells(judged[known], [names[known] for names in named.values()])
    split = np.full(len(order), "", "U32")
    split[known] = _splits(
        frame[known].reset_index(drop=True), patient[known], strata, source, split_seed, notes
    )
    final = np.where((split == "train")[:, None], label, judged)
    empty = np.isnan(final).all(1)
    waiting = empty & unsure.any(1) & _of_test(frame, patient, split, source, split_seed)
    split[waiting] = UNCERTAIN
    rest = np.flatnonzero(~empty | waiting)
    notes += _left_out_notes(everyone - len(rest), int(waiting.sum()))

    path = frame["path"].to_numpy(dtype=object).astype(np.str_)[rest]
    left = {flag: names[rest] for flag, names in named.items()}
    rows = Rows(path, np.arange(len(rest)), patient[rest], final[rest].astype(np.float32), left)
    notes += [unknown_note(flag, names, patient[rest]) for flag, names in left.items()]
    task = Task(
        source.name, source.kind, source.unit, source.classes, source.root.resolve(),
        tuple(named), tuple(n for n in notes if n), source.external, rows, split[rest],
        unsure[rest],
        policy_differs=not np.array_equal(final[rest], judged[rest], equal_nan=True),
    )  # fmt: skip
    return _check_splits(task, where)


def listed_paths(source: Source) -> list[str]:
    """Paths of a source's images below its root, each of them there, and there once.

    Raises:
        UserError: they are not, or there is none.
    """
    if not len(source.frame):
        fix = "Give a table with one row for each image."
        raise UserError("holds no rows", source.where, fix)
    paths = relative_to(source.root, source.frame["path"].tolist(), source.where)
    _refuse_duplicates(paths, source.where)
    check_exist(source.root, paths, source.where)
    return paths


def _of_test(
    frame: pd.DataFrame, patient: Names, split: Names, source: Source, seed: int
) -> Bools:
    """Whether a row's patient [N] is a test patient.

    Patients without any certain label took no part in splitting; they are dealt out here, by the
    same shares, so that the readings of uncertain labels are of test patients of every kind.
    """
    test = np.isin(patient, patient[split == "test"])
    alone = np.flatnonzero(~np.isin(patient, patient[split != ""]))
    if len(alone) and "split" in frame:
        given = _given(frame["split"], source)[alone]
        test[alone] = given == "test"
        alone = alone[given == "train"]
    if len(alone):
        parts = shares(len(np.unique(patient)))
        dealt = make_splits(patient[alone], np.ones((len(alone), 1), np.bool_), parts, seed)
        test[alone] = dealt == "test"
    return test


def _left_out_notes(dropped: int, waiting: int) -> list[str]:
    notes = []
    if dropped:
        notes.append(f"{dropped} images without a known label were left out")
    if waiting:
        notes.append(
            f"{waiting} images of test patients have uncertain labels only: no number is made of "
            "them but the readings of uncertain labels as 0 and as 1"
        )
    return notes


def _refuse_duplicates(paths: list[str], where: str) -> None:
    twice = pd.Series(paths)[pd.Series(paths).duplicated()].unique()
    if len(twice):
        raise UserError(
            f"{len(twice)} path(s) occur more than once, e.g. {', '.join(twice[:3])}",
            where,
            "Keep one row for each image.",
        )


def refuse_repeated(attributes: list[Attribute], frame: pd.DataFrame, where: str) -> None:
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


def unknown_note(flag: str, names: Names, patient: Names) -> str:
    """Who is in no group of an attribute; empty where everyone is in one."""
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
