"""Visual prompt tuning: tokens that train, put beside the image's own tokens inside blocks.

Between two blocks the state is always the plain one: the prompts enter before a block and leave
behind it. So every readout, cached state and other method sees the tokens that it knows, and the
mean over patches never holds a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, integer, number
from autopeft.methods.sites import blocks_of, width_at

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class _Prompts(Method):
    """Common to both."""

    family: ClassVar[str] = "prompt"
    paper: ClassVar[str] = "Jia et al. 2022, arXiv:2203.12119"
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(1e-2, 1e-3, 1e-1),
        "sgd": Rate(1e-1, 1e-2, 1.0),
    }
    mergeable: ClassVar[bool] = False

    p: int = integer(10, 1, 200)
    dropout: float = number(0.0, 0.0, 0.9)

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options.

        Raises:
            UserError: the backbone is a CNN, which has no tokens.
        """
        if facts.family == "cnn":
            what = f"{facts.name} is a CNN: it has no tokens to put prompts beside"
            raise UserError(what, f"method {self.name}", "Choose an adapter or a ViT.")
        return super().options(facts)

    @classmethod
    def _fresh(cls, network: Network, block: int, p: int) -> dict[str, nn.Parameter]:
        """Prompts [p, D] on a block, uniform within sqrt(6 / (3 patch^2 + D))."""
        import torch

        from autopeft.methods.hooks import pre_norm_block

        facts = network.facts
        assert facts.patch is not None
        path, width = pre_norm_block(network, block), width_at(facts, block)
        bound = math.sqrt(6 / (3 * facts.patch**2 + width))
        device = next(network.model.parameters()).device
        prompts = torch.nn.Parameter(torch.empty(p, width).uniform_(-bound, bound).to(device))
        network.model.get_submodule(path).register_parameter(cls.name, prompts)
        return {f"{path}.{cls.name}": prompts}


@dataclass(frozen=True)
class Shallow(_Prompts):
    """p tokens enter before the first of its blocks and run along to the last.

    [class, registers, P, patches] in every block; P has no position. With all blocks it is the
    paper's VPT-shallow. A later first block keeps everything below it cacheable. There is no
    identity at the start: prompts take part in attention.

    Attributes:
        p: number of prompts.
        dropout: dropout on the prompts while training.
    """

    name: ClassVar[str] = "vpt_shallow"
    summary: ClassVar[str] = "Adds trainable tokens to the input of the first chosen block."

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """p D."""
        return self.p * width_at(facts, stratum.blocks[0])

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the prompts to each stratum's first block, and hooks to all its blocks."""
        from autopeft.methods.hooks import carry, enter_own

        trainable: dict[str, nn.Parameter] = {}
        for stratum in strata:
            blocks = blocks_of(stratum)
            trainable |= cls._fresh(network, blocks[0], stratum.options["p"])
            carried: list[Tensor] = []
            for number_, block in enumerate(blocks):
                module = network.model.get_submodule(network.block_names(block))
                if number_ == 0:
                    enter_own(module, cls.name, carried)
                carry(module, carried, network.model.num_prefix_tokens, stratum.options["dropout"])
        return Injection(trainable)


@dataclass(frozen=True)
class Deep(_Prompts):
    """Every block has p tokens of its own; what became of the last block's is dropped.

    [class, registers, P_i, patches] in block i; P_i has no position. Behind the last of its
    blocks the prompts are gone (in the paper, which prompts a prefix of the blocks, they run on).
    There is no identity at the start: prompts take part in attention.

    Attributes:
        p: number of prompts a block.
        dropout: dropout on the prompts while training.
    """

    name: ClassVar[str] = "vpt_deep"
    summary: ClassVar[str] = "Adds trainable tokens to the input of every chosen block."

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """p D a block."""
        return self.p * sum(width_at(facts, block) for block in blocks_of(stratum))

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds prompts and hooks to each block."""
        from autopeft.methods.hooks import carry, enter_own

        trainable: dict[str, nn.Parameter] = {}
        for stratum in strata:
            for block in blocks_of(stratum):
                trainable |= cls._fresh(network, block, stratum.options["p"])
                module = network.model.get_submodule(network.block_names(block))
                carried: list[Tensor] = []
                enter_own(module, cls.name, carried)
                carry(module, carried, network.model.num_prefix_tokens, stratum.options["dropout"])
        return Injection(trainable)
