"""Where a method's own module computes: behind or beside a branch of a block, or the whole block.

A ViT's block is x -> y = x + ls1(attn(norm1(x))) -> y + ls2(mlp(norm2(y))): two branches. A CNN's
block is taken as a whole. Hooks sit on the fork's own modules, so names stay plain, and a function
sees channels last: tokens [B, N, D], or a map as [B, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.errors import UserError

if TYPE_CHECKING:
    from autopeft.backbones.network import Network
    from autopeft.methods.sites import Branch

Change = Callable[[Tensor], Tensor]  # channels last -> what is added, channels last

# branch -> the modules that read its input, compute it, and end it before the residual sum
_PARTS = {"attn": ("norm1", "attn", "ls1"), "mlp": ("norm2", "mlp", "ls2")}


def add_module(network: Network, path: str, name: str, module: nn.Module) -> Any:
    """Registers a module as a child of ``path``; gives its parameters by full name."""
    module.to(next(network.model.parameters()).device)
    network.model.get_submodule(path).register_module(name, module)
    return {f"{path}.{name}.{key}": value for key, value in module.named_parameters()}


def behind(network: Network, block: int, branch: Branch | None, change: Change) -> None:
    """Makes what a branch adds, or a whole block puts out (None), h + change(h)."""
    path = network.block_names(block) if branch is None else _parts(network, block, branch)[2]

    def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return plus(out, change(channels_last(out)))

    network.model.get_submodule(path).register_forward_hook(add)


def beside(
    network: Network, block: int, branch: Branch | None, change: Change, normed: bool = False
) -> None:
    """Adds change(input) to what a branch adds, or a whole block puts out (None).

    Args:
        network: the fork.
        block: the block.
        branch: None for the whole block. A map's input is taken at the output's places (stride).
        change: what to add.
        normed: whether a branch's input is taken behind its norm, else the residual stream.
    """
    if branch is None:
        path = network.block_names(block)

        def add_to_block(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return plus(out, change(channels_last(_strided(args[0], out))))

        network.model.get_submodule(path).register_forward_hook(add_to_block)
        return
    norm, main, end = _parts(network, block, branch)
    seen: list[Tensor] = []

    def see(module: nn.Module, args: Any) -> None:
        seen[:] = [args[0]]

    def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return plus(out, change(seen.pop()))

    network.model.get_submodule(main if normed else norm).register_forward_pre_hook(see)
    network.model.get_submodule(end).register_forward_hook(add)


def plus(out: Tensor, change: Tensor) -> Tensor:
    """The sum in the type and layout of ``out``; ``change`` has its channels last."""
    change = change.to(out.dtype)
    return out + (change.permute(0, 3, 1, 2) if out.ndim == 4 else change)


def channels_last(state: Tensor) -> Tensor:
    """Tokens as they are, a map [B, C, H, W] as [B, H, W, C]."""
    return state.permute(0, 2, 3, 1) if state.ndim == 4 else state


def pre_norm_block(network: Network, block: int) -> str:
    """Path of a ViT's block, which must have the form that this file's first lines say.

    Raises:
        UserError: it has another form.
    """
    path = network.block_names(block)
    children = dict(network.model.get_submodule(path).named_children())
    if not {part for parts in _PARTS.values() for part in parts} <= children.keys():
        what = f"the blocks of {network.facts.name} are no plain pre-norm blocks"
        raise UserError(what, "method", "Choose another method or backbone.")
    return path


def _parts(network: Network, block: int, branch: Branch) -> tuple[str, str, str]:
    path = pre_norm_block(network, block)
    norm, main, end = _PARTS[branch]
    return f"{path}.{norm}", f"{path}.{main}", f"{path}.{end}"


def _strided(state: Tensor, out: Tensor) -> Tensor:
    """A map's entries at the places of a smaller map, as a strided 1x1 convolution takes them."""
    if state.ndim != 4 or state.shape[2:] == out.shape[2:]:
        return state
    down, right = (-(-a // b) for a, b in zip(state.shape[2:], out.shape[2:], strict=True))
    return state[:, :, ::down, ::right]


def carry(block: nn.Module, prompts: list[Tensor], first: int, dropout: float) -> None:
    """Lets a block run with prompts behind its first tokens, and takes them out again.

    Args:
        block: its input and output stay [B, N, D]; inside there are N + p tokens.
        prompts: the prompts that enter, [p, D] or [B, p, D]; what they became stands there
            afterwards.
        first: class and register tokens, which stay in front.
        dropout: dropout on entering prompts while training.
    """

    def enter(module: nn.Module, args: Any) -> Any:
        state, *rest = args
        tokens = prompts.pop().to(state.dtype)
        if tokens.ndim == 2:
            if dropout and module.training:
                tokens = functional.dropout(tokens, dropout)
            tokens = tokens.expand(len(state), -1, -1)
        prompts.append(tokens)
        return torch.cat([state[:, :first], tokens, state[:, first:]], 1), *rest

    def leave(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        behind = first + prompts.pop().shape[1]
        prompts.append(out[:, first:behind])
        return torch.cat([out[:, :first], out[:, behind:]], 1)

    # Last in, first out; and hooks that read a block's output find the plain state.
    block.register_forward_pre_hook(enter)
    block.register_forward_hook(leave, prepend=True)


def enter_own(block: nn.Module, name: str, carried: list[Tensor]) -> None:
    """At each run of the block its own prompts are the ones that enter."""

    def put(module: nn.Module, args: Any) -> None:
        carried[:] = [module.get_parameter(name)]

    block.register_forward_pre_hook(put)
