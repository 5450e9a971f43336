"""Bottleneck adapters: behind a branch (Houlsby, Pfeiffer) or beside it (parallel, multiway)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, choice, flag, integer, number
from autopeft.methods.sites import Branch, blocks_of, name_in_block, places_of, widths

if TYPE_CHECKING:
    from torch import nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

RATES = {"adamw": Rate(5e-3, 2e-4, 2e-2), "sgd": Rate(5e-2, 1e-2, 2e-1)}


def bottleneck_size(
    inputs: int, outputs: int, r: int, norm: bool, learn_scale: bool = False
) -> int:
    """r (D_in + D_out) + r + D_out, + 2 D_in with a norm, + 1 with a scale that trains."""
    return r * (inputs + outputs) + r + outputs + 2 * inputs * norm + learn_scale


@dataclass(frozen=True)
class _Sequential(Method):
    """Common to the adapters behind a branch."""

    family: ClassVar[str] = "adapter"
    rates: ClassVar[Mapping[str, Rate]] = RATES
    mergeable: ClassVar[bool] = False
    branches: ClassVar[tuple[Branch, ...]]

    r: int = integer(16, 1, 1024)
    scale: float = number(1.0, 0.01, 10.0)
    learn_scale: bool = flag()
    norm_in: bool = flag()
    dropout: float = number(0.0, 0.0, 0.9)

    @classmethod
    def _places(cls, facts: Facts) -> tuple[Branch | None, ...]:
        return cls.branches if facts.family == "vit" else (None,)

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """2 D r + r + D a module, + 2 D with a norm, + 1 with a scale that trains."""
        each = (widths(facts, block)[1] for block in blocks_of(stratum))
        sizes = (bottleneck_size(d, d, self.r, self.norm_in, self.learn_scale) for d in each)
        return len(self._places(facts)) * sum(sizes)

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the modules and their hooks."""
        from autopeft.methods.added import Bottleneck
        from autopeft.methods.hooks import add_module, behind

        trainable: dict[str, nn.Parameter] = {}
        for block, options in places_of(strata):
            width = widths(network.facts, block)[1]
            for branch in cls._places(network.facts):
                module = Bottleneck(
                    width,
                    width,
                    options["r"],
                    "gelu",
                    options["scale"],
                    options["norm_in"],
                    options["dropout"],
                    options["learn_scale"],
                )
                behind(network, block, branch, module)
                path = network.block_names(block)
                trainable |= add_module(network, path, name_in_block(cls.name, branch), module)
        return Injection(trainable)


@dataclass(frozen=True)
class Pfeiffer(_Sequential):
    """One bottleneck a block, behind the MLP: h <- h + s (U gelu(V h) + c).

    It sits behind layer scale, right before the residual sum. U and c start at zero, so a fresh
    adapter changes nothing. In a CNN it sits behind the block.

    Attributes:
        r: width of the bottleneck.
        scale: s, or its first value.
        learn_scale: whether s trains.
        norm_in: whether the adapter has a layer norm of its own before V.
        dropout: dropout in the bottleneck while training.
    """

    name: ClassVar[str] = "adapter_pfeiffer"
    paper: ClassVar[str] = "Pfeiffer et al. 2020, arXiv:2005.00247"
    summary: ClassVar[str] = "Adds a small bottleneck network behind the MLP of chosen blocks."
    branches: ClassVar[tuple[Branch, ...]] = ("mlp",)


