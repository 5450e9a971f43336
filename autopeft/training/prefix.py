"""Prefix store: frozen states at a block boundary, computed once and shared by all trials.

Everything below the first adapted block is a pure function of (image, view), so its states are
kept on disk: one memory map for each (backbone, precision, boundary, view), with a mark for each
row that is filled. Cached and computed states are equal bit for bit on a CPU for ViTs, whatever
the batch: rows do not depend on their neighbors there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autopeft.files import disk_trouble, lock, reserve, write_json

Ints = npt.NDArray[np.int64]
Compute = Callable[[Ints, Ints], Tensor]

_MAPS = ("states.npy", "filled.npy")
_TOUCH = 600.0  # seconds between two signs that a file is in use
_RECENT = 3600.0  # seconds; files used since then belong to a run that may be going on
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.bfloat16: np.dtype(np.int16),
    torch.float16: np.dtype(np.int16),
    torch.float32: np.dtype(np.float32),
}
_RAW = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.float32}


class PrefixStore:
    """All prefix files of one task on one disk, under a limit.

    Args:
        folder: where the files lie; several processes may use it.
        limit: bytes that all prefix files in the folder may take.
        key: hash over what the states depend on: weights, images, input policy, precision.
        rows: row numbers in the image store that may be asked for.
    """

    def __init__(self, folder: Path, limit: int, key: str, rows: Ints) -> None:
        self._folder, self._limit = folder, limit
        self._rows = np.unique(rows)
        h = hashlib.sha256(key.encode() + self._rows.tobytes())
        self._key = h.hexdigest()[:16]
        self._files: dict[tuple[int, int], _File | None] = {}
        self.hits = self.asks = 0
        self.seconds = 0.0  # spent on computing what was not there

    def states(self, boundary: int, index: Ints, view: Ints, compute: Compute) -> Tensor:
        """States of some images at a boundary: from the store, else computed and kept.

        Args:
            boundary: number of blocks below.
            index: row numbers [B] in the image store.
            view: view numbers [B].
            compute: (index, view) -> states [b, ...] of some of them, in this machine's memory.
        """
        where = np.searchsorted(self._rows, index)
        parts: list[tuple[npt.NDArray[Any], Tensor]] = []
        known = np.zeros(len(index), np.bool_)
        for v in np.unique(view):
            file = self._open(boundary, int(v))
            rows = np.flatnonzero(view == v)
            filled = rows[file.filled[where[rows]] == 1] if file is not None else rows[:0]
            if file is not None and len(filled):
                parts.append((filled, file.read(where[filled])))
                known[filled] = True
        self.asks += len(index)
        self.hits += int(known.sum())
        missing = np.flatnonzero(~known)
        if len(missing):
            began = time.perf_counter()
            fresh = compute(index[missing], view[missing])
            self.seconds += time.perf_counter() - began
            parts.append((missing, fresh))
            self._keep(boundary, where[missing], view[missing], fresh)
        if len(parts) == 1:
            return parts[0][1]
        out = torch.empty((len(index), *parts[0][1].shape[1:]), dtype=parts[0][1].dtype)
        for rows, states in parts:
            out[torch.from_numpy(rows)] = states
        return out

    def _keep(self, boundary: int, where: Ints, view: Ints, states: Tensor) -> None:
        for v in np.unique(view):
            name = (boundary, int(v))
            if name not in self._files:
                self._files[name] = self._make(boundary, int(v), states)
            file = self._files[name]
            if file is not None:
                rows = np.flatnonzero(view == v)
                file.write(where[rows], states[torch.from_numpy(rows)])

    def _path(self, boundary: int, view: int) -> Path:
        return self._folder / f"prefix-{self._key}-{boundary}-{view}"

    def _open(self, boundary: int, view: int) -> _File | None:
        """The file if it is there; it is opened once."""
        name, path = (boundary, view), self._path(boundary, view)
        if name not in self._files and (path / "meta.json").exists():
            found = _File.open(path, len(self._rows))
            if found is not None:
                self._files[name] = found
        file = self._files.get(name)
        if file is not None:
            file.touch()
        return file

    def _make(self, boundary: int, view: int, like: Tensor) -> _File | None:
        """A new file, if it fits under the limit; older ones of other tasks make room."""
        path = self._path(boundary, view)
        shape = (len(self._rows), *like.shape[1:])
        size = int(np.prod(shape)) * like.element_size() + len(self._rows)
        with lock(self._folder / "prefix.lock", wait=True):
            if (path / "meta.json").exists():  # another worker was faster
                return _File.open(path, len(self._rows))
            if not self._make_room(size):
                return None
            try:
                return _File.make(path, shape, like.dtype)
            except OSError as error:  # a full disk: the states are computed each time
                if not disk_trouble(error):
                    raise
                _remove(path)
                return None

    def _make_room(self, size: int) -> bool:
        """Removes what no run has used for a while, oldest first, until ``size`` bytes fit."""
        folders = [p for p in self._folder.glob("prefix-*-*-*") if p.is_dir()]
        used = {p: sum(f.stat().st_size for f in p.iterdir()) for p in folders}
        total, now = sum(used.values()), time.time()
        for path in sorted(folders, key=lambda p: p.stat().st_mtime):
            if total + size <= self._limit:
                break
            if now - path.stat().st_mtime > _RECENT and self._key not in path.name:
                _remove(path)
                total -= used[path]
        return total + size <= self._limit


class _File:
    """States of one view at one boundary: a memory map and a mark for each filled row."""

    def __init__(self, path: Path, array: Any, filled: Any, dtype: torch.dtype) -> None:
        self._path, self._array, self.filled, self._dtype = path, array, filled, dtype
        self._touched = -_TOUCH

    @staticmethod
    def make(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> _File:
        """A new empty file; its ``meta.json`` comes last and says that the maps are whole."""
        _remove(path)
        path.mkdir(parents=True)
        make, marks = np.lib.format.open_memmap, np.dtype(np.uint8)
        states = make(path / "states.npy", mode="w+", dtype=_NUMPY[dtype], shape=shape)
        filled = make(path / "filled.npy", mode="w+", dtype=marks, shape=shape[:1])
        for name in _MAPS:
            reserve(path / name)
        file = _File(path, states, filled, dtype)
        file._say(_boot())
        return file

    @staticmethod
    def open(path: Path, rows: int) -> _File | None:
        """An existing file, or None where it is damaged: it is removed then."""
        try:
            meta = json.loads((path / "meta.json").read_text())
            # A memory map would fill a file that was cut short with zeros.
            found = [(path / name).stat().st_size for name in _MAPS]
            # In an unfinished file marks may be on disk before the states that they mark.
            if meta["boot"] in (_boot(), "whole") and found == meta["bytes"]:
                maps = [np.lib.format.open_memmap(path / name, mode="r+") for name in _MAPS]
                if len(maps[0]) == len(maps[1]) == rows:
                    return _File(path, maps[0], maps[1], getattr(torch, meta["dtype"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        _remove(path)
        return None

    def touch(self) -> None:
        """Says now and then that the file is in use."""
        if time.monotonic() - self._touched > _TOUCH:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def read(self, rows: Ints) -> Tensor:
        """Copies of filled rows."""
        return torch.from_numpy(np.array(self._array[rows])).view(self._dtype)

    def write(self, rows: Ints, states: Tensor) -> None:
        """Writes rows, then marks them: two workers that write the same row write the same."""
        raw = states.detach().contiguous().view(_RAW[self._dtype])
        self._array[rows] = raw.numpy()
        self.filled[rows] = 1
        if self.filled.all():
            self._array.flush()
            self.filled.flush()
            self._say("whole")

    def _say(self, boot: str) -> None:
        """Since which start of the machine the file is being filled, or that it is whole."""
        kind = str(self._dtype).removeprefix("torch.")
        with contextlib.suppress(FileNotFoundError):  # somebody removed it: nothing to say
            size = [(self._path / name).stat().st_size for name in _MAPS]
            write_json(self._path / "meta.json", {"dtype": kind, "boot": boot, "bytes": size})


def _remove(path: Path) -> None:
    """Removes a file's folder, the part first that says that it is whole."""
    (path / "meta.json").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _boot() -> str:
    """Changes when the machine starts anew."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else "unknown"
