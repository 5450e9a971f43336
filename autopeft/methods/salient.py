"""The layer on salient channels, where it sits, and which channels the training images excite."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.methods.hooks import behind, channels_last, pre_norm_block

if TYPE_CHECKING:
    from autopeft.backbones.network import Network
    from autopeft.methods.method import Scoring

IMAGES = 1000  # channels are chosen on at most this many training images
BATCH = 32


class Salient(nn.Module):
    """What channels S gain: s (G X[..., S] + g), zero in the others.

    Args:
        channels: S [k], ascending.
        scale: s.
        init: ``zero``, or ``paper`` (G truncated normal, std 0.02).
    """

    channels: Tensor

    def __init__(self, channels: Tensor, scale: float, init: str) -> None:
        super().__init__()
        self.register_buffer("channels", channels.clone())
        self.weight = nn.Parameter(torch.zeros(len(channels), len(channels)))
        self.bias = nn.Parameter(torch.zeros(len(channels)))
        if init == "paper":
            nn.init.trunc_normal_(self.weight, std=0.02)
        self.scale = scale

    def gain(self, x: Tensor) -> Tensor:
        """Channels S of the input, [..., k] -> [..., k]."""
        return functional.linear(x, self.weight * self.scale, self.bias * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], zero outside S."""
        gain = self.gain(x.index_select(-1, self.channels)).to(x.dtype)
        return torch.zeros_like(x).index_copy(-1, self.channels, gain)


def channel_scores(scoring: Scoring, where: str) -> list[Tensor]:
    """For each block, the class-averaged L2 norm of its channels at a place: [D] each.

    Over the patch tokens (or the map) of the frozen backbone and the training images. A class's
    images are those with its label at 1; images without any are one class more; missing labels
    count for nothing.
    """
    fork, squares = scoring.network.fork(), list[Tensor]()
    facts = fork.facts
    first = fork.model.num_prefix_tokens if facts.family == "vit" else 0
    for block in range(facts.depth):
        _watch(fork, block, where, lambda x: squares.append(_energy(x, first)))
    sums: list[Tensor] = []
    with torch.no_grad():
        for x, label in scoring.batches(BATCH, IMAGES):
            squares.clear()
            fork.advance(0, x, facts.depth)
            groups = _groups(label).T.to(squares[0])
            parts = [groups @ square for square in squares]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    present = (sums[0] > 0).any(1)
    return [total[present].sqrt().mean(0).cpu() for total in sums]


def _groups(label: Tensor) -> Tensor:
    """1 where an image [b] belongs to a class [C + 1]; the last are images without a finding."""
    known = label.nan_to_num(0.0)
    none = (known.sum(1, keepdim=True) == 0) & ~label.isnan().all(1, keepdim=True)
    return torch.cat([known, none.to(known)], 1)


def _energy(x: Tensor, first: int) -> Tensor:
    """Squares of an activation summed over patches or the map: [B, D]."""
    x = channels_last(x).float()
    x = x[:, first:] if x.ndim == 3 else x.flatten(1, 2)
    return x.square().sum(1)


def _watch(network: Network, block: int, where: str, see: Callable[[Tensor], None]) -> None:
    """Shows the activation at a place at each run."""

    def see_input(module: nn.Module, args: Any) -> None:
        see(args[0])

    def see_output(module: nn.Module, args: Any, out: Tensor) -> None:
        see(out)

    path = network.block_names(block)
    if where == "attn":
        inner = f"{pre_norm_block(network, block)}.norm2"
        network.model.get_submodule(inner).register_forward_pre_hook(see_input)
    else:
        path = f"{pre_norm_block(network, block)}.mlp" if where == "mlp" else path
        network.model.get_submodule(path).register_forward_hook(see_output)


def attach(network: Network, block: int, where: str, module: Salient) -> None:
    """Makes a place X + s (G X[S] + g)."""
    if where == "block_out":
        behind(network, block, None, module)
        return
    path = pre_norm_block(network, block)
    if where == "mlp":

        def add(mlp: nn.Module, args: Any, out: Tensor) -> Tensor:
            total: Tensor = out + module(out)
            return total

        network.model.get_submodule(f"{path}.mlp").register_forward_hook(add)
        return
    seen: list[Tensor] = []

    def see(norm1: nn.Module, args: Any) -> None:
        seen[:] = [args[0]]

    def add_to_branch(ls1: nn.Module, args: Any, out: Tensor) -> Tensor:
        total: Tensor = out + module(seen.pop() + out).to(out.dtype)
        return total

    network.model.get_submodule(f"{path}.norm1").register_forward_pre_hook(see)
    network.model.get_submodule(f"{path}.ls1").register_forward_hook(add_to_branch)
