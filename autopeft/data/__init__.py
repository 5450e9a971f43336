"""Tasks: any CSV, named data sets as they lie on disk, and the synthetic phantom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import UserError, nearest

if TYPE_CHECKING:
    from autopeft.data.task import Task
    from autopeft.settings import Settings


@dataclass(frozen=True)
class DataSet:
    """A data set that can be named.

    Attributes:
        module: module of this package that reads it.
        function: the loader in it, ``(settings, cache) -> Task``.
        what: one line for ``autopeft datasets``.
    """

    module: str
    function: str
    what: str

    def load(self, settings: Settings, cache: Path) -> Task:
        """Reads the data set."""
        module = import_module(f"autopeft.data.{self.module}")
        loader: Callable[[Settings, Path], Task] = getattr(module, self.function)
        return loader(settings, cache)


TABLE = DataSet("table", "load_table", "any CSV file with image paths: give the file's name")

DATASETS: dict[str, DataSet] = {
    "phantom": DataSet(
        "phantom", "load_phantom", "synthetic radiographs with biases one can plant; no download"
    ),
    "chexpert": DataSet(
        "chexpert", "load_chexpert", "CheXpert (small or full), as downloaded; --data-root"
    ),
    "nih": DataSet("nih", "load_nih", "NIH ChestX-ray14, as downloaded; --data-root"),
}


def load_task(settings: Settings, cache: Path) -> Task:
    """Loads the task that ``--dataset`` names.

    Args:
        settings: dataset, data_root, labels, groups, options, split seed, label fraction.
        cache: folder in which the phantom's images may be written.

    Raises:
        UserError: unknown data set (nearest name offered), bad input in it, or a label fraction
            that leaves too few patients.
    """
    task = _data_set(settings.dataset).load(settings, cache)
    if settings.label_fraction == 1:
        return task
    from autopeft.data.fraction import take_fraction

    return take_fraction(task, settings.label_fraction, settings.split_seed)


def _data_set(name: str) -> DataSet:
    if name in DATASETS:
        return DATASETS[name]
    if name.endswith((".csv", ".csv.gz", ".tsv")) or "/" in name:
        return TABLE
    raise UserError(
        f"unknown data set {name!r}",
        "--dataset",
        f"{nearest(name, DATASETS)}, or the path of a CSV file.",
    )