@dataclass(frozen=True)
class Houlsby(_Sequential):
    """Two bottlenecks a block, behind attention and behind the MLP: h <- h + s (U gelu(V h) + c).

    They sit behind layer scale, right before the residual sums. U and c start at zero (near zero
    in the paper), so a fresh adapter changes nothing. The paper also trains the norms: add a
    stratum ``bitfit`` or a norm method for that.

    Attributes:
        r: width of the bottleneck.
        scale: s, or its first value.
        learn_scale: whether s trains.
        norm_in: whether each adapter has a layer norm of its own before V.
        dropout: dropout in the bottleneck while training.
    """

    name: ClassVar[str] = "adapter_houlsby"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    summary: ClassVar[str] = "Adds small bottleneck networks behind attention and MLP."
    branches: ClassVar[tuple[Branch, ...]] = ("attn", "mlp")

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options.

        Raises:
            UserError: the backbone is a CNN, whose blocks have no two halves.
        """
        if facts.family == "cnn":
            what = f"{facts.name} is a CNN: its blocks have no attention and MLP"
            raise UserError(what, f"method {self.name}", "Choose adapter_pfeiffer.")
        return super().options(facts)


@dataclass(frozen=True)
class Parallel(Method):
    """A bottleneck beside a branch: y + branch(y) + s (U relu(V n(y)) + c), y the block's stream.

    The adapter reads the residual stream before the branch's norm. U and c start at zero. In a
    CNN it is beside the whole block, with the block's stride. The paper's dropout of 0.1 is off
    unless asked for.

    Attributes:
        r: width of the bottleneck.
        scale: s.
        norm_in: whether n is a layer norm of its own, else nothing.
        where: beside the MLP (the paper) or beside attention; no choice in a CNN.
        dropout: dropout in the bottleneck while training.
    """

    name: ClassVar[str] = "adapter_parallel"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Chen et al. 2022, arXiv:2205.13535 (AdaptFormer)"
    summary: ClassVar[str] = "Adds a small bottleneck network beside the MLP of chosen blocks."
    rates: ClassVar[Mapping[str, Rate]] = RATES
    mergeable: ClassVar[bool] = False

    r: int = integer(64, 1, 1024)
    scale: float = number(0.1, 0.01, 10.0)
    norm_in: bool = flag()
    where: str = choice("mlp", "attn")
    dropout: float = number(0.0, 0.0, 0.9)

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options; a CNN's blocks have one place."""
        options = super().options(facts)
        return options if facts.family == "vit" else {**options, "where": "mlp"}

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """2 D r + r + D a block, + 2 D with a norm."""
        each = (widths(facts, block) for block in blocks_of(stratum))
        return sum(bottleneck_size(*io, self.r, self.norm_in) for io in each)

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the modules and their hooks."""
        from autopeft.methods.added import Bottleneck
        from autopeft.methods.hooks import add_module, beside

        trainable: dict[str, nn.Parameter] = {}
        for block, options in places_of(strata):
            branch: Branch | None = options["where"] if network.facts.family == "vit" else None
            module = Bottleneck(
                *widths(network.facts, block),
                options["r"],
                "relu",
                options["scale"],
                options["norm_in"],
                options["dropout"],
            )
            beside(network, block, branch, module)
            path = network.block_names(block)
            trainable |= add_module(network, path, name_in_block(cls.name, branch), module)
        return Injection(trainable)


@dataclass(frozen=True)
class Multiway(Method):
    """``adapter_parallel`` beside the MLP with a norm of its own and s = 0.6.

    The paper's second part, an alignment enhancer for two modalities, is a bottleneck behind the
    whole block; with one modality it is off unless asked for. Its layer is here
    h <- h + U relu(V n(h)) + c with U and c at zero first.

    Attributes:
        r: width of the bottlenecks.
        enhancer: whether there is a second bottleneck behind the block.
    """

    name: ClassVar[str] = "multiway_adapter"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Long et al. 2023, arXiv:2309.01516"
    summary: ClassVar[str] = "Adds a normed bottleneck beside the MLP, and one behind the block."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(2e-4, 2e-5, 5e-3),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }
    mergeable: ClassVar[bool] = False
    scale: ClassVar[float] = 0.6

    r: int = integer(64, 1, 1024)
    enhancer: bool = flag()

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """2 D r + r + 3 D a block, twice with the enhancer."""
        total = 0
        for block in blocks_of(stratum):
            inputs, outputs = widths(facts, block)
            total += bottleneck_size(inputs, outputs, self.r, True)
            total += bottleneck_size(outputs, outputs, self.r, True) * self.enhancer
        return total

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the modules and their hooks."""
        from autopeft.methods.added import Bottleneck
        from autopeft.methods.hooks import add_module, behind, beside

        trainable: dict[str, nn.Parameter] = {}
        for block, options in places_of(strata):
            branch: Branch | None = "mlp" if network.facts.family == "vit" else None
            inputs, outputs = widths(network.facts, block)
            path = network.block_names(block)
            module = Bottleneck(inputs, outputs, options["r"], "relu", cls.scale, norm=True)
            beside(network, block, branch, module)
            trainable |= add_module(network, path, name_in_block(cls.name, branch), module)
            if options["enhancer"]:
                module = Bottleneck(outputs, outputs, options["r"], "relu", norm=True)
                behind(network, block, None, module)
                trainable |= add_module(network, path, f"{cls.name}_enhancer", module)
        return Injection(trainable)
