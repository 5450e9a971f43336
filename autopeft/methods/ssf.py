"""SSF: a scale and a shift for each channel behind the operations of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, choice, flag

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

_LINEARS = ("qkv", "proj", "fc1", "fc2")
_EMBED = "patch_embed.proj"


@dataclass(frozen=True)
class Ssf(Method):
    """Scale and shift features: y = gamma * op(x) + beta for each channel.

    The operations of a ViT are its four linear layers, its norms and, where the range of blocks
    ends at the readout, the final norm. In a CNN only norms can take it: a convolution without a
    bias has no place for beta, and the norm that follows it has one, so ``all`` means ``norm``
    there and is norm tuning in other coordinates.

    Differs from the paper: gamma = 1 and beta = 0 at first, so a fresh adapter changes nothing
    (the paper draws them around that; ``init = "paper"``), and the patch embedding is left alone
    unless asked for, since then nothing can be cached. No shift behind layer scale.

    Attributes:
        ops: which operations.
        with_embed: the patch embedding too; whatever the blocks, the stem then trains.
        init: ``ours`` changes nothing; ``paper`` draws gamma from N(1, 0.02) and beta from
            N(0, 0.02).
    """

    name: ClassVar[str] = "ssf"
    family: ClassVar[str] = "affine"
    paper: ClassVar[str] = "Lian et al. 2022, arXiv:2210.08823"
    summary: ClassVar[str] = "Scales and shifts each channel behind chosen operations."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 5e-4, 5e-2),
        "sgd": Rate(5e-2, 5e-3, 5e-1),
    }

    ops: str = choice("all", "linear", "norm")
    with_embed: bool = flag()
    init: str = choice("ours", "paper")

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options; on a CNN ``all`` is ``norm``.

        Raises:
            UserError: an operation that the backbone lacks, or that has no bias to fold into.
        """
        options = super().options(facts)
        if facts.family == "cnn":
            if self.ops == "linear" or self.with_embed:
                what = "ops = 'linear'" if self.ops == "linear" else "with_embed = true"
                what = f"{what} is for ViTs, {facts.name} is a CNN"
                raise UserError(what, "method ssf", "Choose ops: norm, without with_embed.")
            options["ops"] = "norm"
        norms, linears = options["ops"] != "linear", options["ops"] != "norm"
        for block in range(facts.depth):
            bare = norms and sum(facts.norms[block].values()) != 2 * facts.norm_biases[block]
            for name in _LINEARS if linears else ():
                bare |= facts.module_biases[name][block] != facts.modules[name][block][1]
            if bare:
                what = f"block {block} of {facts.name} has layers without a bias to fold beta into"
                raise UserError(what, "method ssf", "Choose other ops, or another method.")
        return options

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The block, if it has such operations."""
        return ("",) if self.ops != "norm" or facts.norms[block] else ()

    def first_block(self, stratum: Stratum) -> int:
        """0 with the patch embedding."""
        return 0 if self.with_embed else stratum.blocks[0]

    def prefix_ok(self, stratum: Stratum) -> bool:
        """False with the patch embedding: the stem moves."""
        return not self.with_embed

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """22 D a block of a plain ViT of width D; 2 D each for embedding and final norm."""
        total = 2 * facts.dims[0] if self.with_embed else 0
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            if self.ops != "linear":
                total += sum(facts.norms[block].values())
            if self.ops != "norm":
                total += sum(2 * facts.modules[name][block][1] for name in _LINEARS)
        if self.ops != "linear" and _ends_at(facts, stratum, readout):
            total += 2 * facts.tail_biases
        return total

    @classmethod
    def check_all(cls, strata: Sequence[Stratum]) -> None:
        """Refuses the embedding in several ranges of blocks: it would be counted in each."""
        if sum(s.options["with_embed"] for s in strata) > 1:
            what = "with_embed needs one range of blocks"
            raise UserError(what, "method ssf", "Give it one range, or leave with_embed out.")

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds a scale and a shift to each operation."""
        facts = network.facts
        trainable: dict[str, nn.Parameter] = {}
        for stratum in strata:
            ops, paper = stratum.options["ops"], stratum.options["init"] == "paper"
            paths = [_EMBED] if stratum.options["with_embed"] else []
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                paths += list(facts.norms[block]) if ops != "linear" else []
                names = _LINEARS if ops != "norm" else ()
                paths += [network.module_path(block, name) for name in names]
            if ops != "linear" and _ends_at(facts, stratum, readout):
                paths += final_norms(network)
            for path in paths:
                trainable |= _add(network.model.get_submodule(path), path, paper)
        return Injection(trainable)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Linear and convolution: diag(gamma) W, gamma b + beta; norm: gamma w, gamma b + beta."""
        from autopeft.methods.affine import fold_norm, fold_scale, is_norm, remove

        for module in network.model.modules():
            if not hasattr(module, "ssf_scale"):
                continue
            if is_norm(module):
                fold_norm(module, _change)
            else:
                fold_scale(module, module.ssf_scale, module.ssf_shift, cls.name)
            remove(module, ("ssf_scale", "ssf_shift"))


def final_norms(network: Network) -> list[str]:
    """Paths of a ViT's norms behind the blocks (one of the two names is an identity)."""
    from autopeft.methods.affine import is_norm

    names = ("norm", "fc_norm")
    return [name for name in names if is_norm(network.model.get_submodule(name))]


def _add(module: nn.Module, path: str, paper: bool) -> dict[str, nn.Parameter]:
    """Registers gamma and beta on one module and lets it compute with them."""
    import torch

    from autopeft.methods.affine import add_parameters, change_norm, is_norm, scale_output

    channels = module.get_parameter("weight").shape[0]
    gamma, beta = torch.ones(channels), torch.zeros(channels)
    if paper:
        gamma, beta = gamma + 0.02 * torch.randn(channels), 0.02 * torch.randn(channels)
    found = add_parameters(module, path, {"ssf_scale": gamma, "ssf_shift": beta})
    if is_norm(module):
        change_norm(module, _change)
    else:
        scale_output(module, "ssf_scale", "ssf_shift", Ssf.name)
    return found


def _change(norm: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scale = norm.get_parameter("ssf_scale")
    return weight * scale, bias * scale + norm.get_parameter("ssf_shift")


def _ends_at(facts: Facts, stratum: Stratum, readout: Readout) -> bool:
    """Whether the head reads this stratum through a ViT's final norm."""
    return facts.family == "vit" and stratum.blocks[1] == readout.block - 1
