"""A few images of a task, decoded into a folder that is thrown away, for a timing."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopeft.data.task import Task
from autopeft.job import Rows, Setup
from autopeft.progress import Screen
from autopeft.settings import Settings
from autopeft.timing import folders

if TYPE_CHECKING:
    from autopeft.training.images import ImageStore

TRAIN, SEARCH = 256, 64  # images at most
_FIRST = 16  # images that say how many more may be decoded
_SECONDS = 6.0


class Sample:
    """Takes the place of decoding every image.

    Args:
        folder: where the few are decoded.

    Attributes:
        rows: the few train and search rows, numbered as in their own small store.
        each: seconds of decoding one image with all threads.
        seconds: that the decoding took.
        decoded: whether the run's images lie decoded in the cache already.
        channels: of the decoded images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, Rows] = {}
        self.each = self.seconds = 0.0
        self.decoded = False
        self.channels = 1
        self._store = ""

    def decode(self, task: Task, settings: Settings, size: int, screen: Screen) -> ImageStore:
        """As ``prepare`` asks for it: the store of a few images; all of them must be there."""
        from autopeft.training.images import build_store, is_built

        began = time.perf_counter()
        cache = Path(settings.runs_dir) / ".cache"
        self.decoded = is_built(task.root, task.paths.tolist(), size, settings.fit, cache)
        threads = os.cpu_count() or 1
        train, search = _mixed(task.rows("train"), TRAIN), _mixed(task.rows("search"), SEARCH)

        def build(rows: list[Rows], where: str) -> tuple[ImageStore, float]:
            start = time.perf_counter()
            paths = [str(p) for r in rows for p in r.path]
            store = build_store(
                task.root, paths, size, settings.fit, self.folder / where, threads=threads
            )
            return store, (time.perf_counter() - start) / len(paths)

        _, each = build([_part(train, _FIRST)], "first")
        most = max(2 * _FIRST, int(_SECONDS / max(each, 1e-6)))
        self.rows = {"train": _part(train, most * 4 // 5), "search": _part(search, most // 5)}
        store, self.each = build(list(self.rows.values()), "few")
        self.channels, self._store = store.rule.channels, str(store.folder)
        place = 0
        for split, rows in self.rows.items():
            index = np.arange(place, place + len(rows), dtype=np.int64)
            self.rows[split], place = replace(rows, index=index), place + len(rows)
        self.seconds = time.perf_counter() - began
        return store

    def setup(self, setup: Setup) -> Setup:
        """The run's setup on these few images."""
        return folders(setup, self.folder, self._store, self.rows)


def _mixed(rows: Rows, count: int) -> Rows:
    """Some rows, positives of the first label and others in turns: few may hold one side only."""
    assert rows.label is not None
    positive = rows.label[:, 0] == 1
    sides = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    turn = np.concatenate([np.arange(len(s)) for s in sides])
    order = np.concatenate(sides)[np.argsort(turn, kind="stable")]
    return rows.take(order[:count])


def _part(rows: Rows, count: int) -> Rows:
    first: npt.NDArray[np.int64] = np.arange(min(max(1, count), len(rows)))
    return rows.take(first)
