"""``autopeft doctor``: what this machine has, what a search would decide on it, what to mend."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GB = 10**9
LITTLE_MEMORY, LITTLE_DISK = 4 * GB, 10 * GB
LIBRARIES = ("torch", "timm", "peft", "ray", "optuna")


@dataclass(frozen=True)
class Line:
    """One fact.

    Attributes:
        what: its name.
        found: as it is here.
        todo: what to do about it; empty = nothing.
    """

    what: str
    found: str
    todo: str = ""


def examine(folder: Path) -> list[Line]:
    """Looks at everything but Ray, which is not started.

    Args:
        folder: the runs' folder, or where it will lie; nothing is written.
    """
    return [*_versions(), *_room(folder), *_numbers(), *_memory_settings(), *_tools()]


def _versions() -> Iterator[Line]:
    yield Line("autopeft", _version("autopeft"))
    yield Line("python", platform.python_version())
    for name in LIBRARIES:
        found = _version(name)
        yield Line(name, found, "" if found else "Install autopeft again: it needs it.")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _room(folder: Path) -> Iterator[Line]:
    from autopeft.training.memory import free_memory

    yield Line("cores", str(os.cpu_count() or 1))
    free = free_memory()
    scarce = free is not None and free < LITTLE_MEMORY
    todo = "Take --workers 1, close other programs." if scarce else ""
    yield Line("memory free", "unknown" if free is None else f"{free / GB:.1f} GB", todo)
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free
    todo = "Give another --runs-dir, or --cache-gb 1." if disk < LITTLE_DISK else ""
    yield Line("disk free", f"{disk / GB:.1f} GB at {folder.resolve()}", todo)


def _numbers() -> Iterator[Line]:
    """Device, number format, attention: as a search with one worker decides them."""
    from autopeft.training.fast import FEW_TOKENS, slow_fused
    from autopeft.training.precision import PAYS, choose, find_device, measure

    device = find_device()
    todo = "Written but never run on a GPU: see docs/inner.md." if device == "cuda" else ""
    yield Line("device", device, todo)
    seconds = measure(os.cpu_count() or 1, device)
    taken = choose(seconds, device)
    times = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items())
    slow = device == "cpu" and taken == "fp32"
    todo = f"No low format is {PAYS:g} times as fast here; searches take longer." if slow else ""
    yield Line("precision", f"{taken} (one product: {times})", todo)
    explicit = f"explicit up to {FEW_TOKENS} tokens, then torch's"
    yield Line("attention", explicit if slow_fused(taken, device) else "torch's fused")


def _memory_settings() -> Iterator[Line]:
    from autopeft.training.allocator import find_mallopt, large_pages

    there = find_mallopt() is not None
    todo = "" if there else "Steps are slower without glibc; nothing to do on this system."
    yield Line("mallopt", "there" if there else "missing", todo)
    pages = large_pages()
    todo = ""
    if pages == "never":
        todo = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)."
    yield Line("large pages", pages or "unknown", todo)


def _tools() -> Iterator[Line]:
    found = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), "")
    yield Line("C++ compiler", found or "none (only torch.compile would need one)")
    for extra, needed in _extras().items():
        missing = [name for name in needed if not _version(name)]
        todo = f"pip install 'autopeft[{extra}]' if you need it." if missing else ""
        lacks = f"lacks {', '.join(missing)}" if missing else "installed"
        yield Line(f"extra {extra}", lacks, todo)


def _extras() -> dict[str, list[str]]:
    """Extra -> what it installs; autopeft's own, the one for its tests left out."""
    found: dict[str, list[str]] = {}
    for line in (metadata.requires("autopeft") or []) if _version("autopeft") else []:
        extra = re.search(r"extra == ['\"]([^'\"]+)", line)
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if extra and name and extra[1] != "test":
            found.setdefault(extra[1], []).append(name[0])
    return found
