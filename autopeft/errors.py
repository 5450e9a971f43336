"""What a user can do wrong, said in one line: what, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The CLI prints it as one line and exits with code 2, without a traceback.

    Args:
        what: what is wrong, in plain words with the offending value.
        where: the file, flag or field that holds it.
        fix: what to do about it.
    """

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}. {fix}" if fix else text)


class RunError(Exception):
    """The run failed for a reason that is not bad input (exit code 1), said in one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that offers the nearest known name and lists all of them.

    Args:
        name: what the user wrote.
        known: the names that exist.

    Returns:
        ``'Did you mean "lora"? Known: bitfit, lora'`` or only the list.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Known: {', '.join(names)}"
