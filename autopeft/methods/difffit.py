"""DiffFit: biases, norm weights and one factor for each branch of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, flag

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class DiffFit(Method):
    """Trains all biases, all norm weights, and a factor gamma on what each branch adds.

    x + gamma_a attn(x), then x + gamma_m mlp(x), gamma = 1 at first. The factor sits on the layer
    scale where there is one, else on the branch's last linear layer. A CNN's block has one branch:
    the factor sits on ConvNeXt's ``fc2``, else on the block's last norm (with squeeze-excitation
    behind that norm it is not quite the branch's factor).

    Differs from the paper: made for diffusion transformers, whose class embedding trains too;
    there is none here.

    Attributes:
        per_channel: a factor for each channel of the branch, else one number.
    """

    name: ClassVar[str] = "difffit"
    family: ClassVar[str] = "affine"
    paper: ClassVar[str] = "Xie et al. 2023, arXiv:2304.06648"
    summary: ClassVar[str] = "Trains biases, norm weights and a factor on each branch."
    conflicts: ClassVar[tuple[str, ...]] = ("bitfit", "spafit")
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 5e-4, 5e-2),
        "sgd": Rate(5e-2, 5e-3, 5e-1),
    }

    per_channel: bool = flag()

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """13 D a block of a plain ViT of width D, plus 2, or 2 D with ``per_channel``."""
        total = 0
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            total += facts.block_biases[block]
            total += sum(facts.norms[block].values()) - facts.norm_biases[block]
            width = facts.shapes[block + 1][1 if facts.family == "vit" else 0]
            branches = 2 if facts.family == "vit" else 1
            total += branches * (width if self.per_channel else 1)
        return total

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Opens biases and norm weights, adds the factors."""
        from autopeft.methods.bitfit import biases

        facts = network.facts
        opened: list[str] = []
        factors: dict[str, nn.Parameter] = {}
        for stratum in strata:
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                for prefix in facts.prefixes[block]:
                    opened += biases(network.model.get_submodule(prefix), prefix, "all")
                opened += [f"{path}.weight" for path in facts.norms[block]]
                for path in _branch_ends(network, block):
                    module = network.model.get_submodule(path)
                    factors |= _add(module, path, bool(stratum.options["per_channel"]))
        return Injection(network.own(opened) | factors)

    @classmethod
    def fold(cls, network: Network) -> None:
        """The factor goes into layer scale, or into weight and bias of the branch's last layer."""
        from autopeft.methods.affine import fold_norm, fold_scale, is_norm, remove

        for module in network.model.modules():
            if not hasattr(module, "difffit_scale"):
                continue
            if is_norm(module):
                fold_norm(module, _change)
            else:
                fold_scale(module, module.difffit_scale, None, cls.name)
            remove(module, ["difffit_scale"])


def _branch_ends(network: Network, block: int) -> list[str]:
    """Paths of the modules that put out what a block's branches add."""
    from autopeft.methods.affine import is_norm

    path = network.block_names(block)
    modules = dict(network.model.get_submodule(path).named_modules())
    if network.facts.family == "vit":
        pairs = (("ls1", "attn.proj"), ("ls2", "mlp.fc2"))
        ends = [ls if hasattr(modules.get(ls), "gamma") else end for ls, end in pairs]
        if not set(ends) <= modules.keys():
            what = f"the blocks of {network.facts.name} are no plain attention and MLP"
            raise UserError(what, "method difffit", "Choose another method or backbone.")
        return [f"{path}.{end}" for end in ends]
    if "mlp.fc2" in modules:
        return [f"{path}.mlp.fc2"]
    skipped = {"downsample", "shortcut", "se"}
    norms = [n for n, m in modules.items() if is_norm(m) and not skipped & set(n.split("."))]
    return [f"{path}.{norms[-1]}"]


def _add(module: nn.Module, path: str, per_channel: bool) -> dict[str, nn.Parameter]:
    import torch

    from autopeft.methods.affine import add_parameters, change_norm, is_norm, scale_output

    weight = module.get_parameter("gamma" if hasattr(module, "gamma") else "weight")
    ones = torch.ones(weight.shape[0] if per_channel else 1)
    found = add_parameters(module, path, {"difffit_scale": ones})
    if is_norm(module):
        change_norm(module, _change)
    else:
        scale_output(module, "difffit_scale", None, DiffFit.name)
    return found


def _change(norm: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scale = norm.get_parameter("difffit_scale")
    return weight * scale, bias * scale
