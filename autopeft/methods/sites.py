"""Where a method can put modules of its own: blocks, their branches and widths. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.candidate import Stratum

Branch = Literal["attn", "mlp"]


def blocks_of(stratum: Stratum) -> range:
    """The block numbers of a stratum."""
    return range(stratum.blocks[0], stratum.blocks[1] + 1)


def width_at(facts: Facts, boundary: int) -> int:
    """Channels of a state at a boundary."""
    shape = facts.shapes[boundary]
    return shape[1] if facts.family == "vit" else shape[0]


def widths(facts: Facts, block: int) -> tuple[int, int]:
    """Channels that go into a block's main part, and channels that come out of it."""
    before = block if len(facts.prefixes[block]) == 1 else block + 1
    return width_at(facts, before), width_at(facts, block + 1)


def places_of(strata: Sequence[Stratum]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each block of some strata with its options."""
    for stratum in strata:
        for block in blocks_of(stratum):
            yield block, stratum.options


def name_in_block(method: str, branch: Branch | None) -> str:
    """What a method's module is called inside its block."""
    return f"{method}_{branch or 'block'}"
