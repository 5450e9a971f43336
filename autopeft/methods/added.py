"""The small modules that methods add: bottlenecks, convolutions and prompts of channels last."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

Grid = tuple[int, int]


class Norm(nn.Module):
    """Layer norm over the last dimension, in the type of its input.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return functional.layer_norm(x, (x.shape[-1],), weight, bias, 1e-6)


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The same layer with weight and bias 0, so that it adds nothing at first."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def first_layer(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Kaiming-uniform weight (a = sqrt 5, torch's own) and bias 0."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.bias)
    return linear


class Bottleneck(nn.Module):
    """s (U act(V n(x)) + c) with V [r, D_in], U [D_out, r] and biases; U starts at zero.

    Args:
        inputs: D_in.
        outputs: D_out.
        r: width of the bottleneck.
        act: ``gelu`` or ``relu``.
        scale: s.
        norm: whether n is a layer norm of its own, else nothing.
        dropout: dropout in the bottleneck while training.
        learn_scale: whether s trains.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        r: int,
        act: str,
        scale: float = 1.0,
        norm: bool = False,
        dropout: float = 0.0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        self.norm = Norm(inputs) if norm else None
        self.down = first_layer(inputs, r)
        self.up = zeroed(nn.Linear(r, outputs))
        self.scale: nn.Parameter | float = scale
        if learn_scale:
            self.scale = nn.Parameter(torch.tensor(scale))
        self.act, self.dropout = act, dropout

    def forward(self, x: Tensor) -> Tensor:
        """[..., D_in] -> [..., D_out]."""
        if self.norm is not None:
            x = self.norm(x)
        x = functional.linear(x, self.down.weight, self.down.bias)
        x = functional.gelu(x) if self.act == "gelu" else functional.relu(x)
        if self.dropout and self.training:
            x = functional.dropout(x, self.dropout)
        # The scale goes into the small weights, not over all activations.
        return functional.linear(x, self.up.weight * self.scale, self.up.bias * self.scale)


def over_grid(x: Tensor, grid: Grid | None, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """A 'same' convolution over the patches of token states, or over a map.

    Tokens that are no patch (class, register, prompt) stand first and are 1x1 images of their own:
    with zeros around them only the kernel's center meets them.

    Args:
        x: tokens [B, N, r], or with ``grid`` None a map [B, H, W, r].
        grid: height and width of the patch grid; N - h w tokens are no patch.
        weight: [r, r / groups, k, k], k odd.
        bias: [r].
        groups: 1, or r for a depthwise convolution.

    Returns:
        The shape of ``x``.
    """
    half = weight.shape[-1] // 2
    if grid is None:
        out = functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=half, groups=groups)
        return out.permute(0, 2, 3, 1)
    b, n, r = x.shape
    first = n - grid[0] * grid[1]
    image = x[:, first:].transpose(1, 2).reshape(b, r, *grid)
    image = functional.conv2d(image, weight, bias, padding=half, groups=groups)
    patches = image.flatten(2).transpose(1, 2)
    if not first:
        return patches
    center = weight[:, :, half, half]
    if groups == 1:
        rest = functional.linear(x[:, :first], center, bias)
    else:
        rest = x[:, :first] * center[:, 0].to(x.dtype) + bias.to(x.dtype)
    return torch.cat([rest.to(patches.dtype), patches], 1)


class ConvBottleneck(nn.Module):
    """s (U gelu(conv3x3(gelu(V x)))) over the patch grid, all with biases; U starts at zero.

    Args:
        inputs: D_in.
        outputs: D_out.
        r: channels of the bottleneck.
        scale: s.
        init: ``center``: the convolution starts as the identity; ``xavier``.
        grid: patch grid of tokens; None for maps.
    """

    def __init__(
        self, inputs: int, outputs: int, r: int, scale: float, init: str, grid: Grid | None
    ) -> None:
        super().__init__()
        self.down = first_layer(inputs, r)
        self.conv = nn.Conv2d(r, r, 3, padding=1)
        self.up = zeroed(nn.Linear(r, outputs))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        if init == "center":
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
        self.scale, self.grid = scale, grid

    def forward(self, x: Tensor) -> Tensor:
        """[..., D_in] -> [..., D_out], channels last."""
        assert self.conv.bias is not None
        x = functional.gelu(functional.linear(x, self.down.weight, self.down.bias))
        x = functional.gelu(over_grid(x, self.grid, self.conv.weight, self.conv.bias, 1))
        return functional.linear(x, self.up.weight * self.scale, self.up.bias * self.scale)


class ConvModule(nn.Module):
    """U silu(n(depthwise(glu(P n(x))))) with P [2 r, D_in], U [D_out, r]; U starts at zero.

    Args:
        inputs: D_in.
        outputs: D_out.
        r: channels of the bottleneck.
        kernel: length of the depthwise kernel, odd; with ``square`` its side.
        square: convolve over the grid, else along the sequence of all tokens.
        grid: patch grid of tokens; None for maps.
        dropout: dropout on the output while training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        r: int,
        kernel: int,
        square: bool,
        grid: Grid | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm = Norm(inputs)
        self.down = first_layer(inputs, 2 * r)
        self.conv: nn.Conv1d | nn.Conv2d
        if square:
            self.conv = nn.Conv2d(r, r, kernel, groups=r)
        else:
            self.conv = nn.Conv1d(r, r, kernel, groups=r)
        self.mid = Norm(r)
        self.up = zeroed(nn.Linear(r, outputs))
        self.square, self.grid, self.dropout = square, grid, dropout

    def forward(self, x: Tensor) -> Tensor:
        """[..., D_in] -> [..., D_out], channels last."""
        conv, r = self.conv, self.conv.in_channels
        assert conv.bias is not None
        x = functional.linear(self.norm(x), self.down.weight, self.down.bias)
        x = functional.glu(x, -1)
        if self.square:
            x = over_grid(x, self.grid, conv.weight, conv.bias, r)
        else:
            half = conv.weight.shape[-1] // 2
            x = functional.conv1d(x.transpose(1, 2), conv.weight, conv.bias, 1, half, 1, r)
            x = x.transpose(1, 2)
        x = functional.silu(self.mid(x))
        x = functional.linear(x, self.up.weight, self.up.bias)
        return functional.dropout(x, self.dropout) if self.dropout and self.training else x


