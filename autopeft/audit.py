"""What a task holds, in counts: no patient id and no path leaves this file."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autopeft.data.groups import UNKNOWN
from autopeft.data.task import Task

_SECONDS = 5.0  # for comparing files
_CHUNK = 2**20


def audit(task: Task) -> dict[str, Any]:
    """Images, patients, labels, demographics and identical files of a task, as plain data."""
    table = task.split_table()
    each = table.groupby("patient_id").size()
    named = dict.fromkeys((*task.inner, "confirm", "test", *task.external))
    splits = [s for s in named if (table["split"] == s).any()]
    return {
        "task": task.name,
        "unit": task.unit,
        "images": len(table),
        "patients": int(table["patient_id"].nunique()),
        "several_images": int((each > 1).sum()),
        "most_images": int(each.max()),
        "splits": {s: _split(task, s) for s in splits},
        "unknown": {a: _unknown(task, a, splits) for a in task.attributes},
        "identical": identical(task),
        "notes": list(task.notes),
    }


def _split(task: Task, split: str) -> dict[str, Any]:
    """Images and patients of a split; of each class positives, negatives, images without it."""
    table = task.counts(split)
    every = table[table["attribute"] == "all"]
    images, known = int(every["images"].iloc[0]), task.count_images(split)
    rows = zip(
        every["class"], every["positives"].tolist(), every["negatives"].tolist(), strict=True
    )
    return {
        "images": images,
        "patients": int(every["patients"].iloc[0]),
        "classes": {
            c: {"positives": p, "negatives": n, "blank": images - sum(known[c])}
            for c, p, n in rows
        },
    }


def _unknown(task: Task, attribute: str, splits: list[str]) -> dict[str, int]:
    """Patients without a known value of an attribute, and patients in all."""
    missing = total = 0
    for split in splits:
        table = task.counts(split)
        one = table[table["class"] == task.classes[0]]
        total += int(one[one["attribute"] == "all"]["patients"].sum())
        here = one[(one["attribute"] == attribute) & (one["group"] == UNKNOWN)]
        missing += int(here["patients"].sum())
    return {"patients": missing, "of": total}


def identical(task: Task, seconds: float = _SECONDS) -> dict[str, Any]:
    """Files with the same bytes: copies of one image, and where they lie.

    Only files of equal size are read, and for no longer than ``seconds``.

    Returns:
        ``copies``: files that repeat an earlier one; ``patients``: groups of equal files that
        belong to several patients; ``splits``: groups that lie in several splits, so that what
        is judged was trained on; ``whole``: whether there was time for all files.
    """
    table, stop = task.split_table(), time.monotonic() + seconds
    rows = list(zip(table["path"], table["patient_id"], table["split"], strict=True))
    sizes, whole = defaultdict[int, list[int]](list), True
    for i, (path, _, _) in enumerate(rows):
        if time.monotonic() > stop:
            whole = False
            break
        size = _size(task.root / str(path))
        if size:
            sizes[size].append(i)
    copies = patients = splits = 0
    for group in _equal(task.root, [r[0] for r in rows], sizes, stop):
        if group is None:
            whole = False
            break
        copies += len(group) - 1
        patients += len({rows[i][1] for i in group}) > 1
        splits += len({rows[i][2] for i in group}) > 1
    return {"copies": copies, "patients": patients, "splits": splits, "whole": whole}


def _equal(
    root: Path, paths: list[str], sizes: dict[int, list[int]], stop: float
) -> Iterator[list[int] | None]:
    """Groups of rows whose files are equal; None when the time is over."""
    for members in sizes.values():
        if len(members) < 2:
            continue
        found = defaultdict[str, list[int]](list)
        for i in members:
            if time.monotonic() > stop:
                yield None
                return
            found[_hash(root / str(paths[i]))].append(i)
        # A table may name one file twice: that is no copy of another image.
        yield from (
            g for g in found.values() if len(g) > 1 and len(Counter(str(paths[i]) for i in g)) > 1
        )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _hash(file: Path) -> str:
    h = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            h.update(chunk)
    return h.hexdigest()
