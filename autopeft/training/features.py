"""Frozen features: one pass of the backbone serves every readout and every probe."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from autopeft.candidate import Pool
from autopeft.files import write_bytes
from autopeft.training.images import ImageStore, normalize
from autopeft.training.precision import Precision, autocast
from autopeft.version import __version__

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network

Floats = npt.NDArray[np.float32]
BATCH = 64


def frozen_features(
    network: Network,
    store: ImageStore,
    index: npt.NDArray[np.int64],
    readouts: Sequence[tuple[int, Pool]],
    precision: Precision,
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[int, Pool], Floats]:
    """Pooled frozen features of plain images at several readouts, from one forward pass.

    Args:
        network: the resident backbone.
        store: decoded images.
        index: rows of the store [N].
        readouts: (block, pool) pairs.
        precision: number format of the pass.
        cache: folder in which each readout is kept as one file; None = nowhere.
        progress: called with (images done, images in all).

    Returns:
        (block, pool) -> float32 [N, d].
    """
    key = _key(identity(network.facts), store, index, precision)
    found: dict[tuple[int, Pool], Floats] = {}
    for readout in readouts:
        file = _file(cache, key, readout)
        if file is not None and file.exists():
            found[readout] = np.load(file, allow_pickle=False)
    missing = [r for r in readouts if r not in found]
    if missing:
        for readout, value in _compute(network, store, index, missing, precision, progress):
            found[readout] = value
            file = _file(cache, key, readout)
            if file is not None:
                write_bytes(file, _npy(value))
    return found


def _compute(
    network: Network,
    store: ImageStore,
    index: npt.NDArray[np.int64],
    readouts: Sequence[tuple[int, Pool]],
    precision: Precision,
    progress: Callable[[int, int], None],
) -> list[tuple[tuple[int, Pool], Floats]]:
    parts: dict[tuple[int, Pool], list[Floats]] = {r: [] for r in readouts}
    facts, device = network.facts, next(network.model.parameters()).device
    with torch.inference_mode(), autocast(precision, device.type):
        for start in range(0, len(index), BATCH):
            rows = index[start : start + BATCH]
            x = normalize(store.batch(rows), facts.mean, facts.std).to(device)
            state = network.stem(x)
            block = 0
            for readout in sorted(readouts):
                state = network.run(state, block, readout[0])
                block = readout[0]
                pooled = network.pooled(state, block, readout[1])
                parts[readout].append(pooled.float().cpu().numpy())
            progress(min(start + BATCH, len(index)), len(index))
    return [(r, np.concatenate(v)) for r, v in parts.items()]


def identity(facts: Facts) -> str:
    """All that frozen features depend on: two architectures may share their tensors."""
    return f"{facts.name} {facts.sha256} {facts.mean} {facts.std} {facts.image_size} {__version__}"


def _key(sha: str, store: ImageStore, index: npt.NDArray[np.int64], precision: str) -> str:
    h = hashlib.sha256(f"2 {sha} {store.folder.name} {precision}".encode())
    h.update(np.ascontiguousarray(index, np.int64).tobytes())
    return h.hexdigest()[:16]


def _file(cache: Path | None, key: str, readout: tuple[int, Pool]) -> Path | None:
    return None if cache is None else cache / f"features-{key}-{readout[0]}-{readout[1]}.npy"


def _npy(value: Floats) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=False)
    return stream.getvalue()
