"""The methods by name."""

from __future__ import annotations

from autopeft.errors import UserError, nearest
from autopeft.methods.bitfit import BitFit
from autopeft.methods.full import Full
from autopeft.methods.linear_probe import LinearProbe
from autopeft.methods.lora import Lora
from autopeft.methods.method import Method

METHODS: dict[str, type[Method]] = {m.name: m for m in (LinearProbe, Full, BitFit, Lora)}
BUILT_IN = frozenset(METHODS)


def method_named(name: str, where: str = "method") -> type[Method]:
    """The method of that name.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"unknown method {name!r}", where, nearest(str(name), METHODS))
    return METHODS[name]


def register(method: type[Method]) -> type[Method]:
    """Adds a method to this process, under its name; the same class may come again.

    Workers do not know it: for a search, name its file in a space's ``methods_from``.

    Raises:
        UserError: another class already has the name.
    """
    known = METHODS.get(method.name, method)
    built_in = method.name in BUILT_IN and known is not method
    if built_in or known.__qualname__ != method.__qualname__:
        raise UserError(f"method {method.name!r} already exists", "", "Give yours another name.")
    METHODS[method.name] = method
    return method
