"""Prints the table of docs/methods.md: every method with its size on the package's own backbone.

python tools/methods_table.py            # print it
python tools/methods_table.py --write    # put it into docs/methods.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from autopeft import catalog
from autopeft.backbones.catalog import OWN
from autopeft.methods import METHODS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
BEGIN, END = "<!-- methods -->", "<!-- /methods -->"


def table() -> str:
    """The table as Markdown."""
    rows = [
        "| method | family | paper | what it does | parameters | mergeable | CNN | cached |",
        "|---|---|---|---|---:|---|---|---|",
    ]
    for line in catalog.lines(catalog.facts_of(OWN), catalog.reference_cnns()):
        number = "-" if line.parameters is None else f"{line.parameters:,}"
        cells = [
            f"`{line.name}`",
            line.family,
            line.paper,
            METHODS[line.name].summary,
            number,
            "yes" if line.mergeable else "no",
            line.cnn,
            "yes" if line.cached else "no",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Prints the table, or writes it between the page's two marks."""
    if "--write" not in sys.argv:
        print(table())
        return
    head, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
