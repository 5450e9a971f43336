"""Task: what is to be learnt, and about whom. Test rows come out through one door only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from autopeft.data.groups import UNKNOWN
from autopeft.data.sealed import Bools, Sealed
from autopeft.data.splits import PROBE, SPLITS, UNCERTAIN, check_disjoint
from autopeft.evaluation import Kind
from autopeft.job import Rows

Unit = Literal["patient", "lesion", "image"]


@dataclass(frozen=True)
class Task:
    """Images, labels, patients, groups and splits. Rows are sorted by path.

    Attributes:
        name: name of the data set.
        kind: ``binary`` (one class, C = 1), ``multiclass`` (one-hot) or ``multilabel``.
        unit: what may not cross splits: a patient, a lesion, or an image where no id is known.
        classes: names of the C columns of the labels.
        root: folder that paths are relative to.
        attributes: group attributes, e.g. ``("sex", "age:60")``.
        notes: what a reader of the report must know; counts only, no path, no patient id.
        external: names of external checks; they come through the same door as ``test``.
        policy_differs: whether train rows have other labels than judges would see: an uncertain
            one under a training policy, or noise planted in train. Not in the digest.
    """

    name: str
    kind: Kind
    unit: Unit
    classes: tuple[str, ...]
    root: Path
    attributes: tuple[str, ...]
    notes: tuple[str, ...]
    external: tuple[str, ...]
    _all: Rows = field(repr=False)
    _split: npt.NDArray[Any] = field(repr=False)
    _unsure: Bools | None = field(default=None, repr=False)
    _sealed: Sealed | None = field(default=None, repr=False, compare=False)
    _counted: Mapping[str, Count] = field(default_factory=dict, repr=False, compare=False)
    policy_differs: bool = False

    def __post_init__(self) -> None:
        # Images of test patients that wait for the readings of uncertain labels are test.
        check_disjoint(self._all.patient, np.where(self._split == UNCERTAIN, "test", self._split))
        n = len(self._all)
        assert self._all.label is not None
        assert self._all.label.shape == (n, len(self.classes))
        assert np.array_equal(self._all.index, np.arange(n)), "rows are not in store order"
        assert tuple(self._all.groups) == self.attributes
        known = {*SPLITS, PROBE, UNCERTAIN, *self.external}
        assert set(np.unique(self._split).tolist()) <= known
        if self._sealed is None:
            self._seal()

    def _seal(self) -> None:
        """Counts the sealed splits, once, and locks their labels away."""
        held, rows = self._held, self._all
        assert rows.label is not None
        counted = {s: _count(self, rows.take(self._split == s)) for s in self._sealed_splits}
        unsure = np.zeros(rows.label.shape, np.bool_) if self._unsure is None else self._unsure
        sealed = Sealed(rows.label[held], unsure[held])
        blind = np.where(held[:, None], np.float32(np.nan), rows.label).astype(np.float32)
        for name, value in (
            ("_all", replace(rows, label=blind)),
            ("_unsure", None),
            ("_sealed", sealed),
            ("_counted", counted),
        ):
            object.__setattr__(self, name, value)

    @property
    def _sealed_splits(self) -> tuple[str, ...]:
        return ("test", UNCERTAIN, *self.external)

    @property
    def _held(self) -> Bools:
        """Whether a row is sealed [N]."""
        held: Bools = np.isin(self._split, self._sealed_splits)
        return held

    @property
    def _door(self) -> Sealed:
        assert self._sealed is not None
        return self._sealed

    @property
    def paths(self) -> npt.NDArray[Any]:
        """All image paths [N] relative to ``root``; ``Rows.index`` points into it."""
        return self._all.path

    @property
    def patients(self) -> int:
        """Number of patients (units) with a known label."""
        return len(np.unique(self._all.patient[self._split != UNCERTAIN]))

    def groups_of(self, attribute: str) -> tuple[str, ...]:
        """Names of the groups of an attribute over all splits, without ``unknown``."""
        found = np.unique(self._all.groups[attribute]).tolist()
        return tuple(name for name in found if name != UNKNOWN)

    @cached_property
    def digest(self) -> str:
        """Hash over paths, patients, labels, groups and splits (no file times)."""
        h = hashlib.sha256("\0".join([self.kind, *self.classes]).encode())
        rows = self._all
        assert rows.label is not None
        for column in (rows.path, rows.patient, self._split, *rows.groups.values()):
            h.update("\0".join([*column.tolist(), ""]).encode())
        h.update("\0".join(rows.groups).encode())
        self._door.feed(h, rows.label, self._held)
        return h.hexdigest()[:16]

    def rows(self, split: str) -> Rows:
        """Rows of the splits of a search, and the sealed ones once they were opened.

        Raises:
            RuntimeError: ``test``, ``uncertain`` or an external check before ``open_test``.
        """
        if split not in (*SPLITS, PROBE, *self._sealed_splits):
            raise KeyError(f"no split {split!r}: {', '.join((*SPLITS, PROBE, *self.external))}")
        here = self._split == split
        rows = self._all.take(np.flatnonzero(here))
        if split not in self._sealed_splits:
            return rows
        return replace(rows, label=self._opened(split)[0][here[self._held]])

    def unsure(self, split: str) -> Bools:
        """Which labels [n, C] of a sealed split the source calls uncertain: they are NaN.

        Raises:
            RuntimeError: before ``open_test``.
        """
        found: Bools = self._opened(split)[1][self._split[self._held] == split]
        return found

    def _opened(self, split: str) -> tuple[npt.NDArray[np.float32], Bools]:
        """Labels and uncertain marks of all sealed rows."""
        if not self._door.opened():
            raise RuntimeError(f"{split} is sealed: only open_test() hands it out, at the end")
        return self._door.read()

    def open_test(self) -> Rows:
        """Opens the test rows (and the external checks), for the end of a run."""
        self._door.open()
        return self.rows("test")

    def has(self, split: str) -> bool:
        """Whether a split holds any rows."""
        return bool((self._split == split).any())

    @property
    def inner(self) -> tuple[str, ...]:
        """Splits that trials may see: ``train``, ``search``, and ``probe`` where it was cut."""
        return ("train", "search", *([PROBE] if (self._split == PROBE).any() else []))

    def with_split(self, index: npt.NDArray[np.int64], name: str) -> Task:
        """The task with some rows in another split; sealed ones stay where they are."""
        split = self._split.astype("U32")
        split[index] = name
        assert not self._held[index].any(), "sealed rows are moved nowhere"
        assert name not in self._sealed_splits, "what is sealed is decided when splits are made"
        return replace(self, _split=split)

    def without(self, index: npt.NDArray[np.int64]) -> Task:
        """The task without some rows, numbered anew; sealed ones stay."""
        assert not self._held[index].any(), "sealed rows are not left out"
        kept = np.delete(np.arange(len(self._all)), index)
        rows = self._all.take(kept)
        return replace(
            self, _all=replace(rows, index=np.arange(len(kept))), _split=self._split[kept]
        )

    def count_images(self, split: str) -> dict[str, tuple[int, int]]:
        """Class -> (positive, negative) images of a split; counts only, like ``counts``."""
        return dict(self._count(split).images)

    def counts(self, split: str) -> pd.DataFrame:
        """Who is in a split; of sealed splits as counted when the splits were made.

        Returns:
            One row for each class and group (``attribute`` and ``group`` are ``all`` for
            everyone): ``class, attribute, group, images, patients, positives, negatives``.
            The last two are patients: positive if any of their rows in the split is,
            negative if they have a label there and none is positive.
        """
        return self._count(split).table.copy()

    def _count(self, split: str) -> Count:
        return self._counted[split] if split in self._counted else _count(self, self.rows(split))

    def split_table(self) -> pd.DataFrame:
        """``path, patient_id, split`` of every row, for ``splits.csv`` (mode 0600)."""
        return pd.DataFrame(
            {"path": self._all.path, "patient_id": self._all.patient, "split": self._split}
        )


@dataclass(frozen=True)
class Count:
    """How many are in a split: ``Task.counts`` and ``Task.count_images``."""

    table: pd.DataFrame
    images: Mapping[str, tuple[int, int]]


def _count(task: Task, rows: Rows) -> Count:
    """Counts the rows of one split, see ``Task.counts``."""
    members = [("all", "all", np.ones(len(rows), np.bool_))]
    for attribute, names in rows.groups.items():
        members += [(attribute, str(g), names == g) for g in np.unique(names)]
    _, patient = np.unique(rows.patient, return_inverse=True)
    assert rows.label is not None
    table = []
    for c, name in enumerate(task.classes):
        for attribute, group, member in members:
            who = patient[member]
            positive, negative = count_patients(who, rows.label[member, c])
            seen = (int(member.sum()), len(np.unique(who)))
            table.append((name, attribute, group, *seen, positive, negative))
    columns = ["class", "attribute", "group", "images", "patients", "positives", "negatives"]
    pairs = zip((rows.label == 1).sum(0).tolist(), (rows.label == 0).sum(0).tolist(), strict=True)
    return Count(pd.DataFrame(table, columns=columns), dict(zip(task.classes, pairs, strict=True)))


def count_patients(
    patient: npt.NDArray[np.int64], label: npt.NDArray[np.float32]
) -> tuple[int, int]:
    """Positive and negative patients of one class.

    Args:
        patient: patient numbers [N] from 0.
        label: 0, 1 or NaN [N].
    """
    top = np.full(int(patient.max()) + 1 if len(patient) else 0, -1.0, np.float32)
    known = ~np.isnan(label)
    np.maximum.at(top, patient[known], label[known])
    return int((top == 1).sum()), int((top == 0).sum())
