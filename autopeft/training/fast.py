"""The same training step with less work: weights cast once, adapters fused, attention explicit.

A plain step under autocast casts every frozen weight again and again, lays it out anew in each
product, runs LoRA as six small operations, and takes a fused attention whose backward pass is slow
for few tokens on a CPU. What is done here changes none of the mathematics; peft's own layers are
the reference in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autopeft.training.attention import attend_explicitly
from autopeft.training.precision import LOW, Device, Precision
from autopeft.training.products import Matrix, can_pack

if TYPE_CHECKING:
    from autopeft.backbones.network import Network
    from autopeft.methods.adapted import Adapted

# Explicit attention keeps its B x heads x N x N weights; with more tokens that is too much memory.
FEW_TOKENS = 600
_NEAR_ZERO = 0.1  # a scale that nothing is divided by


class Casts:
    """Copies of one resident backbone's frozen tensors as the device wants them, made once.

    All forks share them: in a low number format, and on a GPU if there is one. The resident
    backbone stays in fp32 in this machine's memory, so adapters are built the same everywhere.

    A copy is found by where its original lies in memory. Only the backbone's own tensors are kept,
    which stay alive with it; a fork's own (a method's frozen projection) lie where others may lie
    when the fork is gone.

    Args:
        model: the resident backbone.
        device: where the copies lie.
    """

    def __init__(self, model: nn.Module, device: Device = "cpu") -> None:
        self.device = device
        self._originals = {p.data_ptr(): p for p in model.parameters()}
        self._copies: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
        self._matrices: dict[tuple[int, torch.Size], Matrix] = {}

    def low(self, tensor: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The copy of a frozen tensor in a number format."""
        key = (tensor.data_ptr(), tensor.shape, dtype)
        if key[0] not in self._originals:
            return tensor.detach().to(self.device, dtype)
        if key not in self._copies:
            self._copies[key] = tensor.detach().to(self.device, dtype)
        return self._copies[key]

    def matrix(self, weight: Tensor) -> Matrix:
        """A frozen weight for its products; the copies made here are laid out once for all."""
        key = weight.data_ptr(), weight.shape
        if key not in self._matrices:
            copies = (c for c in self._copies.values() if (c.data_ptr(), c.shape) == key)
            copy = next(copies, None)
            if copy is None:  # the fork's own, which may change
                return Matrix(weight)
            self._matrices[key] = Matrix(copy, fixed=True)
        return self._matrices[key]


def speed_up(adapted: Adapted, precision: Precision, casts: Casts) -> None:
    """Makes an adapter's fork fast. Names and values of what trains stay as they are.

    Args:
        adapted: a fresh one; forks of other candidates are not touched.
        precision: a low one is that of the frozen weights; what trains and is saved stays fp32.
        casts: of the resident backbone that the fork shares its tensors with.
    """
    kept = {id(t) for t in (*adapted.trainable.values(), *adapted.fixed.values())}
    _quicken(adapted.network, kept, precision, casts)
    if casts.device != "cpu":
        move([*adapted.trainable.values(), *adapted.fixed.values()], casts.device)
    for module in adapted.network.model.modules():
        if _is_plain_lora(module):
            vars(module)["matrix"] = casts.matrix(module.get_base_layer().weight)
            module.forward = MethodType(_lora_forward, module)
        elif casts.device == "cpu" and (names := _plain_scale(module)):
            vars(module)["scaled_by"] = names
            module.forward = MethodType(_scaled_forward, module)
    _lay_out(adapted.network.model, casts)


def move(tensors: Iterable[Tensor], device: Device) -> None:
    """Puts tensors on a device. They stay the objects that hooks and optimizers know."""
    for tensor in tensors:
        tensor.data = tensor.data.to(device)


def quick_frozen(network: Network, precision: Precision, casts: Casts) -> Network:
    """A fork of a frozen network that computes exactly what a sped-up adapter computes below."""
    fork = network.fork()
    _quicken(fork, set(), precision, casts)
    _lay_out(fork.model, casts)
    return fork


