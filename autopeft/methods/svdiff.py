"""SVDiff: the singular values of the weights train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.methods.method import Injection, Method, Rate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

_BUFFERS = ("svdiff_u", "svdiff_s", "svdiff_vt")


@dataclass(frozen=True)
class SvDiff(Method):
    """W' = U diag(relu(S + d)) V^T with W = U S V^T; d trains, from 0.

    Computed as W + U diag(relu(S + d) - S) V^T, so a fresh adapter changes no bit. W' is made once
    a forward pass; on convolutions W is seen as [outputs, fan in]. It bears no other method on its
    blocks, since the weight that it replaces is the one that the others would add to.
    """

    name: ClassVar[str] = "svdiff"
    family: ClassVar[str] = "spectral"
    paper: ClassVar[str] = "Han et al. 2023, arXiv:2303.11305"
    summary: ClassVar[str] = "Trains the singular values of the weights of chosen layers."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(1e-3, 1e-4, 1e-2),
        "sgd": Rate(1e-2, 1e-3, 1e-1),
    }
    takes_modules: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True
    in_fp32: ClassVar[bool] = True

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """min(fan in, outputs) a module."""
        blocks = range(stratum.blocks[0], stratum.blocks[1] + 1)
        shapes = [facts.modules[name][b] for b in blocks for name in stratum.modules]
        return sum(min(shape) for shape in shapes if shape)

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Decomposes the weights and adds d to each."""
        import torch

        from autopeft.methods.affine import add_buffers, add_parameters
        from autopeft.methods.low_rank import paths_of
        from autopeft.methods.singular import svd_of

        trainable: dict[str, nn.Parameter] = {}
        for stratum in strata:
            for path in paths_of(network, stratum):
                module: Any = network.model.get_submodule(path)
                triple = svd_of(network, path)
                add_buffers(module, dict(zip(_BUFFERS, triple, strict=True)))
                zeros = torch.zeros_like(triple[1])
                trainable |= add_parameters(module, path, {"svdiff_d": zeros})
                module.forward = MethodType(_forward, module)
        return Injection(trainable)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Writes W'."""
        from autopeft.methods.affine import remove, set_frozen

        for module in network.model.modules():
            if hasattr(module, "svdiff_d"):
                set_frozen(module, "weight", _weight(module))
                remove(module, ("svdiff_d", *_BUFFERS))
                del module.forward


def _weight(module: Any) -> Tensor:
    """W'; the change is small, so it may be computed in bf16."""
    s = module.svdiff_s
    moved = (module.svdiff_u * ((s + module.svdiff_d).relu() - s)) @ module.svdiff_vt
    weight: Tensor = module.weight + moved.view(module.weight.shape)
    return weight


def _forward(self: Any, x: Tensor) -> Tensor:
    """In the place of a linear layer's or a convolution's ``forward``."""
    from torch import nn
    from torch.nn import functional

    if isinstance(self, nn.Conv2d):
        out: Tensor = self._conv_forward(x, _weight(self), self.bias)
        return out
    return functional.linear(x, _weight(self), self.bias)
