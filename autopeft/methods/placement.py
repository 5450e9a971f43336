"""Where a method sits: block ranges and module names as people write them, made canonical."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autopeft.candidate import Stratum
from autopeft.errors import UserError, nearest
from autopeft.methods.registry import METHODS, method_named

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.candidate import Readout
    from autopeft.methods.method import Method

_BLOCKS = (
    'Write "all", [first, last], a number (the last n), {first_block: k} or {mask: [0, 1, ...]}.'
)


_ROUNDS = 8  # a change of options can merge strata, which can change options again


@dataclass(frozen=True)
class Part:
    """One stratum as written, before clipping and merging."""

    method: Method
    blocks: tuple[int, ...]
    modules: tuple[str, ...] | None


def blocks_named(spec: Any, facts: Facts, stop: int) -> tuple[int, ...]:
    """The blocks that a person meant, clipped to those below the readout.

    Args:
        spec: ``"all"``; ``[first, last]`` or ``"first-last"``, both included; ``n``, the last n
            below the readout; ``{"first_block": k}``, optionally with ``last_block``;
            ``{"mask": [0, 1, ...]}``.
        facts: the backbone.
        stop: the readout's block.

    Raises:
        UserError: another form, or a block that the backbone lacks.
    """
    depth = facts.depth
    pair = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", spec) if isinstance(spec, str) else None
    if spec is None or spec == "all":
        return tuple(range(stop))
    if pair:
        spec = [int(pair[1]), int(pair[2])]
    if isinstance(spec, int) and not isinstance(spec, bool):
        if not 0 <= spec <= depth:
            raise _bad(f"{spec} blocks are asked for", depth)
        return tuple(range(max(0, stop - spec), stop))
    if isinstance(spec, Mapping) and set(spec) == {"mask"} and isinstance(spec["mask"], Sequence):
        mask = list(spec["mask"])
        if len(mask) != depth:
            raise _bad(f"the mask has {len(mask)} entries", depth)
        return tuple(i for i, on in enumerate(mask) if on and i < stop)
    ends = {"first_block", "last_block"}
    if isinstance(spec, Mapping) and "first_block" in spec and set(spec) <= ends:
        spec = [spec["first_block"], spec.get("last_block", depth - 1)]
        if spec == [depth, depth - 1]:  # nothing above the last block: no stratum
            return ()
    if not isinstance(spec, Sequence) or isinstance(spec, str) or len(spec) != 2:
        raise UserError(f"blocks = {spec!r} is not understood", "candidate", _BLOCKS)
    first, last = spec
    if not all(isinstance(b, int) and not isinstance(b, bool) for b in spec):
        raise UserError(f"blocks = {spec!r} is not understood", "candidate", _BLOCKS)
    if not 0 <= first <= last < depth:
        raise _bad(f"blocks {first} to {last} are asked for", depth)
    return tuple(range(first, min(last + 1, stop)))


def modules_named(spec: Any, facts: Facts, method: type[Method]) -> tuple[str, ...] | None:
    """Module names as a person wrote them; None = all that the method can change.

    Raises:
        UserError: the backbone has no such module, or the method takes none.
    """
    if spec is None or spec == "all" or not method.placed:
        return None
    names = re.split(r"[,+\s]+", spec.strip()) if isinstance(spec, str) else list(spec)
    if not method.takes_modules:
        if not names:
            return None
        raise UserError(
            f"modules = {', '.join(map(str, names))} given, but it works on whole blocks",
            f"method {method.name}",
            "Leave modules out.",
        )
    for name in names:
        if name in facts.grouped and not method.takes_grouped:
            takers = ", ".join(m.name for m in METHODS.values() if m.takes_grouped)
            what = f"{name} of {facts.name} has several groups, so its weight is no one matrix"
            raise UserError(what, f"method {method.name}", f"These take it: {takers}.")
        if name not in facts.modules and name not in facts.grouped:
            what = f"{facts.name} has no module {name!r}"
            known = [*facts.modules, *(facts.grouped if method.takes_grouped else ())]
            raise UserError(what, "candidate", nearest(str(name), known))
    if not names:
        raise UserError("modules is empty", f"method {method.name}", "Name at least one module.")
    return tuple(names)


def strata_of(parts: Sequence[Part], facts: Facts) -> tuple[Stratum, ...]:
    """The canonical strata of some parts: clipped, merged, sorted; none if nothing is left.

    Two lists of parts that change the same modules of the same blocks in the same way give the
    same strata.

    Raises:
        UserError: two parts claim the same place, or options do not go with a place.
    """
    plan: dict[tuple[str, str], dict[int, set[str]]] = {}
    for part in parts:
        options = json.dumps(part.method.options(facts), sort_keys=True)
        places = plan.setdefault((part.method.name, options), {})
        for block in part.blocks:
            sites = part.method.sites(facts, block)
            chosen = {s for s in sites if part.modules is None or s in part.modules}
            if chosen:
                places.setdefault(block, set()).update(chosen)
    plan = {key: places for key, places in plan.items() if places}
    _check_overlap(plan)
    strata = [
        Stratum((first, last), tuple(sorted(names - {""})), name, json.loads(options))
        for (name, options), places in plan.items()
        for first, last, names in _runs(places, method_named(name)(**json.loads(options)), facts)
    ]
    for stratum in strata:
        method_named(stratum.method)(**stratum.options).check(facts, stratum)
    for name in {stratum.method for stratum in strata}:
        method_named(name).check_all([s for s in strata if s.method == name])
    return tuple(sorted(strata, key=_order))


def settled(strata: tuple[Stratum, ...], facts: Facts, readout: Readout) -> tuple[Stratum, ...]:
    """The strata as their methods spell them: what changes nothing holds its default.

    Raises:
        UserError: as ``strata_of``.
    """
    for _ in range(_ROUNDS):
        found: list[Stratum] = []
        for name in dict.fromkeys(s.method for s in strata):
            mine = [s for s in strata if s.method == name]
            found += method_named(name).settled(facts, mine, readout)
        if sorted(found, key=_order) == list(strata):
            return strata
        parts = [
            Part(
                method_named(s.method)(**s.options),
                tuple(range(s.blocks[0], s.blocks[1] + 1)),
                s.modules or None,
            )
            for s in found
        ]
        strata = strata_of(parts, facts)
    raise AssertionError(f"{', '.join(s.method for s in strata)} settles on no spelling")


def _order(stratum: Stratum) -> tuple[tuple[int, int], str, tuple[str, ...]]:
    return stratum.blocks, stratum.method, stratum.modules


def _runs(
    places: Mapping[int, set[str]], method: Method, facts: Facts
) -> list[tuple[int, int, set[str]]]:
    """Longest ranges of blocks that one set of names describes.

    A block that lacks a name, or all of them, does not end a range: naming what is not there
    changes nothing.
    """
    sites = {b: set(method.sites(facts, b)) for b in range(min(places), max(places) + 1)}
    runs: list[tuple[int, int, set[str]]] = []
    for block in sorted(places):
        if runs:
            first, _, names = runs[-1]
            union = names | places[block]
            between = range(first, block + 1)
            if all(places.get(b, set()) == union & sites[b] for b in between):
                runs[-1] = (first, block, union)
                continue
        runs.append((block, block, set(places[block])))
    return runs


def _check_overlap(plan: Mapping[tuple[str, str], Mapping[int, set[str]]]) -> None:
    """Refuses two owners of one place, and strata that must share an option but do not."""
    keys = sorted(plan)
    for i, (name, options) in enumerate(keys):
        for other, other_options in keys[i + 1 :]:
            method = method_named(name)
            both = set(plan[name, options]) & set(plan[other, other_options])
            if name != other:
                one = method(**json.loads(options))
                two = method_named(other)(**json.loads(other_options))
                layers = [
                    b for b in both if plan[name, options][b] & plan[other, other_options][b]
                ]
                wrapped = layers and one.one_per_layer and two.one_per_layer
                if both and (wrapped or not _bear(one, two)):
                    what = f"{name} and {other} cannot share block {min(layers or both)}"
                    raise UserError(what, "candidate", "Give them separate blocks.")
                continue
            for block in sorted(both):
                if plan[name, options][block] & plan[other, other_options][block]:
                    what = f"block {block} gets {name} twice, with different options"
                    raise UserError(what, "candidate", "Let the strata not overlap.")
            mine, theirs = json.loads(options), json.loads(other_options)
            differ = [k for k in method.shared if mine[k] != theirs[k]]
            if differ:
                what = f"strata of {name} differ in {', '.join(differ)}"
                raise UserError(what, "candidate", "These must be equal in all its strata.")


def _bear(one: Method, other: Method) -> bool:
    """Whether two methods can share a block."""
    told = other.name in one.conflicts or one.name in other.conflicts
    return not (told or one.alone() or other.alone())


def _bad(what: str, depth: int) -> UserError:
    fix = f"The backbone has {depth} blocks, 0 to {depth - 1}."
    return UserError(what, "candidate", fix)
