"""UniPT: a small network beside the frozen one, which reads its states and never trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, flag, integer
from autopeft.methods.settle import changed
from autopeft.methods.sites import width_at

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.side import Side as SideNetwork


@dataclass(frozen=True)
class UniPT(Method):
    """Universal parallel tuning: a side network mixes the states in front of its blocks.

    State <- state + U relu(a + LN(P sum_l g_l c_l)) at the readout, see ``Side``. Alone it trains
    nothing inside the backbone, so the blocks run without a graph, and those below the first tap
    come from the cache. U starts at zero, so a fresh adapter changes nothing. The paper replaces
    the state by the result (``residual`` false) and pools it; here it passes the backbone's final
    norm. The gate of the paper's code has a bias, on which its softmax does not depend; it is left
    out. A CNN's states are averaged to the readout's grid.

    Attributes:
        f: the side network's width is D / f, D the readout's width.
        every: take the state in front of each ``every``-th block.
        residual: add to the readout's state instead of replacing it.
    """

    name: ClassVar[str] = "unipt"
    family: ClassVar[str] = "side"
    paper: ClassVar[str] = "Diao et al. 2023, arXiv:2308.14316"
    summary: ClassVar[str] = "Trains a small network that reads the frozen states of many blocks."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-4, 1e-4, 1e-2),
        "sgd": Rate(5e-3, 1e-3, 1e-1),
    }
    mergeable: ClassVar[bool] = False
    shared: ClassVar[tuple[str, ...]] = ("residual",)

    f: int = integer(2, 1, 16)
    every: int = integer(1, 1, 3)
    residual: bool = flag(True)

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """The range ends at its last tap, and of equal widths the smallest ``f`` is named.

        Two ranges stay as they are if that would make one network of theirs.
        """
        found = [_shortest(facts, s, readout) for s in strata]
        for one, other in zip(found, found[1:], strict=False):
            if one.blocks[1] + 1 == other.blocks[0] and one.options == other.options:
                return strata
        return found

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """m (D + 3) a tapped state and for the anchor, m^2 + 3 m, m with gates, D (m + 1)."""
        width = width_at(facts, readout.block)
        m, taps = _width(facts, self.f, readout), _taps(stratum)
        downs = sum(m * (width_at(facts, t) + 3) for t in taps) + m * (width + 3) + m * (m + 3)
        return downs + m * (len(taps) > 1) + width * (m + 1)

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Taps the states in front of blocks; one hook behind the last block adds the results."""
        from autopeft.methods.hooks import add_module
        from autopeft.methods.side import Side, readout_of, tap

        facts, last = network.facts, readout.block - 1
        trainable: dict[str, nn.Parameter] = {}
        sides: list[tuple[SideNetwork, list[Tensor]]] = []
        residual = strata[0].options["residual"]
        for number, stratum in enumerate(strata):
            taps, m = _taps(stratum), _width(facts, stratum.options["f"], readout)
            widths = [width_at(facts, t) for t in taps]
            side = Side(widths, width_at(facts, readout.block), m, zero=residual)
            trainable |= add_module(
                network, network.block_names(last), f"{cls.name}_{number}", side
            )
            seen: list[Tensor] = []
            for i, at in enumerate(taps):
                tap(network.model.get_submodule(facts.prefixes[at][0]), seen, first=i == 0)
            sides.append((side, seen))

        def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return readout_of(out, sides, residual)

        network.model.get_submodule(network.block_names(last)).register_forward_hook(add)
        return Injection(trainable)


def _shortest(facts: Facts, stratum: Stratum, readout: Readout) -> Stratum:
    """The same taps and width in fewest words."""
    taps, width = _taps(stratum), width_at(facts, readout.block)
    f = int(stratum.options["f"])
    if f <= width:
        f = width // (width // f + 1) + 1
    every = stratum.options["every"] if len(taps) > 1 else 1
    return replace(changed(stratum, f=f, every=every), blocks=(taps[0], taps[-1]))


def _taps(stratum: Stratum) -> range:
    """Boundaries whose states are read."""
    return range(stratum.blocks[0], stratum.blocks[1] + 1, int(stratum.options["every"]))


def _width(facts: Facts, f: int, readout: Readout) -> int:
    """m of the side network.

    Raises:
        UserError: nothing is left of the readout's width.
    """
    m = width_at(facts, readout.block) // f
    if m < 1:
        raise UserError(f"f = {f} leaves no width", "method unipt", "Choose a smaller f.")
    return m
