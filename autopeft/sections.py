"""Sections of a search space: their fields, what fits a backbone, and where a method is placed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints

import optuna
from optuna.distributions import CategoricalDistribution

from autopeft import plugins
from autopeft.candidate import Readout, Train
from autopeft.errors import UserError, nearest
from autopeft.plugins import Plugin
from autopeft.ranges import Field, read_field

SHARES = {
    "quarter": 1 / 4,
    "third": 1 / 3,
    "half": 1 / 2,
    "two_thirds": 2 / 3,
    "three_quarters": 3 / 4,
    "all": 1.0,
}
PLACE = ("last", "first", "until", "mask", "modules")
TRAIN = {name: get_args(hint) for name, hint in get_type_hints(Train).items()}
READOUT = {name: get_args(hint) for name, hint in get_type_hints(Readout).items()}
_GROUP_SAMPLING = ("group", "label_x_group")


class Shape(Protocol):
    """The facts of a backbone that a space needs."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

    @property
    def modules(self) -> Mapping[str, Any]:
        """Module names inside a block."""

    @property
    def pools(self) -> Sequence[str]:
        """How features can be pooled."""


@dataclass(frozen=True)
class Part:
    """One named stratum of a space with ``strata``.

    Attributes:
        method: its method.
        fields: ``use``, if it may be left away, placement and options.
    """

    method: str
    fields: tuple[Field, ...]

    @property
    def optional(self) -> bool:
        """Whether a candidate may do without it."""
        return any(f.key == "use" and False in f.extremes for f in self.fields)


def read_part(scope: str, spec: Any, where: str) -> Part:
    """A part as written in YAML.

    Raises:
        UserError: no method, a field that every candidate has once, or a mistake in a field.
    """
    fields = dict(mapping(spec, where))
    method = fields.pop("method", None)
    if not isinstance(method, str):
        raise UserError("a part names no method", where, "Write {method: lora, ...}.")
    for key in fields:
        if key in TRAIN:
            what = f"{key!r} is one for the whole candidate"
            raise UserError(what, where, "Put it into the section train.")
    section = read_section(scope, fields, where, None)
    for field in section:
        if field.key == "use" and not all(isinstance(v, bool) for v in field.extremes):
            raise UserError("use is yes or no", field.where, "Write {choices: [true, false]}.")
    return Part(method, section)


def read_section(
    scope: str, spec: Any, where: str, known: Mapping[str, tuple[Any, ...]] | None
) -> tuple[Field, ...]:
    """The fields of one section; ``known`` names the possible ones and their words.

    Raises:
        UserError: an unknown field, a word that is not possible, or placements that disagree.
    """
    section = []
    for key, value in mapping(spec, where).items():
        if known is not None and key not in known:
            raise UserError(f"unknown field {key!r}", where, nearest(str(key), known))
        field = read_field(f"{scope}.{key}", value, f"{where}.{key}")
        words = TRAIN.get(str(key), ()) if scope != "readout" else READOUT[str(key)]
        for word in field.extremes if words else ():
            if word not in words:
                raise UserError(
                    f"{word!r} is not possible", field.where, nearest(str(word), words)
                )
        if key in ("last", "until") or (scope, key) == ("readout", "block"):
            _check_depth(field, least=1)
        elif key == "first" or field.in_blocks:
            _check_depth(field, least=0)
        elif key == "mask" and not field.each:
            raise UserError(f"mask is {value!r}", field.where, "Write mask: each.")
        section.append(field)
    ways = [{"last"}, {"first", "until"}, {"mask"}]
    used = [way & {f.key for f in section} for way in ways]
    if sum(map(bool, used)) > 1:
        named = " and ".join(sorted(key for way in used for key in way))
        raise UserError(f"{named} both say which blocks", where, "Keep one of them.")
    return tuple(section)


def _check_depth(field: Field, least: int) -> None:
    for value in field.extremes:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not whole and value not in SHARES:
            fix = f"Write a number of blocks or one of {', '.join(SHARES)}."
            raise UserError(f"{value!r} is no depth", field.where, fix)


def mapping(spec: Any, where: str) -> Mapping[str, Any]:
    """A section as written; None is an empty one.

    Raises:
        UserError: it is something else.
    """
    if spec is None:
        return {}
    if not isinstance(spec, Mapping):
        raise UserError(f"{spec!r} is no section", where, "Write `field: value` lines.")
    return spec


def blocks_of(value: Any, depth: int, least: int = 1) -> int:
    """A depth as written (a number or a share) as a number of blocks, ``least`` to ``depth``."""
    blocks = round(SHARES[value] * depth) if isinstance(value, str) else int(value)
    return min(depth, max(least, blocks))


# ---- what a backbone can have ---------------------------------------------------------------


