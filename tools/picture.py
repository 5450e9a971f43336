"""Draws a finished run's terminal summary as an SVG, for the README.

python tools/picture.py runs/NAME docs/summary.svg
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from autopeft import summary
from autopeft.result import load_result


def main() -> None:
    """Prints the summary to a recording console and saves what was printed."""
    run, target = sys.argv[1:3]
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True)
    summary.print_summary(load_result(run), console)
    picture = console.export_svg(title="autopeft search")
    # The picture must not load a font from anywhere: the reader's own monospace does.
    Path(target).write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    print(Path(target))


if __name__ == "__main__":
    main()
