"""autopeft: which parameter-efficient fine-tuning, where, how large, trained how - honestly.

The public names load lazily: ``import autopeft`` loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autopeft.version import __version__

if TYPE_CHECKING:
    from autopeft.adapter import load_adapter
    from autopeft.choices import Choice, choose
    from autopeft.driver import search
    from autopeft.errors import RunError, UserError
    from autopeft.external import External, evaluate
    from autopeft.methods.own import register_methods
    from autopeft.objective import AtLeast, AtMost, Objective, Term
    from autopeft.planning import plan
    from autopeft.result import Result, load_result
    from autopeft.rungs import open_rungs
    from autopeft.settings import Settings
    from autopeft.verification import Verification, verify

_HOME = {
    "AtLeast": "objective",
    "AtMost": "objective",
    "Choice": "choices",
    "External": "external",
    "Objective": "objective",
    "Result": "result",
    "RunError": "errors",
    "Settings": "settings",
    "Term": "objective",
    "UserError": "errors",
    "Verification": "verification",
    "choose": "choices",
    "evaluate": "external",
    "load_adapter": "adapter",
    "load_result": "result",
    "open_rungs": "rungs",
    "plan": "planning",
    "register_methods": "methods.own",
    "search": "driver",
    "verify": "verification",
}

__all__ = [
    "AtLeast",
    "AtMost",
    "Choice",
    "External",
    "Objective",
    "Result",
    "RunError",
    "Settings",
    "Term",
    "UserError",
    "Verification",
    "__version__",
    "choose",
    "evaluate",
    "load_adapter",
    "load_result",
    "open_rungs",
    "plan",
    "register_methods",
    "search",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"autopeft.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
