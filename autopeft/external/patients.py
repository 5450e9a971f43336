"""The new data as they are read, and who of them the adapter has met before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autopeft.data import TABLE, data_set
from autopeft.data.table import read_csv
from autopeft.data.whole import ALL, Whole, whole
from autopeft.errors import UserError
from autopeft.external.asked import Asked
from autopeft.external.labels import Mapped, asked_labels
from autopeft.seen import Record

_CHOSE = ("search", "confirm", "probe")


@dataclass(frozen=True)
class Seen:
    """Who of the new patients the adapter has met.

    Attributes:
        trained: rows [N] of patients that it was trained on, to be left out.
        tested: patients among its own run's test patients.
        unknown: what cannot be known, in lines.
        notes: what a reader has to know, in lines.
    """

    trained: npt.NDArray[np.bool_]
    tested: int = 0
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_data(asked: Asked, dataset: str, classes: Sequence[str], groups: Sequence[str]) -> Whole:
    """Reads the data set, as far as the adapter's classes go.

    Args:
        asked: labels, groups, columns and options.
        dataset: a data set's name or a CSV file.
        classes: of the adapter.
        groups: attributes that are taken where the data have them.

    Raises:
        UserError: the data are not as they should be, or no class of the adapter is in them.
    """
    found = data_set(dataset)
    table = found is TABLE
    header = map(str, read_csv(Path(dataset), nrows=0)) if table else found.labels
    columns = tuple(header)
    labels = asked_labels(asked.label, asked.label_map, classes, columns)
    if not labels and "label" in columns:
        labels = ("label",)
    if not labels:
        raise UserError(
            f"no class of the adapter ({', '.join(classes)}) is a label of {dataset}",
            "--label-map",
            f'Say which is which, e.g. --label-map "{classes[0]}=NAME"; it has '
            f"{', '.join(columns[:20])}.",
        )
    own = "split" if table and asked.split != ALL and "split" in columns else None
    settings = replace(
        asked.settings(dataset), label=labels, split_column=asked.split_column or own
    )
    source, usual = found.source(settings, asked.cache)
    if asked.group:
        return whole(source, asked.group, (), asked.split)
    return whole(source, (), tuple(dict.fromkeys((*groups, *usual))), asked.split)


def seen(record: Record | None, data: Whole, leave_out: bool) -> Seen:
    """Compares the new patients with those of the adapter's run.

    Args:
        record: of the adapter's run; None where it is not beside the adapter.
        data: the new data.
        leave_out: leave trained patients out.

    Raises:
        UserError: the adapter was trained on some of them, and they are not to be left out.
    """
    patient = data.rows.patient
    nobody = np.zeros(len(patient), np.bool_)
    if record is None:
        line = (
            f"whether the adapter was trained on any of these {data.unit}s: the run that it comes "
            "from is not beside it"
        )
        return Seen(nobody, unknown=(line,))
    if not record.same_data(data.name, data.rows.path.tolist()):
        line = (
            f"whether a {data.unit} here is one of its training {data.unit}s under another id: "
            "data set and file names are others, so that ids were not compared"
        )
        return Seen(nobody, unknown=(line,))
    trained = np.isin(patient, list(record.patients("train")))
    count = len(np.unique(patient[trained]))
    if count and not leave_out:
        raise UserError(
            f"the adapter was trained on {count} of these {len(np.unique(patient))} "
            f"{data.unit}s: every number would be too good",
            "--dataset",
            "Take other patients, one of the data's own splits (--split), or leave these out "
            "(--leave-out-trained).",
        )
    if trained.all():
        raise UserError("holds nobody that the adapter was not trained on", "--dataset")
    lines = []
    if count:
        lines.append(f"{count} {data.unit}s that the adapter was trained on were left out")
    chosen = sum(len(record.patients(s) & set(patient.tolist())) for s in _CHOSE)
    if chosen:
        lines.append(
            f"{chosen} of these {data.unit}s helped to choose the adapter in its run (its search, "
            "confirm or probe split): they flatter it"
        )
    tested = len(record.patients("test") & set(patient.tolist()))
    return Seen(trained, tested, notes=tuple(lines))


def of_known_patients(data: Whole, mapped: Mapped, found: Seen) -> tuple[Whole, Mapped]:
    """The rows that are judged: of patients not trained on, with a label of a mapped class."""
    labelled = np.isfinite(mapped.target).any(axis=1)
    kept = np.flatnonzero(labelled & ~found.trained)
    if not len(kept):
        raise UserError("no image has a label of any of the adapter's classes", "--dataset")
    rows = data.rows.take(kept)
    rows = replace(rows, index=np.arange(len(kept)))
    notes = [*data.notes, *found.notes]
    if not labelled.all():
        notes.append(f"{int((~labelled).sum())} images have no label of the adapter's classes")
    return (
        replace(data, rows=rows, notes=tuple(notes)),
        replace(mapped, target=mapped.target[kept]),
    )
