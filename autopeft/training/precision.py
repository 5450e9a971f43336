"""Number format and device of the search: a low format where this machine is fast at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]

LOW: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
PAYS = 1.5  # a low format is taken where it is so much faster
_SECONDS = 0.4  # for both formats


def find_device() -> Device:
    """The device that a worker on this machine can have."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def decide(asked: str, threads: int = 1, device: Device = "cpu") -> Precision:
    """Settles ``--precision auto`` by a measurement of at most half a second.

    Decided once by the driver and saved with the run: never measured again on resume.

    Args:
        asked: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        threads: torch threads that a worker will have.
        device: on which it will train.
    """
    if asked in LOW:
        return "bf16" if asked == "bf16" else "fp16"
    return choose(measure(threads, device), device) if asked == "auto" else "fp32"


def choose(seconds: dict[Precision, float], device: Device) -> Precision:
    """The format that measured best; a GPU that has bf16 in hardware takes it.

    Args:
        seconds: what ``measure`` gave: fp32 and the one low format that comes into question.
        device: on which it was measured.
    """
    low: Precision = "bf16" if "bf16" in seconds else "fp16"
    pays = seconds[low] * PAYS <= seconds["fp32"]
    return low if pays or (device == "cuda" and low == "bf16") else "fp32"


def measure(threads: int = 1, device: Device = "cpu") -> dict[Precision, float]:
    """Seconds of one matrix product [1024, 384] x [384, 1536] in fp32 and in a low format.

    The low format is bf16 on a CPU, where fp16 has no fast products, and on GPUs that have it;
    else fp16.
    """
    native = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    low: Precision = "bf16" if native else "fp16"
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))
    try:
        x, w = torch.randn(1024, 384, device=device), torch.randn(1536, 384, device=device)
        lower = x.to(LOW[low]), w.to(LOW[low])
        slow, fast = _fastest(lambda: _product(x, w), lambda: _product(*lower))
    finally:
        torch.set_num_threads(before)
    return {"fp32": slow, low: fast}


def autocast(precision: Precision, device: str = "cpu") -> AbstractContextManager[object]:
    """Context in which frozen layers run in ``precision``; adapters stay fp32 masters."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device, LOW[precision])


def _product(x: Tensor, w: Tensor) -> Tensor:
    out = functional.linear(x, w)
    if out.is_cuda:
        torch.cuda.synchronize()
    return out


def _fastest(*calls: Callable[[], object], times: int = 15) -> list[float]:
    """Shortest of so many rounds in turns, or of as many as the time allows.

    Something else may be running, workers that start up for one: the shortest time is the least
    disturbed one. The first round only warms up.
    """
    best = [float("inf")] * len(calls)
    began = time.perf_counter()
    for number in range(1 + times):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if number:
                best[i] = min(best[i], time.perf_counter() - start)
        if number and time.perf_counter() - began > _SECONDS:
            break
    return best
