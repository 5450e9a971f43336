"""autopeft: which parameter-efficient fine-tuning, where, how large, trained how - honestly.

The public names load lazily: ``import autopeft`` loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autopeft.version import __version__

if TYPE_CHECKING:
    from autopeft.adapter import load_adapter
    from autopeft.driver import search
    from autopeft.errors import RunError, UserError
    from autopeft.methods.own import register_methods
    from autopeft.objective import AtLeast, AtMost, Objective, Term
    from autopeft.result import Result, load_result
    from autopeft.rungs import open_rungs
    from autopeft.settings import Settings

_HOME = {
    "AtLeast": "objective",
    "AtMost": "objective",
    "Objective": "objective",
    "Result": "result",
    "RunError": "errors",
    "Settings": "settings",
    "Term": "objective",
    "UserError": "errors",
    "load_adapter": "adapter",
    "load_result": "result",
    "open_rungs": "rungs",
    "register_methods": "methods.own",
    "search": "driver",
}

__all__ = [
    "AtLeast",
    "AtMost",
    "Objective",
    "Result",
    "RunError",
    "Settings",
    "Term",
    "UserError",
    "__version__",
    "load_adapter",
    "load_result",
    "open_rungs",
    "register_methods",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"autopeft.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