def _lay_out(model: nn.Module, casts: Casts) -> None:
    """Frozen linear layers that nothing has been put in the place of; adapters come first."""
    if casts.device != "cpu" or not can_pack():
        return
    linear: list[Any] = [m for m in model.modules() if _is_frozen_linear(m)]
    for module in linear:
        vars(module)["matrix"] = casts.matrix(module.weight)
        module.forward = MethodType(_frozen_forward, module)


def _quicken(network: Network, kept: set[int], precision: Precision, casts: Casts) -> None:
    model, facts = network.model, network.facts
    _lower(model, kept, casts, LOW.get(precision, torch.float32))
    if casts.device != "cpu":
        move([*model.parameters(), *model.buffers()], casts.device)
    slow = slow_fused(precision, casts.device)
    few = facts.patch is not None and (facts.image_size // facts.patch) ** 2 <= FEW_TOKENS
    for module in model.modules():
        if slow and few and hasattr(module, "fused_attn"):
            attend_explicitly(module)


def slow_fused(precision: Precision, device: Device) -> bool:
    """Whether attention is computed explicitly, up to ``FEW_TOKENS`` tokens.

    On a CPU torch's fused attention is 2 to 7 times slower in bf16, forward and backward together,
    at 17 to 1,025 tokens; in fp32 it is as fast or faster.
    """
    return precision in LOW and device == "cpu"


def _lower(model: nn.Module, kept: set[int], casts: Casts, dtype: torch.dtype) -> None:
    """Puts the shared copies in the place of frozen parameters.

    Norms stay in fp32: they take low inputs too, as fast, while a low norm refuses what becomes
    fp32 where a layer scale or a token below it trains. A module of which a part trains stays too.
    """
    if dtype == torch.float32 and casts.device == "cpu":
        return  # they are their own copies
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        matrix = isinstance(module, (nn.Linear, nn.Conv2d))
        whole = "norm" in type(module).__name__.lower() or (
            not matrix and any(id(parameter) in kept for parameter in own.values())
        )
        if whole and casts.device == "cpu":
            continue
        for name, parameter in own.items():
            if id(parameter) not in kept and parameter.dtype == torch.float32:
                copied = casts.low(parameter, torch.float32 if whole else dtype)
                setattr(module, name, nn.Parameter(copied, requires_grad=False))


def _is_plain_lora(module: Any) -> bool:
    """A peft LoRA layer on a linear one without dropout, DoRA or anything else on top."""
    if not hasattr(module, "lora_A"):  # peft is imported only where it is used already
        return False
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear:
        return False
    base = module.get_base_layer()
    hooks = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
    return (
        type(base) is nn.Linear
        and not hooks  # another method's, which the fast path would pass by
        and len(module.active_adapters) == 1
        and not module.lora_variant
        and all(isinstance(d, nn.Identity) for d in module.lora_dropout.values())
        and not any(module.lora_bias.values())
    )


def _lora_forward(self: Any, x: Tensor) -> Tensor:
    """In the place of ``peft.tuners.lora.layer.Linear.forward``."""
    base, [name] = self.get_base_layer(), self.active_adapters
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    out: Tensor = LowRank.apply(x, self.matrix, base.bias, a, b, self.scaling[name])
    return out


def _is_frozen_linear(module: Any) -> bool:
    """A frozen linear layer in bf16 whose forward pass is still torch's own."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return module.weight.dtype == torch.bfloat16 and not module.weight.requires_grad


def _frozen_forward(self: Any, x: Tensor) -> Tensor:
    """In the place of a frozen linear layer's ``forward``."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    # Reshaped outside: others may add to the output in place, and not to a function's own view.
    out: Tensor = Frozen.apply(x.reshape(-1, x.shape[-1]), self.matrix, self.bias)
    return out.view(*x.shape[:-1], -1)


def _plain_scale(module: Any) -> tuple[str, str | None] | None:
    """The names of scale and shift on a frozen linear layer with nothing else on top."""
    hooks = list(module._forward_hooks.values()) if type(module) is nn.Linear else []
    if len(hooks) != 1 or module._forward_pre_hooks or "forward" in vars(module):
        return None
    names: tuple[str, str | None] | None = getattr(hooks[0], "scales", None)
    trains = {n for n, p in module.named_parameters(recurse=False) if p.requires_grad}
    return names if names and trains <= set(names) else None


def _scaled_forward(self: Any, x: Tensor) -> Tensor:
    """In the place of a scaled linear layer's ``forward``; its hook does nothing then."""
    scale, shift = (None if n is None else self.get_parameter(n) for n in self.scaled_by)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    out: Tensor = Scaled.apply(x, self.weight, self.bias, scale, shift)
    return out


class Scaled(torch.autograd.Function):
    """y = s (W x + c) + t for a frozen W: the scale goes into the weight, not over the outputs.

    Shapes: x [..., i], W [o, i], c [o] or None, s [o], t [o] or None; s and t in fp32. Saved for
    the backward pass: y. The gradient of s is that of y without t, over s; where s is near 0,
    W x + c is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor, t: Tensor | None
    ) -> Tensor:
        """See the class."""
        flat = x.reshape(-1, x.shape[-1])
        scaled = (weight * s[:, None]).to(x.dtype)
        base = torch.zeros_like(s) if bias is None else bias * s
        base = (base if t is None else base + t).to(x.dtype)
        out = torch.addmm(base, flat, scaled.t())
        near = bool(s.detach().abs().min() < _NEAR_ZERO)
        ctx.save_for_backward(out, scaled, s, t, *((flat, weight, bias) if near else ()))
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of x, s and t."""
        out, scaled, s, t, *plain = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x = (grad @ scaled).view(ctx.shape) if ctx.needs_input_grad[0] else None
        grad_t = None if t is None else grad.sum(0, dtype=torch.float32)
        if plain:
            flat, weight, bias = plain
            low = None if bias is None else bias.to(flat.dtype)
            raw = torch.nn.functional.linear(flat, weight.to(flat.dtype), low)
            return grad_x, None, None, (grad * raw).sum(0, dtype=torch.float32), grad_t
        grad_s = (grad * out).sum(0, dtype=torch.float32)
        if t is not None:
            grad_s -= t * grad_t
        return grad_x, None, None, grad_s / s, grad_t


class Frozen(torch.autograd.Function):
    """y = W x + c for a frozen W; c may train. Shapes: x [n, i], W [o, i], c [o] or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
        """See the class."""
        ctx.matrix = matrix
        return matrix.ahead(x, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of x and c."""
        grad_x = ctx.matrix.back(grad) if ctx.needs_input_grad[0] else None
        grad_bias = None
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0, dtype=torch.float32)
        return grad_x, None, grad_bias


class LowRank(torch.autograd.Function):
    """y = W x + c + s B A x for a frozen W: one pass forward, one back, nothing kept twice.

    The sum is rounded once: beside a large W x + c, the little that an adapter says after its
    first steps would be lost in bf16. Shapes: x [..., i], W [o, i], c [o] or None, A [r, i],
    B [o, r]; A and B in fp32. Saved for the backward pass: x and A x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Matrix, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        """See the class."""
        flat = x.reshape(-1, x.shape[-1])
        # The short side first: products of few rows with many are faster than those of many.
        down, up = a.to(x.dtype), (b.t() * s).to(x.dtype)
        inner = down @ flat.t()
        out = matrix.ahead(flat, bias, (inner.t(), up))
        ctx.save_for_backward(flat, down, up, inner)
        ctx.matrix, ctx.s, ctx.shape = matrix, s, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of x, A and B, and of the bias where BitFit trains it too."""
        flat, down, up, inner = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        back = up @ grad.t()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.matrix.back(grad).addmm_(back.t(), down).view(ctx.shape)
        grad_a = (back @ flat).float()
        grad_b = (inner @ grad).t().float() * ctx.s
        grad_bias = grad.sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, grad_a, grad_b, None
