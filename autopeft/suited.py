"""Leaves out of a space what a backbone cannot have: methods without a place on it, sizes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from autopeft.candidate import Candidate
from autopeft.errors import UserError
from autopeft.ranges import Field
from autopeft.sections import Shape, modules_there
from autopeft.space import Space

Canonical = Callable[[Mapping[str, Any], Any], Candidate]
_TRIES = 12  # settings of the other options with which a choice is tried


def suited(
    space: Space, facts: Shape, methods: Mapping[str, type], canonical: Canonical
) -> tuple[Space, str]:
    """The space without methods, parts and choices that the backbone cannot have.

    A choice goes when the method accepts it but not on this backbone, whatever the other options
    are. What a method refuses everywhere is the space's mistake and stays, for ``Space.check``.

    Args:
        space: names are checked already.
        facts: the backbone.
        methods: ``autopeft.methods.METHODS``.
        canonical: ``autopeft.methods.canonical``.

    Returns:
        The space, and one line that names what was left out ("" if nothing was).

    Raises:
        UserError: nothing is left.
    """
    gone: list[str] = []
    reasons: list[str] = []
    kept: dict[str, tuple[Field, ...]] = {}
    for scope, method, section in space.sections:
        try:
            left, fewer = _section(space, scope, methods[method], section, facts, canonical)
        except UserError as error:
            gone.append(scope)
            reasons.append(error.what)
            continue
        kept[scope] = left
        gone += fewer
    where = f"{space.where}, {'methods' if space.methods else 'strata'}"
    if not kept:
        raise UserError(f"nothing of it is possible on this backbone: {reasons[0]}", where)
    lacking = {f"modules {v}": None for s in kept for v in _lacking(space, s, facts)}
    points = tuple(_point(p, space, kept) for p in space.points if _stays(p, space, kept))
    fitting = replace(
        space,
        methods={m: kept[m] for m in space.methods if m in kept},
        parts={n: replace(p, fields=kept[n]) for n, p in space.parts.items() if n in kept},
        points=points,
    )
    return fitting, _line([*gone, *lacking], reasons)


def _section(
    space: Space,
    scope: str,
    method: Any,
    section: Sequence[Field],
    facts: Shape,
    canonical: Canonical,
) -> tuple[tuple[Field, ...], list[str]]:
    """A section without impossible choices, and their names.

    Raises:
        UserError: the method has no place here.
    """
    section = tuple(_with_modules(f, facts) for f in section)
    if getattr(method, "placed", False):
        _check_place(method, section, facts)

    def possible(point: Mapping[str, Any]) -> bool:
        raw = _alone(space, scope, section, point, facts)
        try:
            for stratum in raw["strata"] if hasattr(method, "make") else ():
                method.make(stratum["options"])
        except UserError:
            return True  # wrong on any backbone: ``Space.check`` says so
        try:
            canonical(raw, facts)
        except UserError:
            return False
        return True

    if all(possible({f.name: value}) for f in section for value in _values(f)):
        return section, []
    options = {f.name for f in fields(method)}
    gone: list[str] = []

    def without(fits: Callable[[Any, Field], bool]) -> None:
        nonlocal section
        for i, one in enumerate(section):
            bad = [v for v in _values(one) if not fits(v, one)]
            bad = [v for v in bad if one.key not in options or _accepted(method, one.key, v)]
            if bad and isinstance(one.distribution, CategoricalDistribution):
                fewer = one.keep(_other_than(bad), f"{method.name} needs another value here.")
                section = (*section[:i], fewer, *section[i + 1 :])
                gone.append(f"{one.name} = {', '.join(map(str, bad))}")

    # Sizes that never fit first; then what does not go with the first value of the others, so
    # that nearly all of what the sampler draws is possible.
    without(lambda v, one: one.key not in options or _somehow(v, one, section, possible))
    if possible({}):
        without(lambda v, one: possible({one.name: v}))
    return section, gone


def _other_than(bad: Sequence[Any]) -> Callable[[Any], bool]:
    return lambda value: value not in bad


def _with_modules(field: Field, facts: Shape) -> Field:
    if field.key != "modules":
        return field
    there = ", ".join(facts.modules)
    return field.keep(lambda v: modules_there(v, facts), f"This backbone has: {there}, or all.")


def _lacking(space: Space, scope: str, facts: Shape) -> list[str]:
    """Choices of modules that the backbone has not."""
    section = next(section for name, _, section in space.sections if name == scope)
    every = [v for f in section if f.key == "modules" for v in f.extremes]
    return [str(v) for v in every if not modules_there(v, facts)]


def _check_place(method: Any, section: Sequence[Field], facts: Any) -> None:
    """Raises where a method works on no block of the backbone."""
    made = method.make({})
    try:
        made.options(facts)
        here = any(made.sites(facts, block) for block in range(facts.depth))
    except UserError:
        if any(f.key in {o.name for o in fields(method)} for f in section):
            here = _any_size(method, section, facts)
        else:
            raise
    except KeyError:  # a module that this family has not
        here = False
    if not here:
        raise UserError(f"{method.name} has no place on it", "")


def _any_size(method: Any, section: Sequence[Field], facts: Any) -> bool:
    """Whether another value of one option makes the method possible; else the reason is raised."""
    reason: UserError | None = None
    names = {o.name for o in fields(method)}
    for field in section:
        for value in _values(field) if field.key in names else ():
            try:
                made = method.make({field.key: value})
                made.options(facts)
                if any(made.sites(facts, block) for block in range(facts.depth)):
                    return True
            except UserError as error:
                reason = error
    if reason is not None:
        raise reason
    return False


def _alone(
    space: Space, scope: str, section: Sequence[Field], point: Mapping[str, Any], facts: Shape
) -> dict[str, Any]:
    """A candidate of this section only, with some values given and the others typical."""
    one = replace(
        space,
        methods={m: tuple(section) for m in space.methods if m == scope},
        parts={n: replace(p, fields=tuple(section)) for n, p in space.parts.items() if n == scope},
        mask=(),
    ).fit(facts, True)
    typical = {n: f.typical for n, f in one.fields.items() if f.distribution is not None}
    return one.draw(optuna.trial.FixedTrial({**typical, **point}), facts)


def _somehow(
    value: Any, one: Field, section: Sequence[Field], possible: Callable[[Mapping[str, Any]], bool]
) -> bool:
    """Whether a value is possible with any of a few settings of the other fields."""
    others = [f for f in section if f is not one and f.distribution is not None]
    draw = random.Random(0)
    for attempt in range(_TRIES):
        values = {f.name: draw.choice(_values(f)) if attempt else f.typical for f in others}
        if possible({**values, one.name: value}):
            return True
    return False


def _values(field: Field) -> Sequence[Any]:
    return () if field.each or field.distribution is None else field.extremes


def _accepted(method: Any, option: str, value: Any) -> bool:
    """Whether the method takes the value, on some backbone."""
    if not hasattr(method, "make"):
        return False
    try:
        method.make({option: value})
    except UserError:
        return False
    return True


# ---- warm starts, and what the user is told -------------------------------------------------


def _stays(point: Mapping[str, Any], space: Space, kept: Mapping[str, Any]) -> bool:
    return not space.methods or point.get("method") in kept


def _point(
    point: Mapping[str, Any], space: Space, kept: Mapping[str, tuple[Field, ...]]
) -> dict[str, Any]:
    """A warm start without the values that were left out."""
    scopes = {*space.methods, *space.parts}
    now = {f.name: f for section in kept.values() for f in section}
    values = {}
    for name, value in point.items():
        scope = name.partition(".")[0]
        if scope in scopes and scope not in kept:
            continue
        if name in now and not now[name].each and not now[name].contains(value):
            continue
        values[name] = value
    return values


def _line(gone: Sequence[str], reasons: Sequence[str]) -> str:
    if not gone:
        return ""
    why = f" ({reasons[0]})" if len(reasons) == 1 and len(gone) == 1 else ""
    return f"left out, as this backbone cannot have it: {'; '.join(gone)}{why}"
