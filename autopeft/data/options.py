"""`--data-option key=value`: typed, with the nearest name where a key is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.errors import UserError, nearest


def read_options(
    given: Mapping[str, str] | None,
    defaults: Mapping[str, Any],
    dataset: str,
    choices: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, Any]:
    """The options of a data set: its defaults, overlaid by what the user gave.

    Args:
        given: what the user wrote, as text.
        defaults: name -> default; the default's type is the option's type.
        dataset: name of the data set, for the message.
        choices: name -> allowed values, where only some are.

    Raises:
        UserError: an unknown key, a value of the wrong type, or one that is not a choice.
    """
    values = dict(defaults)
    for key, text in (given or {}).items():
        name = key.replace("-", "_")
        where = f"--data-option {key}={text}"
        if name not in defaults:
            known = nearest(name, defaults) if defaults else f"{dataset} has no options."
            raise UserError(f"{dataset} has no option {key!r}", where, known)
        values[name] = _typed(text, defaults[name], where)
        allowed = (choices or {}).get(name)
        if allowed and values[name] not in allowed:
            raise UserError(f"{text!r} is not possible", where, nearest(text, allowed))
    return values


def _typed(text: str, default: Any, where: str) -> Any:
    kind = type(default)
    try:
        return kind(str(text).strip())
    except ValueError:
        words = {int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{text!r} is not {words}", where) from None
