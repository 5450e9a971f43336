"""A ViT's block written out in plain operations, for checks of a method's formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

Op = Callable[[str, Tensor, Tensor], Tensor]  # name, its input, its output -> what is used


def as_it_is(name: str, x: Tensor, y: Tensor) -> Tensor:
    return y


def block(state: Mapping[str, Tensor], i: int, x: Tensor, heads: int, op: Op = as_it_is) -> Tensor:
    """Block i of a pre-norm ViT without layer scale; ``op`` sees each operation's output."""

    def linear(name: str, x: Tensor) -> Tensor:
        w, b = state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"]
        return op(name, x, x @ w.t() + b)

    def norm(name: str, x: Tensor) -> Tensor:
        w, b = state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"]
        centered = x - x.mean(-1, keepdim=True)
        scale = (centered.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return op(name, x, centered * scale * w + b)

    qkv = linear("attn.qkv", norm("norm1", x))
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
    x = x + linear("attn.proj", (weights @ v).transpose(1, 2).flatten(-2))
    hidden = functional.gelu(linear("mlp.fc1", norm("norm2", x)))
    return x + linear("mlp.fc2", hidden)
