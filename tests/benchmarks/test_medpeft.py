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
    config = {"strata": [stratum], "train": {"optimizer": "sgd", "lr": 0.05}}
    probe = {"strata": [], "train": {"optimizer": "lbfgs", "lr": 0.001}}

    def model(value, size, config):
        auroc = {"value": value, "low": value - 0.02, "high": value + 0.02}
        return {"config": config, "test": {"auroc": auroc}, "trainable_params": size}

    return {
        "run": "a_run",
        "best": model(lora, 75_000, config if strata else probe),
        "baselines": {"full": model(full, 10_000_000, {})},
        "finalists": [
            {"config": probe, "confirm": {"auroc": 0.9}},
            {"config": config, "confirm": {"auroc": 0.75}},
        ],
    }


PREDICTIONS = """path,patient_id,split,model,repeat,label,target,score
a,1,confirm,full,0,x,0,0.9
b,2,confirm,full,0,x,1,0.1
a,1,confirm,full,1,x,0,0.1
b,2,confirm,full,1,x,1,0.9
c,3,confirm,full,1,x,,0.9
a,1,confirm,full,1,y,0,0.1
b,2,confirm,full,1,y,0,0.9
a,1,confirm,full,2,x,0,0.9
b,2,confirm,full,2,x,1,0.1
a,1,test,full,1,x,0,0.9
b,2,test,full,1,x,1,0.1
a,1,confirm,winner,1,x,0,0.9
b,2,confirm,winner,1,x,1,0.1
"""


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
    (tmp_path / "a_run").mkdir()
    (tmp_path / "a_run" / "predictions.csv").write_text(PREDICTIONS)
    lines = printed("--nih", tmp_path, "--chexpert", tmp_path, "--backbone", "a",
                    "--runs-dir", tmp_path)  # fmt: skip
    measured = [line for line in lines if line.startswith("| a |") and "0." in line]
    assert len(measured) == 3
    assert "not tested: the linear probe won, 0.900 (0.880 to 0.920) | 0.800" in measured[0]
    assert "| 0.700 (0.680 to 0.720), r = 8, sgd 0.05 | 0.750 (0.730 to 0.770) |" in measured[1]
    assert "| -0.050 | 0.75 % |" in measured[1]
    # Full fine-tuning has 1 and 0 on confirm by its two seeds.
    for line in measured:
        assert line.endswith("| 0.750 - 0.500 = +0.250, r = 8, sgd 0.05 |")
    assert sum("no disk" in line for line in lines) == 3
    last = next(line for line in lines if line.startswith("3 of 18 rows measured"))
    assert "LoRA is higher on confirm in 3 of them and was tested in 2" in last
    width = lines[0].count("|")
    assert all(line.count("|") == width for line in lines[:20])


def test_what_is_undefined_on_confirm_is_said(tmp_path):
    found = numbers(0.8, 0.7)
    found["finalists"][1]["confirm"] = {}
    (tmp_path / "predictions.csv").write_text(PREDICTIONS)
    assert medpeft.cells(found, tmp_path)[-1] == "undefined"
    found = numbers(0.8, 0.7)
    (tmp_path / "predictions.csv").write_text(PREDICTIONS.replace(",confirm,", ",test,"))
    assert medpeft.cells(found, tmp_path)[-1] == "undefined"


def test_a_wrong_place_is_refused(printed, tmp_path):
    with pytest.raises(SystemExit):
        printed("--nih", tmp_path / "none")
