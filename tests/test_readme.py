"""The documents say what is on the disk."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_file_map_is_what_is_on_the_disk():
    written = (ROOT / "README.md").read_text().split("<!-- file map -->\n")[1]
    expected = tool("file_map").file_map()
    assert written.split("\n<!-- /file map -->")[0] == expected, (
        "run `python tools/file_map.py --write`"
    )


def test_table_of_methods_is_that_of_the_code():
    page = (ROOT / "docs" / "methods.md").read_text()
    written = page.split("<!-- methods -->\n")[1].split("\n<!-- /methods -->")[0]
    assert written == tool("methods_table").table(), "run `python tools/methods_table.py --write`"


def test_every_file_says_what_it_is():
    for line in tool("file_map").file_map().splitlines()[1:-1]:
        assert len(line.split(maxsplit=1)) == 2, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_ci_runs_the_readme_test_command_word_for_word():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    block = readme.split("<!-- test -->")[1].split("<!-- /test -->")[0]
    assert len([line for line in block.splitlines() if "pytest" in line]) == 1
    assert "<!-- test -->" in ci
    assert 'bash -c "$line"' in ci


def test_documents_claim_nothing_clinical():
    for document in DOCUMENTS:
        text = document.read_text().lower()
        for word in ("clinically validated", "unbiased", "is safe", "approved"):
            assert word not in text, (document.name, word)
