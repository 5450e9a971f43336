"""`chexpert`: CheXpert, small or full, as it lies on the disk after the download.

``train.csv`` is split by patient into train, search, confirm and test. The official valid and test
sets are small and labelled by radiologists: external checks, opened at the end, never a split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from autopeft.data.chexpert_labels import (
    BLANKS,
    LABELS,
    NO_FINDING,
    POLICIES,
    TASKS,
    Codes,
    fill_blanks,
    judged_labels,
    policy_notes,
    rate_notes,
    read_codes,
    training_labels,
)
from autopeft.data.demographics import SHEETS, find_sheet, race_notes, read_sheet
from autopeft.data.download import (
    choose_labels,
    find_folder,
    refuse_columns,
    require_columns,
    require_values,
)
from autopeft.data.frame import Source, build_task
from autopeft.data.groups import (
    UNKNOWN,
    distinct,
    group_names,
    numeric,
    parse,
    sex_words,
)
from autopeft.data.options import read_options
from autopeft.data.table import read_csv
from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.settings import Settings

_OPTIONS = {"uncertain": "mixed", "blank": "zero", "view": "frontal", "demographics": ""}
_CHOICES = {
    "uncertain": tuple(POLICIES),
    "blank": BLANKS,
    "view": ("frontal", "pa", "ap", "all"),
}
_EXTERNAL = {"official_valid": ("valid.csv",), "official_test": ("test.csv", "test_labels.csv")}
_PEOPLE = ("Sex", "Age", "Frontal/Lateral", "AP/PA")  # absent from test_labels.csv
# The folder before it is CheXpert-v1.0-small, CheXpert-v1.0, or none in re-packagings.
_PATH = re.compile(r"(?:.*/)?((?:train|valid|test)/(patient\d+)/.+)")


@dataclass(frozen=True)
class _Part:
    """Images of one table under the chosen view.

    Attributes:
        frame: ``path, patient_id, sex, age, view``, and the user's own columns.
        codes: label -> codes [N].
        left_out: images of other views.
    """

    frame: pd.DataFrame
    codes: Mapping[str, Codes]
    left_out: int


def load_chexpert(settings: Settings, cache: Path) -> Task:
    """CheXpert as a task, see ``chexpert_source``."""
    return build_task(*chexpert_source(settings, cache), settings.split_seed)


def chexpert_source(settings: Settings, cache: Path) -> tuple[Source, tuple[str, ...]]:
    """CheXpert and its groups.

    Options: ``uncertain`` (mixed, ignore, ones, zeros, medpeft), ``blank`` (zero, ignore),
    ``view`` (frontal, pa, ap, all), ``demographics`` (the spreadsheet, where it does not lie
    beside ``train.csv``). Groups: sex, age:60, and race if the spreadsheet is there.

    Args:
        settings: data_root (the folder with ``train.csv``, or its parent), label (``chexpert5``,
            ``no_finding`` or names of the 14 labels), group, data_option, split_seed.
        cache: not used; every loader takes it.

    Raises:
        UserError: a file, column or value is not as published, or images are missing.
    """
    options = read_options(settings.data_option, _OPTIONS, "chexpert", _CHOICES)
    refuse_columns(settings, "chexpert")
    classes = choose_labels(settings.label, LABELS, TASKS, "chexpert5")
    folder = find_folder(settings.data_root, ("train.csv",), "chexpert")
    sheet = find_sheet(folder, options["demographics"])
    groups = settings.group or ("sex", "age:60", *(("race",) if sheet else ()))
    people = _people(groups, sheet, folder)

    csv = folder / "train.csv"
    train = _read_part(csv, classes, people, options["view"], _PEOPLE)
    checks, notes = _external(folder, classes, people, options["view"])
    source = _source(csv, classes, options, {"train": train, **checks})
    named = {g: group_names(train.frame, parse(g), str(csv)) for g in groups}
    notes = [*_view_notes(train, options["view"]), *source.notes, *notes]
    notes += rate_notes(train.codes, classes, named)
    if people is not None and sheet is not None:
        notes += race_notes(train.frame["race"], train.frame["race_raw"], sheet)
    return replace(source, notes=tuple(notes)), tuple(groups)


def _people(groups: Sequence[str], sheet: Path | None, folder: Path) -> pd.DataFrame | None:
    """The demographics spreadsheet, read only where a group by race is declared."""
    wanted = [g for g in groups if parse(g).column.lower() in ("race", "race_raw")]
    if not wanted:
        return None
    if sheet is None:
        raise UserError(
            f"race is in the demographics spreadsheet, and {SHEETS[0]} is not in {folder}",
            f"--group {wanted[0]}",
            "Put it there, name it with --data-option demographics=FILE, or drop this --group.",
        )
    return read_sheet(sheet)


def _read_part(
    csv: Path,
    classes: tuple[str, ...],
    people: pd.DataFrame | None,
    view: str,
    required: Sequence[str],
) -> _Part:
    """Reads ``train.csv`` or an official table."""
    where = str(csv)
    raw = read_csv(csv)
    require_columns(raw, ("Path", NO_FINDING, *classes, *required), where)
    if not len(raw):
        raise UserError("holds no rows", where, "Give the table as it was downloaded.")
    path, patient = _places(raw["Path"], where)
    for name in _PEOPLE:
        if name not in raw.columns:
            raw = raw.assign(**{name: pd.Series("", index=raw.index, dtype="string")})
    frame = raw.drop(columns=[*_PEOPLE, *(c for c in LABELS if c in raw), "Path"])
    frontal, words = _views(raw, path, where)
    frame = frame.assign(
        path=path,
        patient_id=patient,
        sex=distinct(raw["Sex"], lambda v: sex_words(v, f"{where} (column Sex)")),
        age=numeric(raw["Age"], path, "Age", where),
        view=words,
    )
    codes = {c: read_codes(raw[c], f"{where} (column {c})") for c in {*classes, NO_FINDING}}
    if people is not None:
        frame = _with_people(frame, people, where)
    kept = {"frontal": frontal, "all": np.ones(len(raw), np.bool_)}.get(view)
    kept = (words == view.upper()).to_numpy(np.bool_) if kept is None else kept
    frame = frame[kept].reset_index(drop=True)
    return _Part(frame, {c: v[kept] for c, v in codes.items()}, int((~kept).sum()))


def _places(paths: pd.Series[Any], where: str) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """Paths below the folder of ``train.csv``, and the patients in them."""
    found = [_PATH.fullmatch(path) for path in paths.fillna("").tolist()]
    strange = [i for i, match in enumerate(found) if match is None]
    if strange:
        raise UserError(
            f"{len(strange)} path(s) are not like train/patient00001/study1/view1_frontal.jpg, "
            f"e.g. {str(paths.iloc[strange[0]])!r}",
            where,
            "Give the table as it was downloaded.",
        )
    both = [match.groups() for match in found if match is not None]
    path, patient = (pd.Series(column, dtype=object) for column in zip(*both, strict=True))
    return path, patient


def _views(
    raw: pd.DataFrame, path: pd.Series[Any], where: str
) -> tuple[npt.NDArray[np.bool_], pd.Series[Any]]:
    """Whether an image is frontal [N], and its view in words: AP, PA, LL, RL, lateral or ""."""
    side = raw["Frontal/Lateral"].fillna("")
    if (side == "").any():
        name = path.str.extract(r"(frontal|lateral)[^/]*$")[0].fillna("").str.capitalize()
        side = side.mask(side == "", name)
    require_values(side, ("Frontal", "Lateral"), f"{where} (column Frontal/Lateral)")
    words = raw["AP/PA"].fillna("")
    require_values(words, ("AP", "PA", "LL", "RL", ""), f"{where} (column AP/PA)")
    frontal = (side == "Frontal").to_numpy(np.bool_)
    return frontal, words.mask(~frontal, "lateral")


def _with_people(frame: pd.DataFrame, people: pd.DataFrame, where: str) -> pd.DataFrame:
    """Race of each image's patient; sex and age only where the table has none."""
    row = people.index.get_indexer(pd.Index(frame["patient_id"]))
    if (row < 0).all():
        raise UserError(
            "no patient of this table is in the demographics spreadsheet",
            where,
            "Is it CheXpert's? Its column PATIENT must hold ids like patient00001.",
        )
    found = people.take(np.maximum(row, 0)).reset_index(drop=True)
    found = found.mask(pd.Series(row < 0))
    frame = frame.assign(race=found["race"].fillna(UNKNOWN), race_raw=found["race_raw"].fillna(""))
    if (frame["sex"] == UNKNOWN).all() and frame["age"].isna().all():
        frame = frame.assign(sex=sex_words(found["sex"], "the spreadsheet"), age=found["age"])
    return frame


