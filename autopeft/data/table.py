"""`table`: any CSV with one row an image, and the images beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autopeft.data.frame import Labels, Source, build_task
from autopeft.data.groups import find_column, parse
from autopeft.data.options import read_options
from autopeft.data.patients import patient_ids
from autopeft.data.task import Task, count_patients
from autopeft.errors import UserError, nearest
from autopeft.evaluation import Kind
from autopeft.settings import Settings

_PATH = ("path", "image", "filename", "file", "image_path", "file_name", "image_index")
_PATIENT = (
    "patient_id",
    "patient",
    "patientid",
    "subject_id",
    "subject",
    "patient id",
    "person_id",
)
_MOST_CLASSES = 50
_FEWEST = 10  # patients of a class, and rows of a value that is not taken for a typing error
_RAREST = 0.01  # share of rows below which a value beside 0 and 1 is taken for one
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def load_table(settings: Settings, cache: Path) -> Task:
    """A task from ``--dataset FILE.csv``, see ``table_source``.

    Raises:
        UserError: as ``table_source``; a class that cannot be learnt.
    """
    source, groups = table_source(settings, cache)
    if source.kind == "multiclass":
        classes, patient = source.classes, source.frame["patient_id"]
        _refuse_typing_error(classes, source.label, source.frame["path"], source.where)
        _refuse_rare(classes, source.label, patient, source.where)
    return build_task(source, groups, settings.split_seed)


def table_source(settings: Settings, cache: Path) -> tuple[Source, tuple[str, ...]]:
    """The rows of ``--dataset FILE.csv`` and its groups.

    Options: ``path`` (the column with image paths).

    Args:
        settings: dataset, data_root, label, group, patient_column, split_column, data_option.
        cache: not used; every loader takes it.

    Raises:
        UserError: the table or its images are not as they should be.
    """
    csv = Path(settings.dataset)
    options = read_options(settings.data_option, {"path": ""}, "a table")
    frame = read_csv(csv)
    root = Path(settings.data_root) if settings.data_root else csv.parent
    if not root.is_dir():
        raise UserError("there is no such folder", f"--data-root {root}")
    return frame_source(frame, settings, root, str(csv), options["path"]), settings.group


def frame_source(
    frame: pd.DataFrame, settings: Settings, root: Path, where: str, path_column: str = ""
) -> Source:
    """The canonical frame of a table (see ``Source``).

    Args:
        frame: the table as read, all cells as they stand.
        settings: see ``table_source``.
        root: folder of the images.
        where: the file, for messages.
        path_column: column of the paths; empty = found by its name.
    """
    if not len(frame):
        raise UserError("holds no rows", where, "Give a table with one row for each image.")
    path = _column(frame, path_column, _PATH, "--data-option path=", "image paths", where)
    kind, classes, label, notes = read_labels(frame, settings.label, where)
    patient, unit, patient_note = _patients(frame, settings.patient_column, path, where)
    out = frame.drop(columns=[c for c in ("split", "patient_id", "path") if c in frame])
    out = out.assign(path=frame[path].astype("string").fillna(""), patient_id=patient)
    if settings.split_column:
        column = find_column(settings.split_column, frame.columns, "--split-column", where)
        out = out.assign(split=frame[column])
    _refuse_label_groups(frame, settings, where)
    name = Path(where).stem
    if name in ("labels", "train", "data", "table"):
        name = Path(where).resolve().parent.name
    notes = [*notes, patient_note] if patient_note else notes
    return Source(
        name, where, root, kind, "image" if unit == "image" else "patient", classes, out, label,
        notes=tuple(notes),
    )  # fmt: skip


def read_csv(path: Path, **kwargs: Any) -> pd.DataFrame:
    """Reads a CSV, each failure as one clear line.

    Raises:
        UserError: no such file, empty, or not a CSV.
    """
    if path.is_dir():
        raise UserError("is a folder, not a CSV", str(path), "Give the CSV file itself.")
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.csv")) if path.parent.is_dir() else []
        fix = nearest(path.name, near) if near else "Check the path."
        raise UserError("there is no such CSV", str(path), fix)
    try:
        # Ids such as 00000013 stay text, and the word "None" is not a blank.
        separator = "\t" if path.suffix == ".tsv" else ","
        header = pd.read_csv(path, sep=separator, nrows=0).columns
        for mark, what in ((";", "semicolons"), ("\t", "tabs")):
            if len(header) == 1 and mark in str(header[0]):
                raise UserError(f"is separated by {what}", str(path), "Save it with commas.")
        names = pd.read_csv(path, sep=separator, nrows=1, header=None, dtype="string").iloc[0]
        twice = sorted(names[names.duplicated()].dropna())
        if twice:
            fix = "Leave one of them."
            raise UserError(f"has several columns named {twice[0]!r}", str(path), fix)
        frame: pd.DataFrame = pd.read_csv(
            path, sep=separator, dtype="string", keep_default_na=False, na_values=[""], **kwargs
        )
    except pd.errors.EmptyDataError:
        raise UserError("is empty", str(path), "Write a header and one row an image.") from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", str(path), "Save it as CSV in UTF-8.") from None
    except (pd.errors.ParserError, OSError) as error:
        text = " ".join(str(error).split())
        fix = "Each row needs as many cells as the header has columns."
        raise UserError(f"cannot be read as CSV ({text})", str(path), fix) from None
    return frame.rename(columns=lambda c: str(c).strip().removeprefix("\ufeff"))


def read_labels(
    frame: pd.DataFrame, names: Sequence[str], where: str
) -> tuple[Kind, tuple[str, ...], Labels, list[str]]:
    """Kind, classes, labels [N, C] and notes of the label columns.

    One column of 0, 1 and blanks is binary; one column of words, or of more than two whole
    numbers, is multiclass (classes sorted); several columns of 0, 1 and blanks are multilabel.

    Raises:
        UserError: no such column, or cells that are neither.
    """
    if not names:
        if "label" not in frame.columns:
            offer = ", ".join(map(str, frame.columns[:20]))
            raise UserError("no label column was named", where, f"Add --label, one of: {offer}")
        names = ("label",)
    columns = [find_column(n, frame.columns, f"--label {n}", where) for n in names]
    repeated = sorted({c for c in columns if columns.count(c) > 1})
    if repeated:
        raise UserError(f"label {repeated[0]!r} was named twice", "--label")
    if len(columns) == 1 and not _is_binary(frame[columns[0]]):
        return _multiclass(frame[columns[0]], columns[0], where)
    label = np.stack([_binary(frame[c], c, where) for c in columns], axis=1)
    kind: Kind = "binary" if len(columns) == 1 else "multilabel"
    return kind, tuple(columns), label, []


def _cells(values: pd.Series[Any]) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """A label column as numbers (words as NaN) and as stripped text ("" where blank)."""
    text = values.astype("string").str.strip().fillna("")
    text = text.mask(text.str.lower().isin(("nan", "na")), "")
    numbers = pd.to_numeric(text, errors="coerce").astype("float64")
    return numbers.fillna(text.str.lower().map(_WORDS).astype("float64")), text


def _is_binary(values: pd.Series[Any]) -> bool:
    numbers, text = _cells(values)
    known = numbers[text != ""]
    return bool(known.isin((0.0, 1.0)).all())


def _binary(values: pd.Series[Any], column: str, where: str) -> Labels:
    numbers, text = _cells(values)
    bad = (text != "") & ~numbers.isin((0.0, 1.0))
    if bad.any():
        _refuse_label(text[bad], column, where)
    return numbers.to_numpy(np.float32)


def _multiclass(
    values: pd.Series[Any], column: str, where: str
) -> tuple[Kind, tuple[str, ...], Labels, list[str]]:
    """One-hot labels of a column of words or whole numbers."""
    numbers, text = _cells(values)
    filled = text != ""
    known, words = numbers[filled], text[filled]
    all_numbers = bool(known.notna().all())
    whole = all_numbers and bool(((known == known.round()) & (known >= 0)).all())
    if all_numbers and (not whole or known.nunique() < 3):
        _refuse_label(words[~known.isin((0.0, 1.0))], column, where)
    if not all_numbers and known.notna().any():
        fix_me = known.isna() if known.isin((0.0, 1.0)).any() else known.notna()
        _refuse_label(words[fix_me], column, where)
    if whole:
        classes = [f"{v:g}" for v in sorted(known.unique())]
        text = numbers.map(lambda v: "" if np.isnan(v) else f"{v:g}").astype("string")
    else:
        classes = sorted(words.unique())
    if len(classes) > _MOST_CLASSES:
        raise UserError(
            f"label column {column!r} holds {len(classes)} different values",
            where,
            f"At most {_MOST_CLASSES} classes are possible; is it the right column?",
        )
    label = (text.to_numpy(dtype=object)[:, None] == np.array(classes, object)).astype(np.float32)
    label[~filled.to_numpy()] = np.nan
    note = f"label {column!r}: {len(classes)} classes ({', '.join(classes)})"
    return "multiclass", tuple(classes), label, [note]


def _refuse_typing_error(
    classes: tuple[str, ...], label: Labels, paths: pd.Series[Any], where: str
) -> None:
    """A few other numbers in a column of 0 and 1 do not make a task of three classes."""
    if not {"0", "1"} <= set(classes):
        return
    other = np.array([name not in ("0", "1") for name in classes])
    hit = (label[:, other] == 1).any(1)
    rows, known = int(hit.sum()), int(np.isfinite(label).all(1).sum())
    if rows < _FEWEST or rows < _RAREST * known:
        count = (label == 1).sum(0)
        counts = ", ".join(f"{c!r} x {n}" for c, n in zip(classes, count, strict=True))
        raise UserError(
            f"the label column holds 0 and 1, and {rows} other number(s), first at "
            f"{paths[hit].iloc[0]}: {counts}",
            where,
            "Correct these cells, or leave them blank for unknown.",
        )


def _refuse_rare(
    classes: tuple[str, ...], label: Labels, patient: pd.Series[Any], where: str
) -> None:
    """A class of a few patients cannot be learnt and scored in four splits."""
    _, who = np.unique(patient.to_numpy(dtype=object).astype(np.str_), return_inverse=True)
    count = {name: count_patients(who, label[:, c])[0] for c, name in enumerate(classes)}
    rare = [f"{name!r} has {n}" for name, n in count.items() if n < _FEWEST]
    if rare:
        raise UserError(
            f"{len(rare)} of {len(classes)} classes have fewer than {_FEWEST} patients: "
            f"{', '.join(rare[:5])}",
            where,
            "Merge them into other classes, or drop their rows; look for typing errors.",
        )


def _refuse_label_groups(frame: pd.DataFrame, settings: Settings, where: str) -> None:
    """Groups must exist, and must not be what is to be predicted."""
    labels = [find_column(n, frame.columns, "--label", where) for n in settings.label or ["label"]]
    for flag in settings.group:
        if find_column(parse(flag).column, frame.columns, f"--group {flag}", where) in labels:
            raise UserError(
                "the label cannot be a group: each group would hold one class",
                f"--group {flag}",
                "Drop this --group.",
            )


def _refuse_label(values: pd.Series[Any], column: str, where: str) -> None:
    counts = ", ".join(f"{v!r} x {n}" for v, n in values.value_counts().head(4).items())
    raise UserError(
        f"label column {column!r} holds {len(values)} value(s) other than 0 and 1: {counts}",
        where,
        "Write 1, 0, or blank for unknown; or words in one column for several classes.",
    )


def _column(
    frame: pd.DataFrame, name: str, usual: Sequence[str], flag: str, what: str, where: str
) -> str:
    """The column that was named, or the first of the usual names."""
    if name:
        return find_column(name, frame.columns, f"{flag}{name}", where)
    lower = {str(c).lower(): str(c) for c in reversed(list(frame.columns))}
    for candidate in usual:
        if candidate in lower:
            return lower[candidate]
    columns = ", ".join(map(str, frame.columns[:20]))
    raise UserError(
        f"no column with {what} was found", where, f"Name it: {flag}, one of {columns}"
    )


def _patients(
    frame: pd.DataFrame, name: str | None, path: str, where: str
) -> tuple[pd.Series[Any], str, str]:
    """Patient ids, the unit, and a note where there are none."""
    if name == "none":
        note = (
            "no patient column was given: every image is taken for a patient of its own, so "
            "images of one patient may lie in train and test, and intervals are too narrow"
        )
        return frame[path].astype("string").fillna(""), "image", note
    try:
        column = _column(frame, name or "", _PATIENT, "--patient-column ", "patient ids", where)
    except UserError as error:
        if name:
            raise
        fix = f"{error.fix}; or, if each image is another patient, --patient-column none."
        raise UserError(error.what, where, fix) from None
    if column == path:
        fix = "Name the column of patient ids; if each image is another patient, none."
        raise UserError(f"{column!r} holds the images, not patients", "--patient-column", fix)
    return patient_ids(frame[column], column, where), "patient", ""
