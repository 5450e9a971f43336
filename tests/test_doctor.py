"""``autopeft doctor`` looks, decides as a search does, says what to mend, and never fails."""

import json
import shutil
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from autopeft import cli, doctor
from autopeft.doctor import examine
from autopeft.training import allocator, fast, memory, precision


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(precision, "measure", lambda *a: {"fp32": 0.009, "bf16": 0.003})


def found(tmp_path):
    return {line.what: line for line in examine(tmp_path / "not" / "there")}


def test_everything_is_named(tmp_path):
    lines = found(tmp_path)
    for name in ("torch", "timm", "peft", "ray", "optuna", "autopeft"):
        assert lines[name].found == metadata.version(name)
        assert not lines[name].todo
    assert int(lines["cores"].found) >= 1
    assert str(tmp_path) in lines["disk free"].found
    assert not (tmp_path / "not").exists()
    assert {"memory free", "device", "mallopt", "large pages", "C++ compiler"} <= set(lines)


def test_the_decision_is_that_of_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "find_device", lambda: "cpu")
    lines = found(tmp_path)
    assert lines["precision"].found == "bf16 (one product: fp32 9.00 ms, bf16 3.00 ms)"
    assert lines["attention"].found.startswith(f"explicit up to {fast.FEW_TOKENS} ")
    monkeypatch.setattr(precision, "measure", lambda *a: {"fp32": 0.003, "bf16": 0.003})
    lines = found(tmp_path)
    assert lines["precision"].found.startswith("fp32 ")
    assert "1.5 times" in lines["precision"].todo
    assert lines["attention"].found == "torch's fused"


def test_what_needs_attention_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    monkeypatch.setattr(allocator, "find_mallopt", lambda: None)
    monkeypatch.setattr(allocator, "large_pages", lambda: "never")
    monkeypatch.setattr(precision, "find_device", lambda: "cuda")
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda n: "" if n in ("peft", "openpyxl") else real(n))
    lines = found(tmp_path)
    todo = {name for name, line in lines.items() if line.todo}
    mend = {"memory free", "disk free", "mallopt", "large pages", "device", "peft"}
    assert mend <= todo
    assert "autopeft[xlsx]" in lines["extra xlsx"].todo
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert found(tmp_path)["memory free"].found == "unknown"


def test_the_command_prints_a_table_or_json(monkeypatch, capsys, tmp_path):
    for flags in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["autopeft", "doctor", *flags])
        monkeypatch.chdir(tmp_path)
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code  # noqa: PT017 - some versions of Typer exit, others return
        out, err = capsys.readouterr()
        assert err == ""
        if flags:
            rows = json.loads(out)
            assert {"what": "python", "todo": ""}.items() <= rows[1].items()
        else:
            assert out.splitlines()[0].split() == ["what", "found", "todo"]
    assert list(tmp_path.iterdir()) == []


def test_large_pages_are_read_as_the_kernel_says(tmp_path):
    file = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    file.parent.mkdir(parents=True)
    file.write_text("always [madvise] never\n")
    assert allocator.large_pages(tmp_path) == "madvise"
    assert allocator.large_pages(tmp_path / "elsewhere") == ""
