"""BitFit: only biases train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, choice

if TYPE_CHECKING:
    from torch import nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class BitFit(Method):
    """Trains the biases of the chosen blocks and nothing else.

    Attributes:
        which: biases of linear and convolutional layers, of norms, or all.
    """

    name: ClassVar[str] = "bitfit"
    family: ClassVar[str] = "bias"
    paper: ClassVar[str] = "Ben Zaken et al. 2021, arXiv:2106.10199"
    summary: ClassVar[str] = "Trains the biases of chosen blocks."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 2e-4, 2e-2),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }

    which: str = choice("all", "linear", "norm")

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options; a CNN's biases are opened together.

        Raises:
            UserError: a subset is asked for on a CNN, whose facts do not tell biases apart.
        """
        if self.which != "all" and facts.family == "cnn":
            what = f"which = {self.which!r} is for ViTs, {facts.name} is a CNN"
            raise UserError(what, "method bitfit", "Choose: all.")
        return super().options(facts)

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The block, if it has a bias at all."""
        return ("",) if facts.block_biases[block] else ()

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """11 D a block of a plain ViT of width D, of which 2 D in its norms."""
        blocks = range(stratum.blocks[0], stratum.blocks[1] + 1)
        norms = sum(2 * facts.dims[b] for b in blocks)
        total = sum(facts.block_biases[b] for b in blocks)
        return {"all": total, "norm": norms, "linear": total - norms}[self.which]

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Opens the biases."""
        names = []
        for stratum in strata:
            which = stratum.options["which"]
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                for prefix in network.facts.prefixes[block]:
                    names += _biases(network.model.get_submodule(prefix), prefix, which)
        return Injection(network.own(names))


def _biases(block: nn.Module, prefix: str, which: str) -> list[str]:
    """Full names of a block's biases of one kind."""
    found = []
    for path, module in block.named_modules():
        norm = "norm" in type(module).__name__.lower()
        if which != "all" and norm != (which == "norm"):
            continue
        for name, _ in module.named_parameters(recurse=False):
            if name == "bias":
                found.append(".".join(p for p in (prefix, path, name) if p))
    return found
