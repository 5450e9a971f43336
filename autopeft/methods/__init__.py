"""PEFT methods: one small frozen dataclass each. Importing this loads no torch.

``METHODS`` lists them by name, ``canonical`` makes candidates, ``build`` puts one on a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autopeft.methods.canonical import canonical
from autopeft.methods.method import Injection, Method, Rate, Scored
from autopeft.methods.registry import METHODS, method_named, register

if TYPE_CHECKING:
    from autopeft.methods.adapted import Adapted, build

__all__ = [
    "METHODS",
    "Adapted",
    "Injection",
    "Method",
    "Rate",
    "Scored",
    "build",
    "canonical",
    "method_named",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in ("Adapted", "build"):
        from autopeft.methods import adapted

        return getattr(adapted, name)
    raise AttributeError(f"module 'autopeft.methods' has no attribute {name!r}")