def _external(
    folder: Path, classes: tuple[str, ...], people: pd.DataFrame | None, view: str
) -> tuple[dict[str, _Part], list[str]]:
    """The official valid and test sets that are there, and notes about them."""
    checks: dict[str, _Part] = {}
    notes: list[str] = []
    for name, files in _EXTERNAL.items():
        present = [folder / f for f in files if (folder / f).is_file()]
        if not present:
            continue
        images = folder / name.removeprefix("official_")
        labeled = [f for f in present if {NO_FINDING, *classes} <= set(read_csv(f, nrows=0))]
        if not images.is_dir() or not labeled:
            lacks = "labels for this task" if images.is_dir() else "images"
            notes.append(f"no external check {name}: its table is there without {lacks}")
            continue
        part = _read_part(labeled[0], classes, people, view, ())
        if not len(part.frame):
            notes.append(f"no external check {name}: it holds no image of the view {view}")
            continue
        checks[name] = part
        patients = part.frame["patient_id"].nunique()
        notes.append(
            f"external check {name}: {len(part.frame)} images of {patients} patients, labelled "
            "by radiologists; opened at the end"
        )
    return checks, notes


def _source(
    csv: Path, classes: tuple[str, ...], options: Mapping[str, str], parts: Mapping[str, _Part]
) -> Source:
    """All parts under one another, with the labels under the policy."""
    frame = pd.concat(
        [part.frame.assign(split=name) for name, part in parts.items()], ignore_index=True
    )
    codes = {
        c: np.concatenate([part.codes[c] for part in parts.values()])
        for c in {*classes, NO_FINDING}
    }
    blank = options["blank"]
    label = training_labels(codes, classes, options["uncertain"])
    judged = judged_labels(codes, classes)
    return Source(
        name="chexpert",
        where=str(csv),
        root=csv.parent,
        kind="binary" if len(classes) == 1 else "multilabel",
        unit="patient",
        classes=classes,
        frame=frame,
        label=fill_blanks(label, codes, classes, blank),
        judged=fill_blanks(judged, codes, classes, blank),
        unsure=np.stack([codes[c] == -1 for c in classes], axis=1),
        notes=tuple(policy_notes(classes, options["uncertain"], blank)),
        external=tuple(name for name in parts if name != "train"),
    )


def _view_notes(train: _Part, view: str) -> list[str]:
    if not train.left_out:
        return []
    return [f"{train.left_out} images of other views left out (--data-option view={view})"]
