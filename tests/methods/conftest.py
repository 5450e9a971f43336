"""Tiny backbones whose blocks all matter (no layer scale or BatchNorm weight near zero)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from autopeft.backbones.describe import random_backbone
from autopeft.backbones.network import Network

SIZES = {"test_vit": 32, "test_resnet": 64, "test_convnext": 64, "test_efficientnet": 64}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def networks() -> dict[str, Network]:
    return {name: random_backbone(name, size) for name, size in SIZES.items()}


@pytest.fixture(scope="session")
def vit(networks: dict[str, Network]) -> Network:
    return networks["test_vit"]


@pytest.fixture(scope="session")
def resnet(networks: dict[str, Network]) -> Network:
    return networks["test_resnet"]
