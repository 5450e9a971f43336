"""Helps methods to spell one network in one way: options that change nothing, layers' sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.candidate import Stratum
    from autopeft.methods.method import Method


def changed(stratum: Stratum, **options: Any) -> Stratum:
    """The stratum with other values of some options."""
    return replace(stratum, options={**stratum.options, **options})


def clipped(method: type[Method], stratum: Stratum, option: str, limit: int) -> Stratum:
    """The stratum with one value for all that are the same: those from ``limit`` on.

    That value is the option's default if it is one of them, else the limit.
    """
    if stratum.options[option] < limit:
        return stratum
    return changed(stratum, **{option: max(limit, method.defaults()[option])})


def shapes_of(facts: Facts, strata: Sequence[Stratum]) -> list[tuple[int, ...]]:
    """(fan in, outputs) of all modules that some strata name."""
    return [
        facts.modules[name][block]
        for stratum in strata
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1)
        for name in stratum.modules
        if facts.modules[name][block]
    ]