class DynamicPrompts(nn.Module):
    """s (U A + c) with A = softmax(Z E' / sqrt r) E, E = softmax(Q Z' / sqrt r) Z, Z = gelu(V X).

    E [B, p, r] are the image's prompts, asked from its tokens by the queries Q [p, r]; A [B, N, r]
    gives them back to the tokens. U [D, r] and c start at zero.

    Args:
        width: D.
        r: width of the bottleneck.
        p: number of prompts.
        scale: s.
    """

    def __init__(self, width: int, r: int, p: int, scale: float) -> None:
        super().__init__()
        self.down = first_layer(width, r)
        self.queries = nn.Parameter(torch.empty(p, r).normal_())
        self.up = zeroed(nn.Linear(r, width))
        self.scale = scale

    def prompts(self, z: Tensor) -> Tensor:
        """Z [B, N, r] -> E [B, p, r]."""
        return _attend(self.queries.to(z.dtype).expand(len(z), -1, -1), z)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ..., D] -> the same; what is between counts as tokens."""
        z = functional.gelu(functional.linear(x, self.down.weight, self.down.bias))
        z = z.flatten(1, -2)
        back = _attend(z, self.prompts(z))
        up, bias = self.up.weight * self.scale, self.up.bias * self.scale
        return functional.linear(back, up, bias).view(x.shape)


def _attend(query: Tensor, values: Tensor) -> Tensor:
    """softmax(query values' / sqrt r) values."""
    scores = query @ values.transpose(1, 2) / math.sqrt(values.shape[-1])
    return scores.softmax(-1).to(values.dtype) @ values
