"""Full fine-tuning of a range of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autopeft.methods.method import Injection, Method, Rate

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class Full(Method):
    """Trains every weight of its blocks.

    With block 0 the stem (patch and position embedding, tokens) trains too, and nothing can be
    cached; with the last block below the readout the final norm trains too. BatchNorm statistics
    never move.
    """

    name: ClassVar[str] = "full"
    family: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "He et al. 2021, arXiv:2111.06377 (fine-tuning recipe)"
    summary: ClassVar[str] = "Trains every weight of chosen blocks."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-5, 5e-6, 5e-4),
        "sgd": Rate(1e-2, 1e-3, 1e-1),
    }
    exclusive: ClassVar[bool] = True

    def prefix_ok(self, stratum: Stratum) -> bool:
        """False with block 0: the stem moves."""
        return stratum.blocks[0] > 0

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """All parameters of the blocks, of the stem with block 0, of the tail with the last."""
        first, last = stratum.blocks
        total = sum(facts.block_params[first : last + 1])
        total += facts.stem_params if first == 0 else 0
        return total + (facts.tail_params if _reaches_tail(facts, stratum, readout) else 0)

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Opens all parameters of the blocks, and what the class says about both ends."""
        from autopeft.backbones.network import parameters_at

        places: list[int] = []
        for stratum in strata:
            first, last = stratum.blocks
            places += [-1] * (first == 0) + list(range(first, last + 1))
            if _reaches_tail(network.facts, stratum, readout):
                places.append(network.facts.depth)
        names = [name for place in sorted(places) for name, _ in parameters_at(network, place)]
        return Injection(network.own(names))


def _reaches_tail(facts: Facts, stratum: Stratum, readout: Readout) -> bool:
    """Whether the head reads this stratum through the final norm; CNNs have it at the end only."""
    if stratum.blocks[1] != readout.block - 1:
        return False
    return facts.family == "vit" or readout.block == facts.depth