def fit_section(section: Sequence[Field], facts: Shape, has_groups: bool) -> tuple[Field, ...]:
    """The section on one backbone: one field for each block where it says ``each``."""
    return tuple(
        _fit(field, facts, has_groups) for one in section for field in _blockwise(one, facts)
    )


def _blockwise(field: Field, facts: Shape) -> Iterator[Field]:
    if not field.each:
        yield field
        return
    bit = CategoricalDistribution((False, True))
    for i in range(facts.depth):
        yield replace(field, name=f"{field.name}.{i}", distribution=bit, value=None, index=i)


def modules_there(value: Any, facts: Shape) -> bool:
    """Whether a backbone has all modules that a choice names."""
    there = {*facts.modules, *getattr(facts, "grouped", ())}
    return value == "all" or set(str(value).split("+")) <= there


def _fit(field: Field, facts: Shape, has_groups: bool) -> Field:
    """A field without the choices that the backbone or the task cannot have."""
    if field.key == "modules":
        return field.keep(
            lambda v: modules_there(v, facts),
            f"This backbone has: {', '.join(facts.modules)}, or all.",
        )
    if field.name == "readout.pool":
        return field.keep(lambda v: v in facts.pools, f"This backbone has: {facts.pools}.")
    if field.name == "readout.block":

        def exists(value: Any) -> bool:
            return isinstance(value, str) or value <= facts.depth

        why = f"This backbone has {facts.depth} blocks."
        if field.is_range:
            if not all(map(exists, field.extremes)):
                raise UserError("the range leaves the backbone", field.where, why)
            return field
        return field.keep(exists, why)
    if field.key == "sampling" and not has_groups:
        return field.keep(
            lambda v: v not in _GROUP_SAMPLING, "Group sampling needs groups: give --group."
        )
    if field.key == "group_dro" and not has_groups:
        return field.keep(lambda v: v is False, "Group DRO needs groups: give --group.")
    return field


# ---- drawing --------------------------------------------------------------------------------


def draw_stratum(
    method: str,
    section: Sequence[Field],
    trial: optuna.trial.BaseTrial,
    block: int,
    facts: Shape,
    mask: Sequence[bool] | None = None,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Draws one stratum and the training fields that stand in its section.

    Args:
        method: its method.
        section: its fields, as fitted.
        trial: an Optuna trial, or a ``FixedTrial``.
        block: the readout's block. Placements count from it: blocks above are never run.
        facts: the backbone.
        mask: which blocks a part without a placement of its own has.

    Returns:
        The stratum, None where it is not used or has no block; and the training fields.
    """
    values: dict[str, Any] = {}
    train: dict[str, Any] = {}
    for field in section:
        if values.get("use") is False:
            break
        value = draw(field, trial, block)
        if field.index is not None:
            values.setdefault(field.key, []).append(value)
        elif field.key in TRAIN:
            train[field.key] = value
        else:
            values[field.key] = value
    if values.pop("use", True) is False:
        return None, train
    place = _placed(values, block, mask)
    if place is None:
        return None, train
    modules = {"modules": values.pop("modules")} if "modules" in values else {}
    return {"method": method, "options": values, **place, **modules}, train


def draw(field: Field, trial: optuna.trial.BaseTrial, block: int) -> Any:
    """A field's value; bits of blocks at and above the readout are off without being drawn."""
    if field.index is not None and field.index >= block:
        return False
    value = field.draw(trial)
    return blocks_of(value, block, least=0) if field.in_blocks else value


def _placed(
    values: dict[str, Any], block: int, mask: Sequence[bool] | None
) -> dict[str, Any] | None:
    """Takes the placement out of a section's values; None where no block is left."""
    if "last" in values:
        return {"blocks": [block - blocks_of(values.pop("last"), block), block - 1]}
    if "first" in values or "until" in values:
        first = blocks_of(values.pop("first", 0), block, least=0)
        until = blocks_of(values.pop("until", "all"), block)
        return {"blocks": [first, until - 1]} if first < until else None
    bits = values.pop("mask", mask)
    if bits is None:
        return {}
    return {"blocks": {"mask": [int(on) for on in bits]}} if any(bits) else None


def read_files(spec: Any, where: str) -> tuple[Plugin, ...]:
    """The Python files that a space names, beside its own file."""
    if spec is None:
        return ()
    every = [spec] if isinstance(spec, str) else spec
    if not isinstance(every, list) or not all(isinstance(path, str) for path in every):
        raise UserError(
            f"{spec!r} is no list of files", f"{where}, methods_from", "Write [./gate.py]."
        )
    try:
        return tuple(plugins.read_python(Path(where).parent / Path(p).expanduser()) for p in every)
    except UserError as error:
        what = f"{error.where}: {error.what}"
        raise UserError(what, f"{where}, methods_from", error.fix) from None
