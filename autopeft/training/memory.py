"""How many images a forward pass may have: the memory of a training step, measured once.

A step's memory grows with what autograd keeps for the backward pass. On a CPU that is counted, so
that a measurement of two images serves any number; on a GPU the allocator is asked.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autopeft.training.precision import Device, Precision, autocast

if TYPE_CHECKING:
    from autopeft.methods.adapted import Adapted

IMAGES = 2  # of the measured step
# A real step's resident memory grew by 1.2 to 1.6 times what autograd keeps, by 1.7 times at 8
# images (``docs/inner.md``): the layer at work needs some beside it, and memory comes in pieces.
SAFETY = 1.75
SHARE = 0.5  # of what is available; the rest is for images, probes and everybody else


def micro_batch(batch_size: int, per_image: int, available: int | None) -> int:
    """Images a forward pass: 0 = the whole batch fits, else the largest power of two that does.

    Args:
        batch_size: images a step.
        per_image: bytes that a training step takes for each image.
        available: bytes that a worker may take; None = not known.
    """
    if available is None or batch_size * per_image <= available:
        return 0
    fits = max(1, available // max(1, per_image))
    return int(1 << (fits.bit_length() - 1))


def bytes_per_image(adapted: Adapted, precision: Precision, device: Device = "cpu") -> int:
    """Bytes that a training step takes for each image, measured on a step of ``IMAGES``.

    Args:
        adapted: a sped-up adapter on the device; its gradients are empty again afterwards.
        precision: number format of its frozen layers.
        device: where it lies.
    """
    size = adapted.network.facts.image_size
    x = torch.zeros(IMAGES, 3, size, size, device=device)
    adapted.set_train(True)
    if device == "cuda":
        return _peak(adapted, x, precision) // IMAGES
    weights = [*adapted.network.model.parameters(), *adapted.network.model.buffers()]
    known = {w.untyped_storage().data_ptr() for w in (*weights, *adapted.trainable.values())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            kept[place] = tensor  # alive, so that its place is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with autocast(precision):
            logits = adapted.logits(x)
        held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del logits
    adapted.set_train(False)
    return int(held * SAFETY) // IMAGES


def _peak(adapted: Adapted, x: Tensor, precision: Precision) -> int:
    """What a step takes on a GPU beyond what lay there before. Never run so far."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with autocast(precision, "cuda"):
        logits = adapted.logits(x)
    logits.float().sum().backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    peak = int(torch.cuda.max_memory_allocated()) - before
    for parameter in adapted.trainable.values():
        parameter.grad = None
    adapted.set_train(False)
    return peak


def available(workers: int = 1, device: Device = "cpu") -> int | None:
    """Bytes that one of this machine's workers may take for a step; None = not known.

    Args:
        workers: on this machine; on a GPU, those that share it.
        device: on which they train.
    """
    free = int(torch.cuda.mem_get_info()[0]) if device == "cuda" else free_memory()
    return None if free is None else int(free * SHARE) // max(1, workers)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still get: the machine's, or what its cgroup leaves it.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    found = [*_machine(root / "proc/meminfo"), *_groups(root)]
    return min(found, default=None)


def _machine(meminfo: Path) -> list[int]:
    with suppress(OSError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return [int(line.split()[1]) * 1024]
    return []


def _groups(root: Path) -> list[int]:
    """What each limit above this process leaves: in version 2 and in version 1 of cgroups."""
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "":
                top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                top = root / "sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            folder = top / path.lstrip("/")
            # In a container the path may be the host's; its own group lies at the top then.
            for place in {folder, *folder.parents, top}:
                if place == top or top in place.parents:
                    found += _left(place, *names)
    return found


def _left(folder: Path, limit: str, used: str) -> list[int]:
    """Bytes below one limit, files that the system may drop counted as free."""
    with suppress(OSError, ValueError):  # no such file, or the word `max`
        most = int((folder / limit).read_text())
        droppable = 0
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("total_inactive_file", "inactive_file"):
                droppable = max(droppable, int(value))
        return [max(0, most - int((folder / used).read_text()) + droppable)]
    return []
