"""Adapters with a convolution between tokens: Convpass and the conformer adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.adapters import RATES
from autopeft.methods.method import Injection, Method, Rate, choice, integer, number
from autopeft.methods.sites import Branch, blocks_of, name_in_block, places_of, widths

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.added import Grid


def _branches(facts: Facts, where: str) -> tuple[Branch | None, ...]:
    """The branches that ``where`` names; a CNN's block as a whole."""
    if facts.family == "cnn":
        return (None,)
    both: tuple[Branch, ...] = ("attn", "mlp")
    return tuple(b for b in both if where in ("both", b))


def _grid(network: Network) -> Grid | None:
    if network.facts.family == "cnn":
        return None
    height, width = network.model.patch_embed.grid_size
    return int(height), int(width)


def _inject(
    cls: type[Method],
    network: Network,
    strata: Sequence[Stratum],
    make: Callable[[int, int, Mapping[str, Any]], nn.Module],
) -> Injection:
    """Adds one module a place, beside it."""
    from autopeft.methods.hooks import add_module, beside

    trainable: dict[str, nn.Parameter] = {}
    for block, options in places_of(strata):
        for branch in _branches(network.facts, options["where"]):
            module = make(*widths(network.facts, block), options)
            # Both papers feed the branch's normed input; the conformer's norm is its own.
            beside(network, block, branch, module, normed=cls is Convpass)
            path = network.block_names(block)
            trainable |= add_module(network, path, name_in_block(cls.name, branch), module)
    return Injection(trainable)


@dataclass(frozen=True)
class Convpass(Method):
    """Convolutional bypass: branch(n(y)) + s (U gelu(conv(gelu(V n(y))))), n the block's norm.

    The 3x3 convolution runs over the patch grid; class, register and prompt tokens are 1x1 images
    of their own. U starts at zero. In a CNN it is beside the whole block, with the block's stride.
    GELU here, a sigmoid approximation of it in the paper's code.

    Attributes:
        r: channels of the bottleneck.
        scale: s.
        where: beside attention and MLP (the paper), or one of them; no choice in a CNN.
        init: the convolution starts as the identity (``center``), or ``xavier``.
    """

    name: ClassVar[str] = "adapter_convpass"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Jie and Deng 2022, arXiv:2207.07039"
    summary: ClassVar[str] = "Adds a small 3x3 convolution over the patches beside each branch."
    rates: ClassVar[Mapping[str, Rate]] = RATES
    mergeable: ClassVar[bool] = False

    r: int = integer(8, 1, 256)
    scale: float = number(1.0, 0.01, 10.0)
    where: str = choice("both", "mlp", "attn")
    init: str = choice("center", "xavier")

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options; a CNN's blocks have one place."""
        options = super().options(facts)
        return options if facts.family == "vit" else {**options, "where": "both"}

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """2 D r + 9 r^2 + 2 r + D a module."""
        r, total = self.r, 0
        for block in blocks_of(stratum):
            inputs, outputs = widths(facts, block)
            total += r * (inputs + outputs) + 9 * r * r + 2 * r + outputs
        return total * len(_branches(facts, self.where))

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the modules and their hooks."""
        from autopeft.methods.added import ConvBottleneck

        grid = _grid(network)

        def make(inputs: int, outputs: int, options: Mapping[str, Any]) -> nn.Module:
            return ConvBottleneck(
                inputs, outputs, options["r"], options["scale"], options["init"], grid
            )

        return _inject(cls, network, strata, make)


@dataclass(frozen=True)
class Conformer(Method):
    """The conformer's convolution module beside a branch: U silu(n(dw(glu(P n(y))))).

    The depthwise convolution runs along the sequence of tokens, as in the paper, or over the patch
    grid. Two changes: the norm behind the convolution is a layer norm, since batch statistics
    would mix images and be lost on reload; and the first norm, which the released code leaves
    out, is applied. U starts at zero. In a CNN it is beside the whole block, over its map.

    Attributes:
        r: channels of the bottleneck.
        where: beside attention and MLP, or one of them; no choice in a CNN.
        conv: along the sequence (``line``), or over the grid with a side of 3 or 5; a CNN has no
            line and takes ``grid3`` for it.
        kernel: length of the kernel along the line, odd; read by ``line`` only.
        dropout: dropout on the output while training.
    """

    name: ClassVar[str] = "adapter_conformer"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Cappellazzo et al. 2023, arXiv:2312.03694"
    summary: ClassVar[str] = "Adds a gated depthwise convolution over the tokens beside a branch."
    rates: ClassVar[Mapping[str, Rate]] = RATES
    mergeable: ClassVar[bool] = False

    r: int = integer(8, 1, 256)
    where: str = choice("both", "mlp", "attn")
    conv: str = choice("line", "grid3", "grid5")
    kernel: int = integer(15, 3, 63)
    dropout: float = number(0.0, 0.0, 0.9)

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options; fields without effect hold their default.

        Raises:
            UserError: an even kernel, which has no center.
        """
        options = super().options(facts)
        if facts.family == "cnn":
            options["where"] = "both"
            options["conv"] = "grid3" if self.conv == "line" else self.conv
        if options["conv"] != "line":
            options["kernel"] = self.defaults()["kernel"]
        elif self.kernel % 2 == 0:
            what = f"kernel = {self.kernel} is not possible"
            fix = "It must be an odd number from 3 to 63."
            raise UserError(what, f"method {self.name}", fix)
        return options

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """3 D r + r k + 5 r + 3 D a module; k is the kernel's size, 9 or 25 on a grid.

        (r has biases 2 r + r, a norm of 2 r; D a norm of 2 D and a bias.)
        """
        r, total = self.r, 0
        size = {"line": self.kernel, "grid3": 9, "grid5": 25}[self.conv]
        for block in blocks_of(stratum):
            inputs, outputs = widths(facts, block)
            total += 2 * inputs * r + outputs * r + r * size + 5 * r + 2 * inputs + outputs
        return total * len(_branches(facts, self.where))

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the modules and their hooks."""
        from autopeft.methods.added import ConvModule

        grid = _grid(network)

        def make(inputs: int, outputs: int, options: Mapping[str, Any]) -> nn.Module:
            square = options["conv"] != "line"
            kernel = int(options["conv"][4:]) if square else options["kernel"]
            return ConvModule(
                inputs, outputs, options["r"], kernel, square, grid, options["dropout"]
            )

        return _inject(cls, network, strata, make)
