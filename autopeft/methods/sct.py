"""SCT: a small linear layer on the channels that the training images excite most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Rate, Scored, choice, integer, number
from autopeft.methods.sites import blocks_of, places_of, width_at

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.method import Scoring


@dataclass(frozen=True)
class Sct(Scored):
    """Salient channel tuning: X[..., S] <- X[..., S] + s (G X[..., S] + g), G [k, k].

    S are the k channels with the largest class-averaged L2 norm over the training images' patch
    tokens at that place of the frozen backbone. G and g start at zero, so a fresh adapter changes
    nothing; the paper starts with a truncated normal G (``init = paper``).

    Attributes:
        k: number of channels; the paper takes an eighth. Narrower blocks are left out.
        scale: s.
        where: on the stream between attention and MLP, on what the MLP adds, or on the block's
            output; in a CNN always the last.
        init: ``zero`` or ``paper``.
    """

    name: ClassVar[str] = "sct"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Zhao et al. 2023, arXiv:2309.08513"
    summary: ClassVar[str] = "Trains a linear layer on the channels that the images excite most."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 7e-4, 7.5e-2),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }
    mergeable: ClassVar[bool] = False

    k: int = integer(48, 1, 4096)
    scale: float = number(1.0, 0.01, 10.0)
    where: str = choice("attn", "mlp", "block_out")
    init: str = choice("zero", "paper")

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options; a CNN's blocks have one place.

        Raises:
            UserError: no block has as many channels.
        """
        most = max(width_at(facts, block + 1) for block in range(facts.depth))
        if self.k > most:
            fix = f"It must be a whole number from 1 to {most}."
            raise UserError(f"k = {self.k} is not possible", f"method {self.name}", fix)
        options = super().options(facts)
        return options if facts.family == "vit" else {**options, "where": "block_out"}

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The block, if it has k channels."""
        return ("",) if width_at(facts, block + 1) >= self.k else ()

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """k^2 + k a block."""
        wide = [b for b in blocks_of(stratum) if self.sites(facts, b)]
        return len(wide) * (self.k**2 + self.k)

    @classmethod
    def prepare(
        cls, scoring: Scoring, strata: Sequence[Stratum], readout: Readout
    ) -> dict[str, Tensor]:
        """The chosen channels of each place, int64 [k], ascending."""
        from autopeft.methods.salient import channel_scores

        facts = scoring.network.facts
        found: dict[str, Tensor] = {}
        for block, options in _places(strata, facts):
            where = options["where"]

            def scores(where: str = where) -> list[Tensor]:
                return channel_scores(scoring, where)

            score = scoring.cached(f"sct {where}", scores)[block]
            order = score.argsort(descending=True, stable=True)
            found[_name(scoring.network, block)] = order[: options["k"]].sort().values
        return found

    @classmethod
    def inject_scored(
        cls,
        network: Network,
        strata: Sequence[Stratum],
        readout: Readout,
        fixed: Mapping[str, Tensor],
    ) -> Injection:
        """Adds the layers and their hooks."""
        from autopeft.methods.hooks import add_module
        from autopeft.methods.salient import Salient, attach

        trainable: dict[str, nn.Parameter] = {}
        channels: dict[str, Tensor] = {}
        for block, options in _places(strata, network.facts):
            name = _name(network, block)
            module = Salient(fixed[name], options["scale"], options["init"])
            attach(network, block, options["where"], module)
            trainable |= add_module(network, network.block_names(block), cls.name, module)
            channels[name] = module.channels
        return Injection(trainable, channels)


def _places(strata: Sequence[Stratum], facts: Facts) -> list[tuple[int, Mapping[str, Any]]]:
    """Blocks with enough channels, with their options."""
    return [(b, o) for b, o in places_of(strata) if width_at(facts, b + 1) >= o["k"]]


def _name(network: Network, block: int) -> str:
    return f"{network.block_names(block)}.sct.channels"
