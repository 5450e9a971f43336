"""LN tuning: only weight and bias of the norms train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Rate
from autopeft.methods.tuner import Peft, Tuner

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class LnTuning(Tuner):
    """Weight and bias of every norm of the chosen blocks: LayerNorm, BatchNorm and the like.

    BatchNorm's running statistics never move; they are saved with the adapter, as peft does. After
    peft's own merge a wrapped head stays behind; the head is not peft's here.
    """

    name: ClassVar[str] = "ln_tuning"
    family: ClassVar[str] = "norm"
    paper: ClassVar[str] = "Zhao et al. 2023, arXiv:2312.11420"
    summary: ClassVar[str] = "Trains weight and bias of the norms of chosen blocks."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(5e-3, 5e-4, 5e-2)}
    takes_modules: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False
    conflicts: ClassVar[tuple[str, ...]] = ("ssf", "difffit", "bitfit", "spafit")
    peft: ClassVar[Peft] = Peft("LNTuningConfig", saved=("ln_tuning_layers",), convs="all")

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The block, if it has a norm."""
        return ("",) if facts.norms[block] else ()

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """4 D a block of a plain ViT of width D."""
        blocks = range(stratum.blocks[0], stratum.blocks[1] + 1)
        return sum(sum(facts.norms[b].values()) for b in blocks)

    @classmethod
    def config_values(cls, network: Network, strata: Sequence[Stratum]) -> dict[str, Any]:
        """It has no option."""
        return {}

    @classmethod
    def targets(cls, network: Network, strata: Sequence[Stratum]) -> list[str]:
        """Paths of the norms."""
        paths: list[str] = []
        for stratum in strata:
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                paths += network.facts.norms[block]
        if not paths:
            raise UserError("has no norm to train", f"method {cls.name}", "Name other blocks.")
        return paths
