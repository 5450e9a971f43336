"""The terminal summary: readable at 80 columns, whole on a pipe, names are text."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from autopeft.result import Result
from autopeft.summary import print_summary

REPORT = Path(__file__).parent / "report"


def load(name="binary"):
    return json.loads((REPORT / f"{name}.json").read_text())


def rename(numbers, old, new):
    return json.loads(json.dumps(numbers).replace(old, json.dumps(new)[1:-1]))


def printed(numbers, width=80, terminal=True):
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=terminal, color_system=None, highlight=False
    )
    print_summary(Result(Path("runs/x"), numbers), console)
    return stream.getvalue()


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", ["binary", "multilabel"])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(name, width):
    numbers = load(name)
    out = printed(numbers, width)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    for model in (numbers["best"], *numbers["baselines"].values()):
        value = model["test"]["auroc"]
        said = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
        assert any(said in line for line in out.splitlines())
    assert "lora_r8_readout " in out  # the longest name is whole, too
    assert "…" not in out


def test_verdict_comes_first_and_everything_is_told():
    numbers = load()
    out = flat(printed(numbers))
    heads = ["RESEARCH USE", "VERDICT", "WINNER", "HONESTY", "UNKNOWN", "NOTES"]
    places = [out.index(head) for head in heads]
    assert places == sorted(places)
    assert numbers["verdict"] in out
    assert "look 1" in out
    assert "race=Asian * 12/3 n/a (12+/3-)" in out
    assert "does not count" in out
    assert "EXTERNAL valid_radiologist" in flat(printed(load("multilabel")))


def test_a_pipe_gets_whole_lines(capsys):
    numbers = load()
    print_summary(Result(Path("runs/x"), numbers))
    lines = capsys.readouterr().out.splitlines()
    assert f"VERDICT  {numbers['verdict']}" in lines
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", "[bold]x[/bold]", "[/]", "[link"])
def test_a_label_is_text(label):
    out = printed(rename(load("multilabel"), "Pleural Effusion", label))
    assert label in flat(out)
    numbers = load()
    numbers["notes"], numbers["thresholds"] = [f"not scored: {label}"], {label: 0.1, "b": None}
    for row in numbers["groups"]:
        row["label"] = label
    assert f"not scored: {label}" in flat(printed(numbers))


def test_a_label_does_not_steer_the_terminal():
    out = printed(rename(load("multilabel"), "Pleural Effusion", "a\x1b[2Jb"))
    assert "\x1b[2J" not in out
    assert "a?[2Jb" in out


def test_missing_intervals():
    numbers = load()
    for model in (numbers["best"], *numbers["baselines"].values()):
        model["test"], model["confirm"], model["seeds"]["test"] = {}, {}, {}
    numbers["contrast"] |= {"adapter": None, "recipe": None, "others": {}}
    numbers["accuracy_kept"]["difference"] = None
    numbers["optimism"].pop("value")
    for row in numbers["groups"]:
        row |= {"auroc": None, "interval": None, "missed": None, "text": "n/a (1+/1-)"}
    out = printed(numbers)
    assert re.search(r"lora_r8 +1,180,417 +n/a +n/a", out)
    assert "None" not in out


def test_what_is_too_long_for_a_screen_is_in_the_page():
    numbers = load()
    numbers["notes"] = [f"note {i}" for i in range(20)]
    rows, numbers["groups"], numbers["thresholds"] = numbers["groups"], [], {}
    for label in "abcd":
        numbers["thresholds"][label] = 0.1
        numbers["groups"] += [{**row, "label": label, "interval": None} for row in rows]
    out = flat(printed(numbers))
    assert "note 4 15 more in report.html" in out
    assert "the 12 lowest of 36 rows; all are in report.html" in out
    lowest = min(r["auroc"] for r in rows if r["auroc"] and r["model"] == "winner")
    assert f"{lowest:.3f}" in out


def test_long_names_wrap_and_numbers_stay_whole():
    out = printed(rename(load(), "race=Black", "race=Black or African American"))
    row = next(r for r in load()["groups"] if r["group"] == "race=Black")["interval"]
    said = f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    assert any(said in line for line in out.splitlines())
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
