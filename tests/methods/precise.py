"""A method in bf16, as a search runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from autopeft.backbones.network import Network
from autopeft.methods.adapted import Adapted, build
from autopeft.methods.canonical import canonical
from autopeft.training.fast import Casts, speed_up
from autopeft.training.precision import autocast


def some(raws: Sequence[Mapping[str, Any]], *quick: int) -> list[Any]:
    """Candidates as parameters of a test; those not named run with ``-m slow`` only."""
    return [
        raw if i in quick else pytest.param(raw, marks=pytest.mark.slow)
        for i, raw in enumerate(raws)
    ]


def moved(
    raw: Mapping[str, Any],
    network: Network,
    fixed: Mapping[str, Tensor] | None = None,
    by: float = 0.03,
) -> Adapted:
    """A candidate with every number of its adapter moved a little."""
    adapted = build(network, canonical(raw, network.facts), 3, 0, 0, fixed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.trainable.items():
            if not name.startswith(network.facts.classifier):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return adapted


def pixels(network: Network, count: int = 2) -> Tensor:
    """Random images [count, 3, S, S]."""
    size = network.facts.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def check_bf16(
    raw: Mapping[str, Any], network: Network, fixed: Mapping[str, Tensor] | None = None
) -> None:
    """bf16 is close to fp32, what trains stays fp32 and has a gradient, no state gets wider."""
    x = pixels(network)
    whole, fast = moved(raw, network, fixed), moved(raw, network, fixed)
    speed_up(fast, "bf16", Casts(network.model))
    kinds = set()
    for i in range(whole.candidate.readout.block):
        block = fast.network.model.get_submodule(fast.network.block_names(i))
        block.register_forward_hook(lambda m, a, out: kinds.add(out.dtype))
    with autocast("bf16"):
        low = fast.pooled(x)
    low.float().square().sum().backward()
    with torch.no_grad():
        high = whole.pooled(x)
    assert kinds == {torch.bfloat16}, kinds
    apart = float((low.detach().float() - high).abs().max() / high.abs().max())
    assert apart < 0.05, apart
    head = {id(p) for p in fast.head.parameters()}
    for name, parameter in fast.trainable.items():
        assert parameter.dtype == torch.float32, name
        assert id(parameter) in head or parameter.grad is not None, name
        assert id(parameter) in head or parameter.grad.abs().sum() > 0, name
