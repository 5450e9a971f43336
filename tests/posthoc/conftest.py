"""Tiny backbones and adapters whose every number has moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.adapter import Model, load_adapter, save
from autopeft.backbones.describe import random_backbone
from autopeft.backbones.network import Network
from autopeft.methods import build, canonical

META = {"classes": ["effusion", "mass", "nodule"], "kind": "multilabel", "thresholds": [0.5] * 3}
Make = Callable[..., Model]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def vit() -> Network:
    return random_backbone("test_vit", 32)


@pytest.fixture(scope="session")
def other_vit() -> Network:
    """The same architecture, other weights."""
    return random_backbone("test_vit", 32, seed=1)


@pytest.fixture(scope="session")
def resnet() -> Network:
    return random_backbone("test_resnet", 64)


@pytest.fixture
def trained(vit: Network, tmp_path: Path) -> Make:
    """Makes an adapter folder with moved numbers and loads it."""
    count = iter(range(100))

    def make(raw: dict[str, Any], seed: int = 0, network: Network = vit, **meta: Any) -> Model:
        meta = {**META, **meta}
        candidate = canonical(raw, network.facts)
        adapted = build(network, candidate, len(meta["classes"]), 0, 0)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.trainable.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        folder = tmp_path / f"adapter{next(count)}"
        folder.mkdir()
        save(adapted, folder, meta)
        return load_adapter(folder, network=network)

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
