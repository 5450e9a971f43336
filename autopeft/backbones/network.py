"""Network: one timm model seen as stem -> blocks[0..L) -> final norm and pool -> classifier."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autopeft.backbones.facts import Facts, Pool
from autopeft.backbones.layouts import Layout


@dataclass(frozen=True)
class Init:
    """The adapter that was folded into a backbone's weights.

    Attributes:
        folder: its files.
        sha256: hash of its files.
        base_sha256: hash of the weights that it was folded into.
    """

    folder: Path
    sha256: str
    base_sha256: str


_DROP_PATHS = ("drop_path", "drop_path1", "drop_path2")


class Network:
    """A frozen timm model that can be run from any block to any block.

    A *state* is what passes between two blocks: B x N x D in a ViT, B x C x H x W in a CNN.
    Boundary b lies behind b blocks; boundary 0 is the stem's output.

    Modules are looked up by path at each call, so modules that peft (or a method) replaces inside
    ``model`` take effect at once.

    Attributes:
        model: the plain timm model.
        facts: the whole backbone as plain data; ``drop_blocks`` does not change it.
        depth: number of blocks present (``facts.depth`` unless blocks were dropped).
        warnings: what a user must know about how the weights were loaded, one line each.
        init: the adapter that is folded into the weights; None in a plain backbone.
    """

    def __init__(
        self, model: nn.Module, facts: Facts, layout: Layout, warnings: Iterable[str] = ()
    ) -> None:
        self.model: Any = model
        self.facts = facts
        self.depth = facts.depth
        self.warnings = tuple(warnings)
        self.init: Init | None = None
        self._layout = layout
        freeze(model)

    # -- running ------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[nn.Module]:
        """The last module of each block present (its main part), looked up now."""
        return [self.model.get_submodule(self.block_names(i)) for i in range(self.depth)]

    @property
    def classifier(self) -> nn.Module:
        """timm's own classifier, looked up now; an Identity when there is none."""
        found: nn.Module = self.model.get_submodule(self.facts.classifier)
        return found

    def stem(self, x: Tensor) -> Tensor:
        """Pixels (normalized float, B x 3 x S x S) to the state at boundary 0."""
        for name in self._layout.stem:
            x = getattr(self.model, name)(x)
        return x

    def run(self, state: Tensor, start: int, stop: int) -> Tensor:
        """The state at boundary ``start`` to the state at boundary ``stop``."""
        for prefixes in self.facts.prefixes[start : min(stop, self.depth)]:
            for path in prefixes:
                state = self.model.get_submodule(path)(state)
        return state

    def advance(self, k: int, state: Tensor, stop: int) -> Tensor:
        """Like ``run``, but k = 0 takes pixels: the state at boundary ``stop``."""
        return self.run(self.stem(state) if k == 0 else state, k, stop)

    def forward_from(self, k: int, state: Tensor) -> Tensor:
        """Logits of timm's own readout; bit for bit ``model(x)`` in one dtype.

        Args:
            k: 0 takes pixels, any other boundary 1..L the state there.
            state: pixels or the state at boundary k.

        Raises:
            RuntimeError: blocks were dropped, so timm's own readout does not exist.
        """
        self._needs_all_blocks()
        logits: Tensor = self.model.forward_head(self._final(self.advance(k, state, self.depth)))
        return logits

    def own_features(self, state: Tensor) -> Tensor:
        """What timm's own classifier reads (B x dims[L]), from the state at boundary L."""
        self._needs_all_blocks()
        found: Tensor = self.model.forward_head(self._final(state), pre_logits=True)
        return found

    def classify(self, state: Tensor) -> Tensor:
        """Logits of timm's own readout from the state at boundary L."""
        return self.forward_from(self.facts.depth, state)

    def pooled(self, state: Tensor, block: int, pool: Pool) -> Tensor:
        """What a head reads at a boundary.

        A ViT's state passes the backbone's frozen final norm, then ``token`` is the class token,
        ``avg`` the mean of the patch tokens (class and register tokens excluded) and
        ``token+avg`` both, in this order. A CNN's state is averaged over space: at boundary L
        behind timm's final convolution and norm, before it as it is, since the final norm has
        another width.

        Args:
            state: the state at boundary ``block``.
            block: 1..L.
            pool: one of ``facts.pools``.

        Returns:
            B x ``facts.width(block, pool)``; at timm's own readout exactly ``own_features``.
        """
        if pool not in self.facts.pools:
            raise ValueError(f"{self.facts.name} has no pool {pool!r}")
        if self.facts.is_own_readout(block, pool) and self.depth == block:
            return self.own_features(state)
        if self.facts.family == "cnn":
            return state.mean((2, 3))
        # Models with mean pooling keep their final norm behind the pool, as `fc_norm`.
        tokens, norm = self.model.norm(state), self.model.fc_norm
        first = self.model.num_prefix_tokens
        parts = []
        if pool != "avg":
            parts.append(norm(tokens[:, 0]))
        if pool != "token":
            parts.append(norm(tokens[:, first:].mean(1)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _final(self, state: Tensor) -> Tensor:
        for name in self._layout.final:
            state = getattr(self.model, name)(state)
        return state

    def _needs_all_blocks(self) -> None:
        if self.depth != self.facts.depth:
            raise RuntimeError("blocks were dropped: read the features with pooled()")

    # -- names --------------------------------------------------------------------------------

    def block_names(self, i: int) -> str:
        """Path of block i in the model, e.g. ``blocks.3`` or ``layer2.0``.

        ``facts.prefixes[i]`` lists all paths of a block (ConvNeXt: the downsampling before it).
        """
        return self.facts.prefixes[i][-1]

    def module_path(self, i: int, module: str) -> str:
        """Path of one module of block i, e.g. ``(3, "qkv")`` -> ``blocks.3.attn.qkv``.

        Raises:
            KeyError: block i has no such module.
        """
        path = self.facts.paths[module][i]
        if not path:
            raise KeyError(f"block {i} of {self.facts.name} has no {module!r}")
        return path

    def place(self, name: str) -> int:
        """Where a parameter or module lives: -1 stem, 0..L-1 its block, L behind the blocks."""
        for i, prefixes in enumerate(self.facts.prefixes):
            if any(_below(name, prefix) for prefix in prefixes):
                return i
        behind = (*self._layout.final, *self._layout.head)
        return self.facts.depth if any(_below(name, part) for part in behind) else -1

    # -- copies -------------------------------------------------------------------------------

    def fork(
        self, num_outputs: int | None = None, generator: torch.Generator | None = None
    ) -> Network:
        """A network with its own modules that shares all tensors with this one.

        Replacing modules, ``requires_grad`` and ``train()`` in the fork never reach this network.
        Values do: a parameter that will be trained must first be made the fork's own (``own``).

        Args:
            num_outputs: None keeps the classifier; else a fresh one of this size is put in place.
            generator: source of the fresh classifier's weights (normal, std 0.01, bias 0); None
                makes them zero.
        """
        shared: dict[int, Any] = {}
        for parameter in self.model.parameters():
            shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for buffer in self.model.buffers():
            shared[id(buffer)] = buffer.detach()
        twin = Network(copy.deepcopy(self.model, shared), self.facts, self._layout, self.warnings)
        twin.depth, twin.init = self.depth, self.init
        if num_outputs is not None:
            twin.reset_classifier(num_outputs, generator)
        return twin

    def reset_classifier(self, num_outputs: int, generator: torch.Generator | None = None) -> None:
        """Puts a fresh frozen classifier in place, without touching torch's global generator."""
        with torch.random.fork_rng(devices=[]):
            self.model.reset_classifier(num_outputs)
        freeze(self.model)
        if num_outputs == 0:
            return
        head: Any = self.classifier
        with torch.no_grad():
            head.weight.zero_()
            if generator is not None:
                fresh = torch.empty(head.weight.shape).normal_(0.0, 0.01, generator=generator)
                head.weight.copy_(fresh)
            if head.bias is not None:
                head.bias.zero_()

    def own(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """Makes parameters trainable copies of this network's own, no longer shared.

        Args:
            names: parameter names in ``model``.

        Returns:
            The new parameters by name (``requires_grad`` is True).
        """
        opened: dict[str, nn.Parameter] = {}
        for name in names:
            parent, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(parent)
            fresh = nn.Parameter(getattr(module, leaf).detach().clone())
            setattr(module, leaf, fresh)
            opened[name] = fresh
        return opened

    def drop_blocks(self, stop: int) -> None:
        """Removes the blocks from ``stop`` on, for a readout at ``stop``; call it on a fork."""
        for prefixes in self.facts.prefixes[stop : self.depth]:
            for path in prefixes:
                parent, _, leaf = path.rpartition(".")
                setattr(self.model.get_submodule(parent), leaf, nn.Identity())
        self.depth = min(self.depth, stop)

    def set_drop_path(self, rate: float, first_block: int = 0) -> None:
        """Stochastic depth in blocks >= ``first_block`` (Huang et al., arXiv:1603.09382).

        The rate grows linearly with the block number from 0 to ``rate`` at the last block of the
        whole backbone, as in timm. It acts only while the blocks are in training mode. Rate 0
        takes it out again.
        """
        last = max(self.facts.depth - 1, 1)
        for i, block in enumerate(self.blocks):
            chance = rate * i / last if i >= first_block else 0.0
            for name in _DROP_PATHS:
                if hasattr(block, name):
                    setattr(block, name, DropPath(chance) if chance else nn.Identity())


def freeze(model: Any) -> None:
    """Turns a timm model into a fixed function: no gradients, no dropout, BatchNorm in eval.

    BatchNorm stays in eval whatever ``train()`` is called on the model or on what wraps it:
    running statistics that move would be lost when only the adapter is saved.
    """
    model.eval().requires_grad_(False)
    if hasattr(model, "drop_rate"):
        model.drop_rate = 0.0
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train = MethodType(_stay_in_eval, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    return self


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def parameters_at(network: Network, place: int) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that live at one place (see ``Network.place``), classifier excluded."""
    for name, parameter in network.model.named_parameters():
        if network.place(name) == place and not _below(name, network.facts.classifier):
            yield name, parameter
