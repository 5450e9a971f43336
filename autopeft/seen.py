"""Did an earlier adapter train on patients whom this run means to keep unseen?"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from autopeft.data.task import Task
from autopeft.errors import UserError

_UP = 3  # folders between an adapter and its run's splits.csv: best/, baselines/NAME/


def check_seen(folder: Path, task: Task) -> str:
    """Refuses an adapter that was trained on this run's search, confirm, probe or test patients.

    Looked up in the ``splits.csv`` of the run that the adapter lies in: an adapter folder by
    itself names no patients, so that it can be given away.

    Args:
        folder: of the earlier adapter.
        task: of this run, split.

    Returns:
        What a reader has to know; empty when no patient was seen.

    Raises:
        UserError: some were.
    """
    place = next((p / "splits.csv" for p in _above(folder) if (p / "splits.csv").exists()), None)
    if place is None:
        return (
            "whether patients of this run trained the earlier adapter is not known: the run that "
            "it comes from is not beside it"
        )
    with place.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    trained = {row["patient_id"] for row in rows if row["split"] == "train"}
    here = task.split_table()
    held = set(here.patient_id[here.split != "train"].astype(str))
    # Patient 17 of another data set is somebody else.
    same = _task_name(folder) == task.name or set(here.path) & {row["path"] for row in rows}
    both = held & trained
    if same and both:
        raise UserError(
            f"{len(both)} of the {len(held)} {task.unit}s outside of this run's train split "
            "trained that adapter: every number would be too good",
            f"--init-adapter {folder}",
            "Split both runs alike (--split-column), or take an adapter of other patients.",
        )
    return ""


def _above(folder: Path) -> tuple[Path, ...]:
    return tuple(folder.resolve().parents)[:_UP]


def _task_name(folder: Path) -> str:
    try:
        found = json.loads((folder / "autopeft.json").read_text()).get("task", "")
    except (OSError, ValueError):
        return ""
    return str(found)
