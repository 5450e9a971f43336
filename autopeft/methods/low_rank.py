"""Low-rank changes of the weights of linear layers and convolutions, added to their output.

y = W x + c + B A x, with A [r, fan in] and B [outputs, r] made by the method from what it trains,
once a forward pass. A hook adds it, so it goes together with what other methods do to a module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.backbones.network import Network
from autopeft.candidate import Stratum
from autopeft.methods.affine import set_frozen, unhook

# module -> (A, B)
Factors = Callable[[nn.Module], tuple[Tensor, Tensor]]


class AddLowRank(torch.autograd.Function):
    """out + B A x in place: one pass forward, one back, in the type of ``out``.

    Shapes: out [..., o], x [..., i] in the type of out, A [r, i], B [o, r]. A and B may be fp32
    masters. Saved for the backward pass: x and A x.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """See the class."""
        down, up = a.to(out.dtype), b.to(out.dtype)
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ down.t()
        out.view(-1, out.shape[-1]).addmm_(inner, up.t())
        ctx.mark_dirty(out)
        ctx.save_for_backward(flat, down, up, inner)
        ctx.types, ctx.shape = (a.dtype, b.dtype), x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of out, x, A and B."""
        flat, down, up, inner = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            back = rows @ up
            if ctx.needs_input_grad[1]:
                grad_x = (back @ down).view(ctx.shape)
            if ctx.needs_input_grad[2]:
                grad_a = (back.t() @ flat).to(ctx.types[0])
        if ctx.needs_input_grad[3]:
            grad_b = (inner.t() @ rows).t().to(ctx.types[1])  # faster than rows^T inner
        return grad, grad_x, grad_a, grad_b


def add_low_rank(module: nn.Module, factors: Factors, owner: str, dropout: float = 0.0) -> None:
    """Adds B A x to the output of a linear layer or a convolution of one group.

    Args:
        module: a fork's own module.
        factors: gives A and B; it finds what it needs on the module it is given, since a fork of
            a fork has other modules. It runs in fp32.
        owner: the method's name.
        dropout: on x while the module is in training mode.
    """

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        x = args[0].to(out.dtype)
        if dropout and module.training:
            x = functional.dropout(x, dropout)
        with torch.autocast(out.device.type, enabled=False):
            a, b = factors(module)
        if isinstance(module, nn.Conv2d):
            return out + _convolved(module, x, a, b).to(out.dtype)
        added: Tensor = AddLowRank.apply(out.contiguous(), x, a, b)
        return added

    hook.owner = owner  # type: ignore[attr-defined]
    module.register_forward_hook(hook)


def _convolved(conv: nn.Conv2d, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A with the kernel of the layer, then B as a 1x1 convolution."""
    kernel = a.view(-1, *conv.weight.shape[1:]).to(x.dtype)
    inner = conv._conv_forward(x, kernel, None)
    return functional.conv2d(inner, b[:, :, None, None].to(x.dtype))


def fold_low_rank(module: nn.Module, factors: Factors, owner: str) -> None:
    """Writes W + B A and takes the hook out."""
    unhook(module, owner)
    with torch.no_grad():
        a, b = factors(module)
        weight = module.get_parameter("weight")
        set_frozen(module, "weight", weight + (b @ a).view(weight.shape))


def fresh_a(rank: int, fan_in: int) -> Tensor:
    """A [r, fan in] as LoRA starts: Kaiming-uniform with a = sqrt 5."""
    a = torch.empty(rank, fan_in)
    nn.init.kaiming_uniform_(a, a=5**0.5)
    return a


def paths_of(network: Network, stratum: Stratum) -> list[str]:
    """Module paths that a stratum names, in network order."""
    facts = network.facts
    return [
        network.module_path(block, name)
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1)
        for name in stratum.modules
        if facts.modules[name][block]
    ]
