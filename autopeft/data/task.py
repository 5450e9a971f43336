"""Task: what is to be learnt, and about whom. Test rows come out through one door only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from autopeft.data.groups import UNKNOWN
from autopeft.data.splits import PROBE, SPLITS, check_disjoint
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
    _opened: list[str] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_disjoint(self._all.patient, self._split)
        n = len(self._all)
        assert self._all.label is not None
        assert self._all.label.shape == (n, len(self.classes))
        assert np.array_equal(self._all.index, np.arange(n)), "rows are not in store order"
        assert tuple(self._all.groups) == self.attributes
        assert set(np.unique(self._split).tolist()) <= {*SPLITS, PROBE, *self.external}

    @property
    def paths(self) -> npt.NDArray[Any]:
        """All image paths [N] relative to ``root``; ``Rows.index`` points into it."""
        return self._all.path

    @property
    def patients(self) -> int:
        """Number of patients (units) of the whole task."""
        return len(np.unique(self._all.patient))

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
        h.update(rows.label.tobytes())
        return h.hexdigest()[:16]

    def rows(self, split: str) -> Rows:
        """Rows of the splits of a search, and the sealed ones once they were opened.

        Raises:
            RuntimeError: ``test`` or an external check before ``open_test``.
        """
        if split in ("test", *self.external) and not self._opened:
            raise RuntimeError(f"{split} is sealed: only open_test() hands it out, at the end")
        return self._take(split)

    def open_test(self) -> Rows:
        """Opens the test rows (and the external checks), for the end of a run."""
        self._opened.append("test")
        return self._take("test")

    def _take(self, split: str) -> Rows:
        known = (*SPLITS, PROBE, *self.external)
        if split not in known:
            raise KeyError(f"no split {split!r}: {', '.join(known)}")
        return self._all.take(np.flatnonzero(self._split == split))

    @property
    def inner(self) -> tuple[str, ...]:
        """Splits that trials may see: ``train``, ``search``, and ``probe`` where it was cut."""
        return ("train", "search", *([PROBE] if (self._split == PROBE).any() else []))

    def with_split(self, index: npt.NDArray[np.int64], name: str) -> Task:
        """The task with some rows in another split."""
        split = self._split.astype("U32")
        split[index] = name
        return replace(self, _split=split, _opened=[])

    def without(self, index: npt.NDArray[np.int64]) -> Task:
        """The task without some rows, numbered anew; only rows that may be read are known."""
        kept = np.delete(np.arange(len(self._all)), index)
        rows = self._all.take(kept)
        return replace(
            self,
            _all=replace(rows, index=np.arange(len(kept))),
            _split=self._split[kept],
            _opened=[],
        )

    def count_images(self, split: str) -> dict[str, tuple[int, int]]:
        """Class -> (positive, negative) images of a split; counts only, like ``counts``."""
        label = self._take(split).label
        assert label is not None
        pairs = zip((label == 1).sum(0).tolist(), (label == 0).sum(0).tolist(), strict=True)
        return dict(zip(self.classes, pairs, strict=True))

    def counts(self, split: str) -> pd.DataFrame:
        """Who is in a split; counts only, so it may be asked of ``test`` at any time.

        Returns:
            One row for each class and group (``attribute`` and ``group`` are ``all`` for
            everyone): ``class, attribute, group, images, patients, positives, negatives``.
            The last two are patients: positive if any of their rows in the split is,
            negative if they have a label there and none is positive.
        """
        rows = self._take(split)
        members = [("all", "all", np.ones(len(rows), np.bool_))]
        for attribute, names in rows.groups.items():
            members += [(attribute, str(g), names == g) for g in np.unique(names)]
        _, patient = np.unique(rows.patient, return_inverse=True)
        assert rows.label is not None
        table = []
        for c, name in enumerate(self.classes):
            for attribute, group, member in members:
                who = patient[member]
                positive, negative = count_patients(who, rows.label[member, c])
                seen = (int(member.sum()), len(np.unique(who)))
                table.append((name, attribute, group, *seen, positive, negative))
        columns = ["class", "attribute", "group", "images", "patients", "positives", "negatives"]
        return pd.DataFrame(table, columns=columns)

    def split_table(self) -> pd.DataFrame:
        """``path, patient_id, split`` of every row, for ``splits.csv`` (mode 0600)."""
        return pd.DataFrame(
            {"path": self._all.path, "patient_id": self._all.patient, "split": self._split}
        )


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
