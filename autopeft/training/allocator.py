"""Keeps freed memory in the process, in large pages: a training step asks for the same again.

A step allocates a few hundred megabytes of activations and frees them. glibc gives them back to
the system each time, and the next step pays for every page anew, which is a quarter of its time on
a CPU (``benchmarks/inner.py --allocator plain``).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

_TRIM, _PAD, _MMAP = -1, -2, -3  # glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
_NEVER, _STEP, _LARGEST = 2**31 - 1, 64 * 2**20, 32 * 2**20


def keep_memory() -> None:
    """Sets it for this process; does nothing where the C library is another one.

    Call it before the first tensor is made: torch asks for large pages from then on or never.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = find_mallopt()
    if mallopt is not None:
        for option, value in ((_TRIM, _NEVER), (_PAD, _STEP), (_MMAP, _LARGEST)):
            mallopt(option, value)


def find_mallopt() -> Any:
    """glibc's ``mallopt``, or None where the C library has none (macOS, musl, Windows)."""
    try:
        return ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return None


def large_pages(root: Path = Path("/")) -> str:
    """Who gets large pages here: ``always``, ``madvise`` (who asks, as torch does), ``never``.

    Empty where the system does not say.
    """
    file = root / "sys/kernel/mm/transparent_hugepage/enabled"
    try:
        return file.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""
