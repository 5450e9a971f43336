"""Small tables with images that exist (one byte each: nothing here opens a pixel)."""

from pathlib import Path

import numpy as np
import pandas as pd

from autopeft.data.task import Task
from autopeft.job import Rows
from autopeft.settings import Settings


def people(n=120, images=2, seed=0):
    """A table of n patients: path, patient_id, lesion, sex, age."""
    rng = np.random.default_rng(seed)
    records = []
    for p in range(n):
        sick, sex, age = int(rng.random() < 0.4), "MF"[rng.integers(2)], int(rng.integers(20, 90))
        for i in range(images):
            records.append((f"images/{p:04d}_{i}.png", f"P{p:04d}", sick, sex, age))
    return pd.DataFrame(records, columns=["path", "patient_id", "lesion", "sex", "age"])


def write(folder: Path, frame, name="labels.csv", images=True):
    """Writes the CSV and an empty file for each path; returns the CSV's path."""
    if images:
        for path in frame["path"].dropna():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    frame.to_csv(folder / name, index=False)
    return folder / name


def settings(csv, **changes):
    """Settings for a CSV; label ``lesion`` unless another is given."""
    return Settings(**{"dataset": str(csv), "label": ("lesion",), **changes})


def task(patient, label, groups, split, external=()):
    """A Task from columns."""
    n = len(patient)
    rows = Rows(
        np.array([f"{i:05d}.png" for i in range(n)]),
        np.arange(n),
        np.array(patient).astype(np.str_),
        np.array(label, np.float32).reshape(n, -1),
        {k: np.array(v).astype(np.str_) for k, v in groups.items()},
    )
    classes = tuple(f"c{i}" for i in range(rows.label.shape[1]))
    kind = "binary" if len(classes) == 1 else "multilabel"
    return Task(
        "made", kind, "patient", classes, Path(), tuple(groups), (), external, rows,
        np.array(split).astype(np.str_),
    )  # fmt: skip
