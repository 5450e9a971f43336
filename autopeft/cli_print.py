"""What is printed: tables for people, or JSON."""

from __future__ import annotations

import json
import os
from typing import Any


def table(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows of equal keys, as a table for people or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*(rows[0] if rows else ()), box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*(Text(_cell(value)) for value in row.values()))  # a bracket is no markup
    Console(width=None if os.isatty(1) else 160).print(shown)


def _cell(value: Any) -> str:
    """A value for people."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
