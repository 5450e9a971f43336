"""Per-channel scales and shifts on the modules of a fork, and their folding into plain weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

# The norm's weight and bias -> those to compute with.
Change = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a weight of its own."""
    named = "norm" in type(module).__name__.lower()
    return named and "weight" in dict(module.named_parameters(recurse=False))


def channel_dim(module: nn.Module) -> int:
    """Where the channels of a convolution's, a linear layer's or a layer scale's output are."""
    return 1 if isinstance(module, nn.Conv2d) else -1


def scaled(out: Tensor, scale: Tensor, shift: Tensor | None = None, dim: int = -1) -> Tensor:
    """scale * out + shift along one dimension, in the type of ``out``.

    The distance of the scale from 1 is what is lowered to that type: bf16 has no number between 1
    and 1.0078, so small steps of the scale itself would be lost.
    """
    if dim == 1:
        scale = scale.view(-1, 1, 1)
        shift = None if shift is None else shift.view(-1, 1, 1)
    moved = torch.addcmul(out, out, (scale - 1).to(out.dtype))
    return moved if shift is None else moved + shift.to(out.dtype)


def scale_output(module: nn.Module, scale: str, shift: str | None, owner: str) -> None:
    """Lets a module's output pass ``scaled``, with parameters of the module of these names."""

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        if "scaled_by" in vars(module):  # ``training.fast`` has it in the layer already
            return out
        moved = None if shift is None else module.get_parameter(shift)
        return scaled(out, module.get_parameter(scale), moved, channel_dim(module))

    hook.owner = owner  # type: ignore[attr-defined]
    hook.scales = scale, shift  # type: ignore[attr-defined]
    module.register_forward_hook(hook)
    if hasattr(module, "gamma"):
        module.forward = MethodType(_layer_scale, module)


def _layer_scale(self: Any, x: Tensor) -> Tensor:
    """In the place of a layer scale's ``forward``: its output keeps the type of its input."""
    out: Tensor = x * self.gamma.to(x.dtype)
    return out


def change_norm(norm: nn.Module, change: Change) -> None:
    """Lets a norm compute with a changed weight and bias; the plain ones stay where they are.

    Nothing is done to the activations, so it costs as much as training the norm itself. Several
    changes apply one after another.
    """
    if "norm_changes" not in vars(norm):
        vars(norm)["norm_changes"] = []
        norm.forward = MethodType(_changed_forward, norm)
    vars(norm)["norm_changes"].append(change)


def _changed_forward(self: Any, *args: Any) -> Any:
    """In the place of a norm's ``forward``."""
    weight, bias = self.weight, self.bias
    plain = weight, bias
    for change in self.norm_changes:
        weight, bias = change(self, weight, bias)
    self._parameters["weight"], self._parameters["bias"] = weight, bias
    try:
        return type(self).forward(self, *args)
    finally:
        self._parameters["weight"], self._parameters["bias"] = plain


def fold_norm(norm: nn.Module, change: Change) -> None:
    """Writes a change into the norm's weight and bias and takes it out."""
    with torch.no_grad():
        weight, bias = change(norm, norm.get_parameter("weight"), norm.get_parameter("bias"))
    set_frozen(norm, "weight", weight)
    set_frozen(norm, "bias", bias)
    vars(norm)["norm_changes"].remove(change)
    if not vars(norm)["norm_changes"]:
        del vars(norm)["norm_changes"], vars(norm)["forward"]


def fold_scale(module: nn.Module, scale: Tensor, shift: Tensor | None, owner: str) -> None:
    """Folds ``scale_output`` into a linear module, a convolution or a layer scale."""
    unhook(module, owner)
    with torch.no_grad():
        scale = scale.detach()
        if hasattr(module, "gamma"):
            set_frozen(module, "gamma", module.get_parameter("gamma") * scale)
            vars(module).pop("forward", None)
            return
        if vars(module).pop("scaled_by", None):
            vars(module).pop("forward")
        weight = module.get_parameter("weight")
        column = scale.reshape(-1, *[1] * (weight.ndim - 1))
        set_frozen(module, "weight", weight * column)
        if getattr(module, "bias", None) is not None:
            bias = module.get_parameter("bias") * scale
            set_frozen(module, "bias", bias if shift is None else bias + shift)


def set_frozen(module: nn.Module, name: str, value: Tensor) -> None:
    """Puts a new tensor in a parameter's place; the old tensor keeps its values."""
    setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))


def unhook(module: nn.Module, owner: str) -> None:
    """Takes out the forward hooks of one method."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "owner", None) == owner:
                del hooks[key]


def add_parameters(
    module: nn.Module, path: str, values: Mapping[str, Tensor]
) -> dict[str, nn.Parameter]:
    """Registers parameters on a module; gives them by full name, ``path`` in front."""
    device = next(module.parameters()).device
    found = {}
    for name, value in values.items():
        found[f"{path}.{name}"] = nn.Parameter(value.to(device))
        module.register_parameter(name, found[f"{path}.{name}"])
    return found


def add_buffers(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Registers frozen tensors that no state dict names and nothing lowers to bf16."""
    device = next(module.parameters()).device
    for name, value in values.items():
        module.register_buffer(name, value.to(device), persistent=False)


def remove(module: nn.Module, names: Iterable[str]) -> None:
    """Takes registered parameters and buffers out again."""
    for name in names:
        delattr(module, name)
