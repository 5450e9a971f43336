"""What a worker gets on this machine: threads, device, number format, images a pass, disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.runners import worker_threads
from autopeft.settings import Settings

if TYPE_CHECKING:
    from autopeft.training.precision import Device, Precision

_PLENTY = 3  # LoRA's step was seen to take 0.9 to 1.1 times the memory of SSF's


def look_at_machine(settings: Settings, network: Any, outputs: int) -> dict[str, Any]:
    """Threads, device, number format and micro-batch of a worker on this machine.

    Args:
        settings: of the run.
        network: the backbone.
        outputs: classes.
    """
    from autopeft.training.precision import decide, find_device

    workers, threads = worker_threads(settings)
    serial = settings.runner == "serial"
    device = find_device() if serial or settings.gpus_per_worker > 0 else "cpu"
    precision = decide(settings.precision, threads, device)
    sharing = 1 if serial else workers
    if device == "cuda" and not serial:  # Ray puts so many on one GPU
        sharing = max(1, int(1 / settings.gpus_per_worker))
    fits = _micro_batch(settings, network, outputs, precision, device, sharing)
    return {"threads": threads, "device": device, "precision": precision, "micro_batch": fits}


def _micro_batch(
    settings: Settings,
    network: Any,
    outputs: int,
    precision: Precision,
    device: Device,
    workers: int,
) -> int:
    """Images a forward pass for the heaviest usual candidate: LoRA on all blocks."""
    from autopeft.methods import build, canonical
    from autopeft.training import memory
    from autopeft.training.fast import Casts, speed_up

    free = memory.available(workers, device)

    def fits(raw: dict[str, Any], times: int = 1) -> int:
        candidate = canonical({**raw, "blocks": "all", "lr": 1e-3}, network.facts)
        adapted = build(network, candidate, outputs, settings.seed, 0)
        speed_up(adapted, precision, Casts(network.model, device))
        each = memory.bytes_per_image(adapted, precision, device)
        return memory.micro_batch(settings.batch_size, times * each, free)

    # LoRA needs peft, whose import takes seconds that a driver can spare where memory is plenty.
    return fits({"method": "ssf"}, _PLENTY) and fits({"method": "lora", "modules": "all", "r": 8})


def cache_bytes(settings: Settings) -> int:
    """``--cache-gb``; by default a quarter of the free disk, at most 20 GB."""
    if settings.cache_gb is not None:
        return int(min(settings.cache_gb, 1e6) * 1e9)
    folder = Path(settings.runs_dir).resolve()
    while not folder.exists():  # a plan may come before there is any run
        folder = folder.parent
    return min(20 * 10**9, shutil.disk_usage(folder).free // 4)
