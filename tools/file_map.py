"""Prints the README's file map: every file of the package with its first docstring line.

python tools/file_map.py            # print it
python tools/file_map.py --write    # put it into README.md
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- file map -->", "<!-- /file map -->"
FOLDERS = ("autopeft", "objectives", "search_spaces", "benchmarks", "tools", "examples")


def first_line(path: Path) -> str:
    """What a file says of itself."""
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        return text.strip().split("\n")[0]
    words = [line.lstrip("# ").strip() for line in path.read_text().splitlines()[:4]]
    return next((w for w in words if w and not w.startswith("autopeft search")), "")


def file_map() -> str:
    """The map as Markdown code."""
    lines = ["```"]
    for folder in FOLDERS:
        files = sorted((ROOT / folder).rglob("*"), key=lambda p: (len(p.parts), p))
        for path in files:
            named = path.suffix in (".py", ".yaml") and path.name != "__init__.py"
            if named and "__pycache__" not in path.parts:
                lines.append(f"{path.relative_to(ROOT)!s:38} {first_line(path)}".rstrip())
    return "\n".join([*lines, "```"])


def main() -> None:
    """Prints the map, or writes it between the README's two marks."""
    if "--write" not in sys.argv:
        print(file_map())
        return
    readme = ROOT / "README.md"
    head, rest = readme.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    readme.write_text(f"{head}{BEGIN}\n{file_map()}\n{END}{tail}")


if __name__ == "__main__":
    main()
