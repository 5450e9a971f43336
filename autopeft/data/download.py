"""What the loaders of downloaded data sets share: the folder, the labels asked for, the header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from autopeft.errors import UserError, nearest
from autopeft.settings import Settings


def find_folder(data_root: str | None, names: Sequence[str], dataset: str) -> Path:
    """The folder that holds a data set's table: ``--data-root``, or one folder below it.

    Args:
        data_root: the settings' ``--data-root``.
        names: spellings of the table's file name.
        dataset: name of the data set, for messages.

    Raises:
        UserError: no such folder, no table in it, or several below it.
    """
    table = " or ".join(names)
    if not data_root:
        raise UserError(
            f"{dataset} needs the folder of its download",
            "--data-root",
            f"Give the folder that holds {table}.",
        )
    root, where = Path(data_root), f"--data-root {data_root}"
    if not root.is_dir():
        raise UserError("there is no such folder", where, f"Give the one that holds {table}.")
    if any((root / name).is_file() for name in names):
        return root
    found = sorted({path.parent for name in names for path in root.glob(f"*/{name}")})
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{len(found)} folders below it hold {table}: {', '.join(p.name for p in found[:5])}",
            where,
            "Give one of them.",
        )
    raise UserError(
        f"holds no {table}, and neither does a folder in it", where, f"Is this {dataset}?"
    )


def choose_labels(
    asked: Sequence[str],
    known: Sequence[str],
    tasks: Mapping[str, tuple[str, ...]],
    default: str,
) -> tuple[str, ...]:
    """Label columns that ``--label`` means: names of labels, or one name of a task.

    Case, blanks and underscores do not matter.

    Raises:
        UserError: an unknown name (nearest offered), or one given twice.
    """
    spelled = {_plain(name): name for name in known}
    labels: list[str] = []
    for name in asked or (default,):
        if name in tasks and len(asked) <= 1:
            return tasks[name]
        if _plain(name) not in spelled:
            raise UserError(
                f"there is no label {name!r}", f"--label {name}", nearest(name, [*known, *tasks])
            )
        labels.append(spelled[_plain(name)])
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"label {twice[0]!r} was named twice", "--label")
    return tuple(labels)


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()


def refuse_columns(settings: Settings, dataset: str) -> None:
    """Refuses flags that only a CSV of the user's own needs.

    Raises:
        UserError: ``--patient-column`` or ``--split-column`` was given.
    """
    for flag in ("patient_column", "split_column"):
        if getattr(settings, flag):
            raise UserError(
                f"{dataset} brings its own patients and splits",
                f"--{flag.replace('_', '-')} {getattr(settings, flag)}",
                "Leave it out, or give the table itself as --dataset FILE.csv.",
            )


def require_columns(frame: pd.DataFrame, wanted: Sequence[str], where: str) -> None:
    """Refuses a table whose header is not the published one.

    Raises:
        UserError: names the absent columns and shows the header that was found.
    """
    absent = [name for name in wanted if name not in frame.columns]
    if absent:
        raise UserError(
            f"lacks {', '.join(map(repr, absent))}; its header is "
            f"{', '.join(map(str, frame.columns[:25]))}",
            where,
            "Give the table as it was downloaded.",
        )


def require_values(values: pd.Series[Any], known: Sequence[str], where: str) -> None:
    """Refuses a column with a value that its publisher does not document.

    Args:
        values: text, blank = "".
        known: the documented values.
        where: file and column, for the message.

    Raises:
        UserError: shows the value counts of the whole column.
    """
    strange = ~values.isin(list(known))
    if strange.any():
        counts = ", ".join(f"{v!r} x {n}" for v, n in values.value_counts().head(8).items())
        raise UserError(
            f"{int(strange.sum())} unknown value(s) such as {values[strange].iloc[0]!r}; the "
            f"column holds {counts}",
            where,
            f"Known are {', '.join(repr(v) for v in known)}.",
        )
