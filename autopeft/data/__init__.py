"""Tasks: any CSV, named data sets as they lie on disk, and the synthetic phantom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import UserError, nearest

if TYPE_CHECKING:
    from autopeft.data.frame import Source
    from autopeft.data.task import Task
    from autopeft.settings import Settings


@dataclass(frozen=True)
class DataSet:
    """A data set that can be named.

    Attributes:
        module: module of this package that reads it.
        name: of the functions in it: ``load_NAME(settings, cache) -> Task`` splits what
            ``NAME_source(settings, cache) -> (Source, groups)`` reads.
        what: one line for ``autopeft datasets``.
    """

    module: str
    name: str
    what: str

    def load(self, settings: Settings, cache: Path) -> Task:
        """Reads the data set and splits it."""
        loader: Callable[[Settings, Path], Task] = self._found(f"load_{self.name}")
        return loader(settings, cache)

    def source(self, settings: Settings, cache: Path) -> tuple[Source, tuple[str, ...]]:
        """Reads the data set as a whole, and the groups that are asked for or usual."""
        reader: Callable[[Settings, Path], tuple[Source, tuple[str, ...]]]
        reader = self._found(f"{self.name}_source")
        return reader(settings, cache)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that can be asked for; empty for a table of the user's own."""
        return getattr(import_module(f"autopeft.data.{self.module}"), "LABELS", ())

    def _found(self, function: str) -> Any:
        return getattr(import_module(f"autopeft.data.{self.module}"), function)


TABLE = DataSet("table", "table", "any CSV file with image paths: give the file's name")

DATASETS: dict[str, DataSet] = {
    "phantom": DataSet(
        "phantom", "phantom", "synthetic radiographs with biases one can plant; no download"
    ),
    "chexpert": DataSet(
        "chexpert", "chexpert", "CheXpert (small or full), as downloaded; --data-root"
    ),
    "nih": DataSet("nih", "nih", "NIH ChestX-ray14, as downloaded; --data-root"),
}


def whose_patients(dataset: str) -> str:
    """The data set whose own patient ids a task has; empty for a user's table and the phantom."""
    return dataset if dataset in DATASETS and dataset != "phantom" else ""


def load_task(settings: Settings, cache: Path) -> Task:
    """Loads the task that ``--dataset`` names.

    Args:
        settings: dataset, data_root, labels, groups, options, split seed, label fraction.
        cache: folder in which the phantom's images may be written.

    Raises:
        UserError: unknown data set (nearest name offered), bad input in it, or a label fraction
            that leaves too few patients.
    """
    task = data_set(settings.dataset).load(settings, cache)
    if settings.label_fraction == 1:
        return task
    from autopeft.data.fraction import take_fraction

    return take_fraction(task, settings.label_fraction, settings.split_seed)


def data_set(name: str) -> DataSet:
    """The data set that ``--dataset`` names.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    if name in DATASETS:
        return DATASETS[name]
    if name.endswith((".csv", ".csv.gz", ".tsv")) or "/" in name:
        return TABLE
    raise UserError(
        f"unknown data set {name!r}",
        "--dataset",
        f"{nearest(name, DATASETS)}, or the path of a CSV file.",
    )
