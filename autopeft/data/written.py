"""A task as a finished run keeps it: ``splits.csv`` and a few words, so that it can be rebuilt.

Every label and group of every row is in the table, those of the test patients too: it is written
after the opening, for the owner's eyes only, and it needs neither images nor the data set's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from autopeft.data.splits import UNCERTAIN
from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.job import Rows

_LABEL, _GROUP = "label:", "group:"  # before the name of a class or an attribute, in a header
_UNSURE = "u"  # in place of a label that the source calls uncertain
_WORDS = ("name", "kind", "unit")
_LISTS = ("classes", "attributes", "notes", "external")


def about(task: Task) -> dict[str, Any]:
    """What the table does not say of the task; counts and names, no patient id and no path."""
    words = {name: getattr(task, name) for name in _WORDS}
    # Left out where false: most tasks have one set of labels.
    differs = {"policy_differs": True} if task.policy_differs else {}
    return {**words, **{name: list(getattr(task, name)) for name in _LISTS}, **differs}


def table(task: Task) -> pd.DataFrame:
    """``path, patient_id, split``, each label and each group of every row, in the task's order.

    Raises:
        RuntimeError: the test rows are still sealed.
    """
    frame = task.split_table()
    label = np.full((len(frame), len(task.classes)), "", dtype=object)
    groups = {a: np.full(len(frame), "", dtype=object) for a in task.attributes}
    for split in frame["split"].unique():
        rows = task.rows(split)
        assert rows.label is not None
        label[rows.index] = _cells(rows.label)
        if split in ("test", UNCERTAIN, *task.external):
            label[rows.index] = np.where(task.unsure(split), _UNSURE, label[rows.index])
        for attribute, names in rows.groups.items():
            groups[attribute][rows.index] = names
    for c, name in enumerate(task.classes):
        frame[f"{_LABEL}{name}"] = label[:, c]
    for attribute in task.attributes:
        frame[f"{_GROUP}{attribute}"] = groups[attribute]
    return frame


def read(about: Mapping[str, Any], path: Path) -> Task:
    """The task of a finished run.

    Args:
        about: what ``about`` gave.
        path: the table's file.

    Raises:
        UserError: the file is missing, or is no such table.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False)
        classes, attributes = tuple(about["classes"]), tuple(about["attributes"])
        text = frame[[f"{_LABEL}{c}" for c in classes]].to_numpy(dtype=object)
        unsure = text == _UNSURE
        label = np.where(unsure | (text == ""), "nan", text).astype(np.float32)
        columns = {a: _strings(frame[f"{_GROUP}{a}"]) for a in attributes}
        rows = Rows(
            _strings(frame["path"]), np.arange(len(frame)), _strings(frame["patient_id"]), label,
            columns,
        )  # fmt: skip
        notes, external = tuple(about["notes"]), tuple(about["external"])
        return Task(
            about["name"], about["kind"], about["unit"], classes, Path(), attributes, notes,
            external, rows, _strings(frame["split"]), unsure,
            policy_differs=bool(about.get("policy_differs", False)),
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
    except (KeyError, ValueError, AssertionError) as error:
        text_ = " ".join(str(error).split())
        raise UserError(f"is not the table that a run wrote ({text_})", str(path)) from None


def _cells(label: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    plain = np.where(label == 1, "1", np.where(label == 0, "0", ""))
    other = ~np.isnan(label) & (plain == "")
    found = plain.astype(object)
    found[other] = [f"{v:.9g}" for v in label[other]]
    return found


def _strings(column: pd.Series[Any]) -> npt.NDArray[np.str_]:
    return column.to_numpy(dtype=object).astype(np.str_)
