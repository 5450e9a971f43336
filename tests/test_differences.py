"""docs/differences.md names tests: they exist, and no line is without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "differences.md"
NUMBERED = re.compile(r"^(\d+)\. ", re.MULTILINE)
TEST = re.compile(r"^ +- `(tests/\S+\.py)::(test_\w+)`$", re.MULTILINE)


def entries():
    """Number of each line -> its text."""
    pieces = NUMBERED.split(PAGE.read_text())
    return dict(zip(map(int, pieces[1::2]), pieces[2::2], strict=True))


def functions(file):
    """Names of the tests that a file defines."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_line_is_there_and_has_a_test():
    assert list(entries()) == list(range(1, 32))
    assert [number for number, text in entries().items() if not TEST.search(text)] == []


def test_every_named_test_exists():
    named = [pair for text in entries().values() for pair in TEST.findall(text)]
    assert len(named) == PAGE.read_text().count("::test_")
    missing = [f"{file}::{name}" for file, name in named if name not in functions(file)]
    assert missing == []
