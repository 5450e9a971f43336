"""Draws the beginning and the end of a finished run's terminal summary as an SVG, for the README.

python tools/picture.py runs/NAME docs/summary.svg
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from autopeft import summary
from autopeft.result import load_result


def main() -> None:
    """Prints the summary to a recording console and saves what matters most of it."""
    run, target = sys.argv[1:3]
    console = _console()
    summary.print_summary(load_result(run), console)
    lines = console.export_text(styles=True).splitlines()
    plain = [Text.from_ansi(line).plain for line in lines]
    groups = next((i for i, line in enumerate(plain) if line.startswith("group ")), len(lines))
    honesty = next(i for i, line in enumerate(plain) if line.startswith("HONESTY"))
    end = next(i for i, line in enumerate(plain) if line.startswith("UNKNOWN"))
    shown = _console()
    for line in (*lines[:groups], "[...]", "", *lines[honesty:end]):
        shown.print(Text.from_ansi(line))
    picture = shown.export_svg(title="autopeft search")
    # The picture must not load a font from anywhere: the reader's own monospace does.
    Path(target).write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    print(Path(target))


def _console() -> Console:
    return Console(record=True, width=104, file=io.StringIO(), force_terminal=True)


if __name__ == "__main__":
    main()
