"""SPAFIT: nothing, then biases, then LoRA, from the lowest blocks to the highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.lora_variants import fold_all, with_alpha
from autopeft.methods.method import Injection, Method, Rate, integer, number
from autopeft.methods.settle import changed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

_ATTENTION = ("qkv", "proj")


@dataclass(frozen=True)
class SpaFit(Method):
    """Blocks below c1 are frozen, in [c1, c2) biases train, from c2 on LoRA and other biases.

    c1 is where the stratum's blocks begin; with a space's ``first_block``, ``c2`` and ``r`` it is
    three numbers. LoRA sits on the chosen attention matrices (in a CNN on the chosen convolutions
    and linear layers), whose own biases stay; all other biases of these blocks train. c2 up to c1
    leaves no block with biases alone, c2 at the readout or above is BitFit.

    Differs from the paper: one learning rate for biases and LoRA.

    Attributes:
        c2: first block with LoRA.
        r: rank of the updates.
        lora_alpha: scale; s = lora_alpha / r.
    """

    name: ClassVar[str] = "spafit"
    family: ClassVar[str] = "low_rank"
    paper: ClassVar[str] = "Arora and Wang 2024, arXiv:2405.00201"
    summary: ClassVar[str] = "Trains biases in middle blocks, LoRA and biases in the highest."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 2e-4, 2e-2),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }
    takes_modules: ClassVar[bool] = True

    c2: int = integer(6, 0, 1000)
    r: int = integer(8, 1, 256)
    lora_alpha: float = number(16.0, 0.001, 4096.0)

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """``lora_alpha`` defaults to 2 r."""
        return with_alpha(raw, 8)

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options: c2 ends at the depth."""
        return {**super().options(facts), "c2": min(self.c2, facts.depth)}

    @classmethod
    def check_all(cls, strata: Sequence[Stratum]) -> None:
        """Refuses two ranges on one block, each of which would train what the other leaves."""
        ends = sorted(s.blocks for s in strata)
        for one, other in zip(ends, ends[1:], strict=False):
            if other[0] <= one[1]:
                what = f"block {other[0]} gets spafit twice"
                raise UserError(what, "candidate", "Let the strata not overlap.")

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """As few ranges as give the same: biases, LoRA, or biases and above them LoRA.

        Below LoRA alone there is no cut (c2 = 0), above biases alone it is the depth, and LoRA's
        options and modules are the default there.
        """
        parts: list[Stratum] = []
        for stratum in strata:
            for part in _cut(stratum, facts):
                last = parts[-1] if parts else part
                if last.blocks[1] + 1 == part.blocks[0] and _alike(last, part):
                    parts[-1] = replace(last, blocks=(last.blocks[0], part.blocks[1]))
                else:
                    parts.append(part)
        found: list[Stratum] = []
        for part in parts:
            last = found[-1] if found else part
            follows = last.blocks[1] + 1 == part.blocks[0]
            if follows and last.options["c2"] == facts.depth and part.options["c2"] == 0:
                joined = replace(part, blocks=(last.blocks[0], part.blocks[1]))
                found[-1] = changed(joined, c2=part.blocks[0])
            else:
                found.append(part)
        return found

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The attention's matrices; in a CNN all that LoRA takes."""
        names = _ATTENTION if facts.family == "vit" else tuple(facts.modules)
        return tuple(n for n in names if n in facts.modules and facts.modules[n][block])

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """11 D a block below c2; above, r (in + out) a module in the place of its bias."""
        total = 0
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            total += facts.block_biases[block]
            for name in stratum.modules if block >= self.c2 else ():
                if facts.modules[name][block]:
                    inputs, outputs = facts.modules[name][block]
                    total += self.r * (inputs + outputs) - facts.module_biases[name][block]
        return total

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Opens the biases and adds the updates."""
        from autopeft.methods.bitfit import biases

        facts = network.facts
        opened: list[str] = []
        updates: dict[str, nn.Parameter] = {}
        for stratum in strata:
            me = cls(**stratum.options)
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                names = stratum.modules if block >= me.c2 else ()
                present = [n for n in names if facts.modules[n][block]]
                taken = {network.module_path(block, name) for name in present}
                for prefix in facts.prefixes[block]:
                    found = biases(network.model.get_submodule(prefix), prefix, "all")
                    opened += [b for b in found if b.removesuffix(".bias") not in taken]
                for path in sorted(taken):
                    updates |= _add(network.model.get_submodule(path), path, me)
        return Injection(network.own(opened) | updates)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Adds s B A to the weights; the biases are plain already."""
        fold_all(network, _factors, cls.name, ("spafit_a", "spafit_b", "spafit_scale"))


def _cut(stratum: Stratum, facts: Facts) -> list[Stratum]:
    """The blocks with biases alone, then those with LoRA, of one range."""
    (first, last), c2 = stratum.blocks, stratum.options["c2"]
    parts = []
    if first < c2:
        blocks = (first, min(last, c2 - 1))
        names = {n for b in range(first, blocks[1] + 1) for n in SpaFit().sites(facts, b)}
        options = {**SpaFit.defaults(), "c2": facts.depth}
        modules = tuple(sorted(names))
        parts.append(replace(stratum, blocks=blocks, modules=modules, options=options))
    if last >= c2:
        parts.append(replace(changed(stratum, c2=0), blocks=(max(first, c2), last)))
    return parts


def _alike(one: Stratum, other: Stratum) -> bool:
    """Whether two parts do the same; biases alone read no modules."""
    same = one.options == other.options
    return same and (one.modules == other.modules or one.options["c2"] > 0)


def _add(module: Any, path: str, options: SpaFit) -> dict[str, nn.Parameter]:
    import torch

    from autopeft.methods.affine import add_parameters
    from autopeft.methods.low_rank import add_low_rank, fresh_a

    outputs, fan_in = module.weight.flatten(1).shape
    values = {"spafit_a": fresh_a(options.r, fan_in), "spafit_b": torch.zeros(outputs, options.r)}
    module.spafit_scale = options.lora_alpha / options.r
    add_low_rank(module, _factors, SpaFit.name)
    return add_parameters(module, path, values)


def _factors(module: Any) -> tuple[Tensor, Tensor]:
    return module.spafit_a, module.spafit_b * module.spafit_scale
