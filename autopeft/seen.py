"""Did an earlier adapter train on patients whom this run, or this evaluation, takes for unseen?"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autopeft.data.splits import UNCERTAIN
from autopeft.data.task import Task
from autopeft.errors import UserError

_SAME = {UNCERTAIN: "test"}  # split of some images of test patients
_UP = 3  # folders between an adapter and its run's splits.csv: best/, baselines/NAME/


@dataclass(frozen=True)
class Record:
    """Who was in which split of the run that an adapter lies in.

    Attributes:
        run: folder of the run.
        task: name of the task that the adapter says it was trained on; may be empty.
        splits: patient id -> split.
        paths: the images of that run.
    """

    run: Path
    task: str
    splits: Mapping[str, str]
    paths: frozenset[str]

    def same_data(self, task: str, paths: Iterable[str]) -> bool:
        """Whether its patient ids mean the same people: patient 17 elsewhere is somebody else."""
        return self.task == task or not self.paths.isdisjoint(paths)

    def patients(self, split: str) -> set[str]:
        """Its patients of one split."""
        return {patient for patient, name in self.splits.items() if name == split}


def record_of(folder: Path) -> Record | None:
    """Read from the ``splits.csv`` of the run that an adapter lies in; None where there is none.

    An adapter folder by itself names no patients, so that it can be given away.
    """
    run = next((p for p in folder.resolve().parents[:_UP] if (p / "splits.csv").exists()), None)
    if run is None:
        return None
    with (run / "splits.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return Record(
        run,
        _task_name(folder),
        {row["patient_id"]: _SAME.get(row["split"], row["split"]) for row in rows},
        frozenset(row["path"] for row in rows),
    )


def check_seen(folder: Path, task: Task, folds: bool = False) -> str:
    """Refuses an adapter that was trained on this run's search, confirm, probe or test patients.

    Args:
        folder: of the earlier adapter.
        task: of this run, split.
        folds: train patients judge too (``--inner cv5``), so they must be unseen as well.

    Returns:
        What a reader has to know; empty when no patient was seen.

    Raises:
        UserError: some were.
    """
    record = record_of(folder)
    if record is None:
        return (
            "whether patients of this run trained the earlier adapter is not known: the run that "
            "it comes from is not beside it"
        )
    here = task.split_table()
    if not record.same_data(task.name, here.path):
        return ""
    seen, everyone = record.patients("train"), set(here.patient_id.astype(str))
    held = set(here.patient_id[here.split != "train"].astype(str))
    if both := held & seen:
        raise UserError(
            f"{len(both)} of the {len(held)} {task.unit}s outside of this run's train split "
            "trained that adapter: every number would be too good",
            f"--init-adapter {folder}",
            "Split both runs alike (--split-column), or take an adapter of other patients.",
        )
    if folds and (both := everyone & seen):
        raise UserError(
            f"{len(both)} of the {len(everyone - held)} train {task.unit}s trained that adapter, "
            "and folds judge by train patients: values over folds would be too good",
            f"--init-adapter {folder} with --inner cv5",
            "Take --inner holdout, or an adapter of other patients.",
        )
    return ""


def _task_name(folder: Path) -> str:
    try:
        found = json.loads((folder / "autopeft.json").read_text()).get("task", "")
    except (OSError, ValueError):
        return ""
    return str(found)
