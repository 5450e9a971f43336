"""MED-PEFT's table: 18 rows whatever is given, and plain words about what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autopeft import cli
from autopeft.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import medpeft  # noqa: E402


@pytest.fixture
def printed(monkeypatch, capsys):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["medpeft.py", *map(str, args)])
        medpeft.main()
        return capsys.readouterr().out.splitlines()

    return call


def numbers(lora, full, strata=True):
    stratum = {"method": "lora_qv", "options": {"r": 8}}
    config = {"strata": [stratum] if strata else [], "train": {"optimizer": "sgd", "lr": 0.05}}

    def model(value, size):
        auroc = {"value": value, "low": value - 0.02, "high": value + 0.02}
        return {"config": config, "test": {"auroc": auroc}, "trainable_params": size}

    return {"best": model(lora, 75_000), "baselines": {"full": model(full, 10_000_000)}}


def test_without_data_there_are_18_rows_and_what_is_missing(printed):
    lines = printed()
    assert sum(line.startswith("| MRM |") for line in lines) == 9
    assert sum(line.startswith("| CXR-MAE |") for line in lines) == 9
    missing = [line for line in lines if line.startswith("Missing ")]
    for words in ("--nih", "--chexpert", "--rsna", "--backbone for MRM", "--backbone for CXR-MAE"):
        assert any(words in line for line in missing), words
    assert all("licence" in line or "agree" in line or "rules" in line or "restriction" in line
               for line in missing)  # fmt: skip


def test_commands_are_those_of_the_search(printed, monkeypatch, tmp_path):
    (tmp_path / "rsna.csv").touch()
    lines = printed("--print", "--nih", tmp_path, "--rsna", tmp_path / "rsna.csv",
                    "--backbone", "vit_tiny_patch16_224:w.safetensors")  # fmt: skip
    commands = [line.split()[1:] for line in lines if line.startswith("autopeft search")]
    assert len(commands) == 6
    asked = []
    monkeypatch.setattr("autopeft.driver.run", lambda s: asked.append(s) or _done())
    monkeypatch.setattr("autopeft.summary.print_summary", lambda result: None)
    for words in commands:
        monkeypatch.setattr(sys, "argv", ["autopeft", *words])
        cli.main()
    assert [s.label_fraction for s in asked] == [0.01, 0.1, 1.0] * 2
    assert {s.dataset for s in asked} == {"nih", str(tmp_path / "rsna.csv")}
    assert all(isinstance(s, Settings) and s.space == "medpeft" for s in asked)
    assert {(s.backbone, s.weights) for s in asked} == {("vit_tiny_patch16_224", "w.safetensors")}
    assert {s.batch_size for s in asked} == {64}
    assert len({s.run_name for s in asked}) == 6


def _done():
    return type("Result", (), {"numbers": {}})


def test_rows_are_filled_and_counted(printed, monkeypatch, tmp_path):
    answers = [numbers(0.80, 0.78), numbers(0.70, 0.75), numbers(0.9, 0.8, strata=False)]
    monkeypatch.setattr(medpeft, "run", lambda words: answers.pop() if answers else "no disk")
    lines = printed("--nih", tmp_path, "--chexpert", tmp_path, "--backbone", "a")
    measured = [line for line in lines if line.startswith("| a |") and "0." in line]
    assert len(measured) == 3
    assert "linear probe (no LoRA was better)" in measured[0]
    assert "| 0.700 (0.680 to 0.720) | 0.750 (0.730 to 0.770) | -0.050 | 0.75 % |" in measured[1]
    assert "r = 8, sgd 0.05" in measured[2]
    assert sum("no disk" in line for line in lines) == 3
    assert any(line.startswith("3 of 18 rows measured; LoRA is higher in 1") for line in lines)


def test_a_wrong_place_is_refused(printed, tmp_path):
    with pytest.raises(SystemExit):
        printed("--nih", tmp_path / "none")
