"""DVPT: prompts that are made from each image's own tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, flag, integer, number
from autopeft.methods.settle import changed
from autopeft.methods.sites import blocks_of, width_at

if TYPE_CHECKING:
    from torch import nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class Dvpt(Method):
    """Dynamic prompts behind each block: X <- X + s (U A + c), A made from X by two attentions.

    Z = gelu(V X); E = softmax(Q Z' / sqrt r) Z are p prompts of this image, Q trains;
    A = softmax(Z E' / sqrt r) E gives them back to every token. The paper's abstract has them
    "aggregated with the frozen features": the second attention is our reading. Its code has
    another form (prompts of width D among the tokens, and a bottleneck beside the MLP that
    three blocks share). U and c start at zero. A CNN's map counts as tokens.

    Attributes:
        r: width of the bottleneck.
        p: number of prompts.
        scale: s.
        share: one module for all blocks of a stratum.
    """

    name: ClassVar[str] = "dvpt"
    family: ClassVar[str] = "prompt"
    paper: ClassVar[str] = "He et al. 2023, arXiv:2307.09787"
    summary: ClassVar[str] = "Adds prompts that attend to each image's own tokens."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 2e-4, 2e-2),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }
    mergeable: ClassVar[bool] = False

    r: int = integer(32, 1, 512)
    p: int = integer(8, 1, 128)
    scale: float = number(1.0, 0.01, 10.0)
    share: bool = flag()

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options.

        Raises:
            UserError: one module for a CNN's blocks, which differ in width.
        """
        if self.share and facts.family == "cnn":
            what = f"share = true needs blocks of one width, {facts.name} is a CNN"
            raise UserError(what, f"method {self.name}", "Leave it out.")
        return super().options(facts)

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """One block has nobody to share with."""
        return [changed(s, share=False) if s.blocks[0] == s.blocks[1] else s for s in strata]

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """2 D r + p r + r + D a block, or once."""
        each = [width_at(facts, block + 1) for block in blocks_of(stratum)]
        sizes = (2 * d * self.r + self.p * self.r + self.r + d for d in each)
        return next(sizes) if self.share else sum(sizes)

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the modules (a shared one to the first block) and hooks behind the blocks."""
        from autopeft.methods.added import DynamicPrompts
        from autopeft.methods.hooks import add_module, behind

        trainable: dict[str, nn.Parameter] = {}
        for stratum in strata:
            options, module = stratum.options, None
            for block in blocks_of(stratum):
                if module is None or not options["share"]:
                    width = width_at(network.facts, block + 1)
                    module = DynamicPrompts(width, options["r"], options["p"], options["scale"])
                    path = network.block_names(block)
                    trainable |= add_module(network, path, cls.name, module)
                behind(network, block, None, module)
        return Injection(trainable)
