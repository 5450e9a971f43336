"""The effect of a young adapter: what it changes, not what a cache remembers."""

import sys
from pathlib import Path

import pytest
import torch

from autopeft.backbones.describe import random_backbone
from autopeft.methods import build, canonical

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import rounding  # noqa: E402


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_effect_is_that_of_the_adapter(precision):
    network = random_backbone("test_vit", 32)
    candidate = canonical({**rounding.CANDIDATE, "lr": 1e-2}, network.facts)
    adapted = build(network, candidate, 1, seed=0, repeat=0)
    films = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rounding.train(adapted, films, torch.ones(4, 1), 1e-2, 3)
    with torch.no_grad():
        frozen = network.advance(0, films, network.depth)
        changed = adapted.network.advance(0, films, network.depth) - frozen
    found = rounding.effect(adapted, films, precision)
    assert found.norm() > 0
    assert (found - changed).norm() < 0.1 * changed.norm()
    assert rounding.effect(adapted, films, precision).norm() == 0  # its B is 0 now
