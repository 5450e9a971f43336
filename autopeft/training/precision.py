"""Number format of the search: bf16 where this machine is fast at it, else fp32."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch.nn import functional

Precision = Literal["fp32", "bf16"]


def decide(asked: str, threads: int = 1) -> Precision:
    """Settles ``--precision auto`` by a quarter-second measurement.

    Decided once by the driver and saved with the run: never measured again on resume.

    Args:
        asked: ``auto``, ``fp32`` or ``bf16``.
        threads: torch threads that a worker will have.
    """
    if asked != "auto":
        return "bf16" if asked == "bf16" else "fp32"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))
    try:
        x, w = torch.randn(1024, 384), torch.randn(1536, 384)
        low = x.bfloat16(), w.bfloat16()
        slow = _median(lambda: functional.linear(x, w))
        fast = _median(lambda: functional.linear(*low))
    finally:
        torch.set_num_threads(before)
    return "bf16" if fast * 1.5 < slow else "fp32"


def autocast(precision: Precision, device: str = "cpu") -> AbstractContextManager[object]:
    """Context in which frozen layers run in ``precision``; adapters stay fp32 masters."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device, torch.bfloat16)


def _median(call: Callable[[], object], times: int = 9) -> float:
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[times // 2]
