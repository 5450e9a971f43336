"""The network beside the frozen one that UniPT trains, and how it reads the frozen states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.methods.added import Norm, first_layer, zeroed


class Down(nn.Module):
    """LN(V x): [B, N, D] -> [B, N, m].

    Args:
        inputs: D.
        outputs: m.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = first_layer(inputs, outputs)
        self.norm = Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.norm(functional.linear(x, self.linear.weight, self.linear.bias))
        return out


class Side(nn.Module):
    """The parallel network of one stratum.

    d_l = LN(V_l F_l) for each tapped state and for the readout's, which is the anchor a;
    c_l = (norm1(relu(a d_l')) + I) d_l with rows that sum to 1; gates are the softmax over l of
    w . (mean(a) * mean(d_l)); the result is U relu(a + LN(P sum_l gate_l c_l)).

    Args:
        tapped: widths of the tapped states.
        width: D, width of the readout's state.
        m: width of the side network.
        zero: whether U starts at zero.
    """

    def __init__(self, tapped: Sequence[int], width: int, m: int, zero: bool) -> None:
        super().__init__()
        self.taps = nn.ModuleList(Down(inputs, m) for inputs in tapped)
        self.anchor, self.project = Down(width, m), Down(m, m)
        # No bias: softmax over the layers would not see it. One layer needs no gate.
        self.gate = nn.Linear(m, 1, bias=False) if len(tapped) > 1 else None
        self.up = zeroed(nn.Linear(m, width)) if zero else first_layer(m, width)

    def gates(self, anchor: Tensor, tapped: Sequence[Tensor]) -> Tensor:
        """Weight of each tapped layer: [B, layers], rows that sum to 1."""
        if self.gate is None:
            return anchor.new_ones(len(anchor), 1)
        mean = anchor.mean(1)
        products = torch.stack([mean * d.mean(1) for d in tapped], 1)
        return functional.linear(products, self.gate.weight)[..., 0].softmax(1)

    def forward(self, states: Sequence[Tensor], last: Tensor) -> Tensor:
        """Tapped states and the readout's, all [B, N, D_l] -> [B, N, D]."""
        anchor = self.anchor(last)
        tapped = [down(state) for down, state in zip(self.taps, states, strict=True)]
        mixed = torch.zeros_like(anchor)
        for gate, d in zip(self.gates(anchor, tapped).unbind(1), tapped, strict=True):
            weight = functional.relu(anchor @ d.transpose(1, 2))
            total = weight.sum(-1, keepdim=True).clamp(min=1e-6)
            mixed = mixed + gate[:, None, None].to(d.dtype) * (weight @ d / total + d)
        out = functional.relu(anchor + self.project(mixed))
        return functional.linear(out, self.up.weight, self.up.bias)


def readout_of(out: Tensor, sides: Sequence[tuple[Side, list[Tensor]]], residual: bool) -> Tensor:
    """The readout's state with all side networks' results."""
    grid = out.shape[2:]
    total = out if residual else torch.zeros_like(out)
    for side, seen in sides:
        result = side([_tokens(state, grid) for state in seen], _tokens(out, grid))
        seen.clear()
        if out.ndim == 4:
            result = result.transpose(1, 2).reshape(out.shape)
        total = total + result.to(out.dtype)
    return total


def tap(block: nn.Module, seen: list[Tensor], first: bool) -> None:
    """Keeps what goes into a block."""

    def see(module: nn.Module, args: Any) -> None:
        if first:
            seen.clear()
        seen.append(args[0])

    block.register_forward_pre_hook(see)


def _tokens(state: Tensor, grid: Sequence[int]) -> Tensor:
    """[B, N, D]; a map is averaged to a grid first."""
    if state.ndim == 3:
        return state
    height, width = grid
    return functional.adaptive_avg_pool2d(state, (height, width)).flatten(2).transpose(1, 2)
