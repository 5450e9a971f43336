import hashlib
import sys
from pathlib import Path

import pytest

from autopeft import plugins
from autopeft.errors import UserError


def fails(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_builtins_are_found_by_name():
    assert {"auroc", "fairness"} <= set(plugins.names("objectives"))
    found = plugins.find("objectives", "fairness")
    assert found.name == "fairness"
    assert found.text == found.path.read_text()
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()


def test_an_installed_package_holds_its_plugins_inside(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "autopeft"
    (package / "objectives").mkdir(parents=True)
    (package / "objectives" / "mine.py").write_text("x = 1\n")
    (package / "objectives" / "__init__.py").write_text("")
    monkeypatch.setattr(plugins, "__file__", str(package / "plugins.py"))
    assert plugins.names("objectives") == ("mine",)
    assert plugins.find("objectives", "mine").path == package / "objectives" / "mine.py"
    assert plugins.folder("search_spaces") == package.parent / "search_spaces"


def test_a_file_is_found_by_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "space.yaml").write_text("x: 1\n")
    monkeypatch.chdir(tmp_path)
    for path in ("./mine.py", "mine.py", str(tmp_path / "mine.py")):
        assert plugins.find("objectives", path).text == "x = 1\n"
    assert plugins.find("search_spaces", "space.yaml").name == "space"


def test_a_name_is_a_builtin_even_beside_a_file_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "auroc").write_text("not a plug-in")
    monkeypatch.chdir(tmp_path)
    assert plugins.find("objectives", "auroc").path.parent == plugins.folder("objectives")


def test_what_cannot_be_found_is_said_in_one_line(tmp_path):
    fails(lambda: plugins.find("objectives", "fairnes"), "--objective", '"fairness"', "auroc")
    fails(lambda: plugins.find("objectives", ""), "--objective")
    fails(lambda: plugins.find("objectives", "./none.py"), "none.py", "No such file")
    fails(lambda: plugins.find("objectives", "./mine.yaml"), ".py")
    fails(lambda: plugins.find("search_spaces", "./mine.py"), ".yaml")
    (tmp_path / "folder.py").mkdir()
    fails(lambda: plugins.find("objectives", str(tmp_path / "folder.py")), "folder.py")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    fails(lambda: plugins.find("objectives", str(tmp_path / "latin.py")), "latin.py", "UTF-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = (\n", ("SyntaxError", "line 2")),
        ("import os\n\nx = 1 / 0\n", ("ZeroDivisionError", "line 3")),
        ("def f():\n    raise KeyError('a')\n\n\nf()\n", ("KeyError", "line 2")),
        ("import nothing_of_that_name\n", ("ModuleNotFoundError", "line 1")),
        ("raise SystemExit(3)\n", ("SystemExit", "line 1")),
        ("x = 1\nraise ValueError('two\\nlines')\n", ("two lines", "line 2")),
        ("x = '\0'\n", ("null bytes",)),
    ],
)
def test_a_broken_file_is_one_line_with_file_and_line(tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text)
    before = set(sys.modules)
    fails(lambda: plugins.execute(plugins.find("objectives", str(path))), "mine.py", *words)
    assert not [m for m in set(sys.modules) - before if "plugin" in m]


def test_execution_hides_no_module_and_keeps_dataclasses_working(tmp_path):
    path = tmp_path / "json.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n\n\n"
        "@dataclass(frozen=True)\nclass A:\n    x: int = 3\n"
    )
    module = plugins.execute(plugins.find("objectives", str(path)))
    assert module.A().x == 3
    assert Path(module.__file__) == path
    import json

    assert json.loads("1") == 1


def test_looking_up_executes_nothing(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\n")
    plugins.find("objectives", str(path))
    assert not (tmp_path / "trace").exists()
