"""`nih`: NIH ChestX-ray14 as it lies on the disk after the download (Wang et al., CVPR 2017)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autopeft.data.download import (
    choose_labels,
    find_folder,
    refuse_columns,
    require_columns,
    require_values,
)
from autopeft.data.frame import Labels, Source, build_task
from autopeft.data.groups import distinct, numeric, sex_words
from autopeft.data.options import read_options
from autopeft.data.splits import shared_patients
from autopeft.data.table import read_csv
from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.settings import Settings

NO_FINDING = "No Finding"
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
    "Hernia",
)  # fmt: skip
LABELS = (*FINDINGS, NO_FINDING)
TASKS = {"nih14": FINDINGS, "no_finding": (NO_FINDING,)}
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
# The header's last names hold commas (OriginalImage[Width,Height]); these are whole.
_COLUMNS = (
    "Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender",
    "View Position",
)  # fmt: skip
_OPTIONS = {"view": "all", "split": "auto"}
_CHOICES = {"view": ("all", "pa", "ap"), "split": ("auto", "official", "own")}
_DEPTH = 3  # images/, or images_001/images/ in the copy on Kaggle


def load_nih(settings: Settings, cache: Path) -> Task:
    """NIH ChestX-ray14 as a task, see ``nih_source``."""
    return build_task(*nih_source(settings, cache), settings.split_seed)


def nih_source(settings: Settings, cache: Path) -> tuple[Source, tuple[str, ...]]:
    """NIH ChestX-ray14 and its groups.

    Options: ``view`` (all, pa, ap), ``split`` (auto, official, own): ``auto`` takes the official
    test list if it is there, covers the table and shares no patient with the other list.
    Groups: sex, age:60. There is no race.

    Args:
        settings: data_root (the folder of ``Data_Entry_2017_v2020.csv``, or its parent), label
            (``nih14``, ``no_finding`` or names of findings), group, data_option, split_seed.
        cache: not used; every loader takes it.

    Raises:
        UserError: a file, column or value is not as published, or images are missing.
    """
    options = read_options(settings.data_option, _OPTIONS, "nih", _CHOICES)
    refuse_columns(settings, "nih")
    classes = choose_labels(settings.label, LABELS, TASKS, "nih14")
    folder = find_folder(settings.data_root, TABLES, "nih")
    csv = next(folder / name for name in TABLES if (folder / name).is_file())
    where = str(csv)
    # A comma at the end of a row must not shift the columns.
    raw = read_csv(csv, index_col=False)
    require_columns(raw, _COLUMNS, where)
    raw = raw[list(_COLUMNS)].fillna("")
    require_values(raw["View Position"], ("PA", "AP"), f"{where} (column View Position)")
    raw, notes = _in_view(raw, options["view"])
    frame = pd.DataFrame(
        {
            "path": _located(folder, raw["Image Index"].tolist(), where),
            "patient_id": raw["Patient ID"].str.strip().str.lstrip("0"),
            "sex": distinct(raw["Patient Gender"], lambda v: sex_words(v, where)),
            "age": numeric(raw["Patient Age"], raw["Image Index"], "Patient Age", where),
            "view": raw["View Position"],
        }
    )
    _refuse_blank_patients(frame, where)
    split, split_note = _official(raw, frame["patient_id"], folder, options["split"])
    if split is not None:
        frame = frame.assign(split=split)
    notes += [split_note, _age_note(frame["age"])]
    if NO_FINDING in classes:
        notes.append("No Finding: the positive class is the healthy one")
    source = Source(
        name="nih",
        where=where,
        root=folder,
        kind="binary" if len(classes) == 1 else "multilabel",
        unit="patient",
        classes=classes,
        frame=frame,
        label=finding_labels(raw["Finding Labels"], classes, where),
        notes=tuple(note for note in notes if note),
    )
    return source, settings.group or ("sex", "age:60")


def finding_labels(values: pd.Series[Any], classes: tuple[str, ...], where: str) -> Labels:
    """Labels [N, C] of cells such as ``Edema|Effusion``; the names are whole words between bars.

    Raises:
        UserError: a cell holds a name that is no finding; shows the value counts.
    """
    place, found = pd.factorize(values)
    named = [{part.strip() for part in str(cell).split("|")} for cell in found]
    known = {*FINDINGS, NO_FINDING}
    if not all(names <= known for names in named):
        words = values.str.split("|").explode().str.strip()
        require_values(words, sorted(known), f"{where} (column Finding Labels)")
    table = np.array([[name in names for name in classes] for names in named], np.float32)
    label: Labels = table[place]
    return label


def _in_view(raw: pd.DataFrame, view: str) -> tuple[pd.DataFrame, list[str]]:
    if view == "all":
        return raw, []
    kept = raw[raw["View Position"] == view.upper()].reset_index(drop=True)
    return kept, [f"{len(raw) - len(kept)} images of the other view left out (view={view})"]


def _located(folder: Path, names: list[str], where: str) -> list[str]:
    """Path below ``folder`` of each image, from one scan by file name.

    Raises:
        UserError: images that are nowhere; counts them and names the first five.
    """
    wanted = set(names)
    places: dict[str, str] = {}
    for place, files in _folders(folder):
        for name in wanted.intersection(files):
            places.setdefault(name, f"{place}/{name}" if place else name)
    absent = [name for name in names if name not in places]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(names)} images are in no folder below {folder}, e.g. "
            f"{', '.join(absent[:5])}",
            where,
            "Unpack all image archives there (images/, or images_001/images/ and so on), or take "
            "the rows out of the table.",
        )
    return [places[name] for name in names]


def _folders(root: Path) -> Iterable[tuple[str, list[str]]]:
    """Folders below ``root`` in order, relative to it, and the names of the files in them."""
    for place, inner, files in os.walk(root, followlinks=True):
        relative = os.path.relpath(place, root)
        depth = 0 if relative == "." else relative.count("/") + 1
        inner[:] = sorted(inner) if depth < _DEPTH else []
        yield ("" if relative == "." else relative), files


def _refuse_blank_patients(frame: pd.DataFrame, where: str) -> None:
    blank = frame["patient_id"] == ""
    if blank.any():
        raise UserError(
            f"column 'Patient ID' is blank in {int(blank.sum())} row(s)",
            where,
            "Every image needs a patient: splits are made by patient.",
        )


def _official(
    raw: pd.DataFrame, patient: pd.Series[Any], folder: Path, choice: str
) -> tuple[Any, str]:
    """The official train/test lists as a split [N], or None, and a note that names the split.

    Raises:
        UserError: ``split=official``, and the lists cannot be used.
    """
    own = "split: our own, by patient; numbers on the official test list are not comparable"
    if choice == "own":
        return None, own
    lists = {split: folder / name for split, name in _LISTS.items()}
    absent = [path.name for path in lists.values() if not path.is_file()]
    reason = f"{' and '.join(absent)} not found" if absent else ""
    if not reason:
        members = {split: set(path.read_text().split()) for split, path in lists.items()}
        index = raw["Image Index"]
        both = members["train"] & members["test"]
        in_train, in_test = (index.isin(list(members[s])).to_numpy(np.bool_) for s in _LISTS)
        neither = int((~(in_train | in_test)).sum())
        split = np.where(in_test, "test", "train")
        shared = len(shared_patients(patient.to_numpy(dtype=object).astype(np.str_), split))
        if both:
            reason = f"{len(both)} images are in both lists"
        elif neither:
            reason = f"{neither} images of the table are in no list"
        elif shared:
            reason = f"{shared} patients are in both lists"
        else:
            return split, (
                f"split: the official test list ({int(in_test.sum())} images); search and confirm "
                "cut by patient from the official train_val list"
            )
    if choice == "official":
        raise UserError(
            f"the official lists cannot be used: {reason}",
            "--data-option split=official",
            f"Put {' and '.join(_LISTS.values())} beside the table, or take split=own.",
        )
    return None, f"{own} ({reason})"


def _age_note(age: pd.Series[Any]) -> str:
    odd = int(((age <= 0) | (age > 120)).sum())
    return f"{odd} ages of 0 or above 120 taken as missing; 0 may be an infant" if odd else ""
