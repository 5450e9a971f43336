"""``autopeft verify``: a clean run agrees, and whatever is changed in one is named."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny

import autopeft
from autopeft import chain, secret, verification
from autopeft.comparison import differences
from autopeft.errors import UserError
from autopeft.verification import verify


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run."""
    runs = tmp_path_factory.mktemp("runs")
    return autopeft.search(**tiny(runs, name="first", group=("sex",), min_group=1))


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it, with its ledger, to be changed."""
    shutil.copy(finished.folder.parent / "test_ledger.jsonl", tmp_path)
    return Path(shutil.copytree(finished.folder, tmp_path / "first"))


def wrong(folder):
    """``what: detail`` of everything that differs."""
    found = verify(folder.name, folder.parent)
    assert not found.ok
    return [f"{c.what}: {c.detail}" for c in found.checks if c.word == "differs"]


def named(lines, start):
    return any(line.startswith(start) for line in lines)


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def edit_json(path, change):
    numbers = json.loads(path.read_text())
    change(numbers)
    path.write_text(json.dumps(numbers, indent=1) + "\n")


def edit_score(file, by=0.5):
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays["score"][0, 0] += by
    np.savez_compressed(file, **arrays)


def winner_file(folder, split):
    """The winner's scores of repeat 0 on a split."""
    fingerprint = json.loads((folder / "result.json").read_text())["best"]["fingerprint"]
    (file,) = (folder / "predictions").glob(f"{fingerprint}-0-all-[0-9]-{split}.npz")
    return file


# ---- a clean run --------------------------------------------------------------------------------


def test_a_clean_run_agrees_without_images_and_elsewhere(copy, monkeypatch):
    before = {f: f.read_bytes() for f in copy.rglob("*") if f.is_file()}
    monkeypatch.chdir(copy.parent)  # neither data set, nor cache, nor states
    monkeypatch.setattr(
        "autopeft.backbones.weights.load_backbone", lambda *_: pytest.fail("loads a backbone")
    )
    found = verify("first", copy.parent)
    assert found.ok, "\n".join(c.line for c in found.checks)
    words = {c.what: c.detail for c in found.checks if c.word == "ok"}
    assert words.keys() == {
        "log.jsonl", "files", "study.journal", "predictions", "splits.csv", "protocol.yaml",
        "settings.yaml", "result.json", "predictions.csv", "trials.csv", "task.json",
        "report.html", "AUROCs by scikit-learn", "thresholds by sorting",
        "patients, images and trials by counting", "words by the declared rule",
        "test_ledger.jsonl",
    }  # fmt: skip
    assert int(words["result.json"].split()[0].replace(",", "")) > 300
    assert found.summary == "all that can be recomputed agrees"
    told = [c.what for c in found.checks if c.word == "told"]
    assert told == ["not recomputed"]
    after = {f: f.read_bytes() for f in copy.rglob("*") if f.is_file()}
    assert after == before


def test_the_log_tells_the_story_and_names_nobody(finished):
    events = chain.read(finished.folder / "log.jsonl")
    assert [e["event"] for e in events] == [
        "started", "reference", "chosen", "test_opened", "look", "finished",
    ]  # fmt: skip
    assert events[0]["recorded"] == 0
    assert events[3]["thresholds"] == list(finished.numbers["thresholds"].values())
    text = (finished.folder / "log.jsonl").read_text()
    with (finished.folder / "splits.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert not any(r["path"] in text for r in rows)
    assert set(rows[0]) == {"path", "patient_id", "split", "label:lesion", "group:sex"}
    assert stat.S_IMODE((finished.folder / "splits.csv").stat().st_mode) == 0o600


def test_another_key_does_not_matter(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    assert verify("first", copy.parent).ok
    assert not secret.file().exists()


# ---- changed runs -------------------------------------------------------------------------------


def test_every_changed_file_is_named(copy):
    """Many changes at once: each is named, whatever the others do."""

    def higher(numbers):
        numbers["best"]["test"]["auroc"]["value"] += 0.01

    edit_json(copy / "result.json", higher)
    edit(copy / "log.jsonl", '"trials": 3', '"trials": 4')
    edit(copy / "settings.yaml", "views: 2", "views: 3")
    edit(copy / "report.html", "</title>", "!</title>")
    edit(copy / "trials.csv", "complete", "pruned")
    edit(copy / "best" / "README.md", "\n", "\n\n")
    (copy / "best" / "extra.txt").write_text("x")
    (copy / "baselines" / "linear_probe" / "autopeft.json").unlink()
    rows = list(csv.reader((copy / "predictions.csv").open()))
    rows[1][-1] = "0.5"
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    (copy / "predictions.csv").write_text(stream.getvalue())
    lines = wrong(copy)
    for start in (
        "result.json: changed since log.jsonl took its hash",
        "result.json: best.test.auroc.value: stored",
        "log.jsonl: line 2: does not hold the hash of line 1",
        "settings.yaml: changed since it was written",
        "report.html: changed since it was written",
        "trials.csv: changed since it was written",
        "trials.csv: line",
        "best/README.md: changed",
        "best/extra.txt: was not written by the run",
        "baselines/linear_probe/autopeft.json: is missing",
        "predictions.csv: changed since it was written",
        "predictions.csv: line 2 is not what the stored predictions give",
        "AUROCs by scikit-learn: best.test.auroc.value: stored",
        "patients, images and trials by counting: trials.complete",
    ):
        assert named(lines, start), (start, lines)


def test_one_changed_score_changes_numbers_and_is_named(copy):
    file = winner_file(copy, "test")
    edit_score(file, 3.0)
    lines = wrong(copy)
    assert named(lines, f"predictions/{file.name}: changed since its record")
    assert named(lines, "predictions.csv: line")
    assert named(lines, "result.json: best.test")


def test_a_removed_prediction_is_named(copy):
    file = winner_file(copy, "confirm")
    file.unlink()
    lines = wrong(copy)
    assert named(lines, f"predictions/{file.name}: is missing")
    assert named(lines, f"result.json: cannot be recomputed: RunError: predictions/{file.name}")
    # What needs no rebuild is still checked.
    assert not named(lines, "AUROCs")


@pytest.mark.parametrize(
    "name", ["splits.csv", "task.json", "protocol.yaml", "settings.yaml", "study.journal",
             "predictions.csv", "log.jsonl"],
)  # fmt: skip
def test_a_missing_file_is_one_line(copy, name):
    (copy / name).unlink()
    lines = wrong(copy)
    assert any(name in line for line in lines)
    assert all("\n" not in line for line in lines)


@pytest.mark.slow
def test_swapped_predictions_are_named(copy):
    a, b = winner_file(copy, "test"), next((copy / "predictions").glob("*-1-all-*-test.npz"))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    lines = wrong(copy)
    assert named(lines, f"predictions/{a.name}: changed")
    assert named(lines, f"predictions/{b.name}: changed")


@pytest.mark.slow
def test_a_log_cut_off_at_its_end_is_named(copy):
    lines = (copy / "log.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "log.jsonl").write_bytes(b"".join(lines[:-1]))
    assert named(wrong(copy), "log.jsonl: it has 5 lines")


@pytest.mark.slow
def test_another_protocol_is_named(copy):
    edit(copy / "protocol.yaml", "margin: 0.01", "margin: 0.05")
    lines = wrong(copy)
    for start in ("protocol.yaml: declared was", "settings.yaml: margin is 0.01", "result.json:"):
        assert named(lines, start), lines


@pytest.mark.slow
def test_a_changed_label_is_named(copy):
    text = (copy / "splits.csv").read_text()
    line = next(x for x in text.splitlines() if ",test,1" in x)
    (copy / "splits.csv").write_text(text.replace(line, line.replace(",test,1", ",test,0")))
    lines = wrong(copy)
    assert named(lines, "splits.csv: changed since it was written")
    assert named(lines, "splits.csv: declared were the data")
    assert named(lines, "result.json:")


@pytest.mark.slow
def test_a_changed_journal_is_named_and_a_longer_one_is_told(copy):
    with (copy / "study.journal").open("a") as stream:
        stream.write("\n")
    found = verify("first", copy.parent)
    assert found.ok
    assert [c.what for c in found.checks if c.word == "told"][0] == "study.journal"
    edit(copy / "study.journal", '"adapter_bytes":', '"adapter_bytes":1')
    assert named(wrong(copy), "study.journal: changed since the run ended")


@pytest.mark.slow
def test_a_forged_winner_is_found_by_what_was_chosen_before_test(copy):
    """All hashes of the log made anew: what is recomputed still does not agree."""

    def other(numbers):
        numbers["best"]["fingerprint"] = "0" * 16

    edit_json(copy / "result.json", other)
    lines = wrong(copy)
    assert named(lines, "log.jsonl: what was chosen is not the winner of result.json")


@pytest.mark.slow
def test_a_second_run_on_the_same_patients_says_look_2(finished, tmp_path):
    runs = finished.folder.parent
    second = autopeft.search(**tiny(runs, name="second", group=("sex",), min_group=1, seed=1))
    assert second.numbers["look"] == 2
    patients = second.numbers["patients"]["test"]
    assert second.numbers["looks"] == {
        "number": 2, "patients": patients, "seen": patients, "unknown": 0, "note": "",
    }  # fmt: skip
    assert "look 2" in (second.folder / "report.html").read_text()
    assert verify("second", runs).ok
    # The earlier look taken out of the ledger.
    ledger = runs / "test_ledger.jsonl"
    kept = ledger.read_bytes()
    ledger.write_bytes(b"".join(kept.splitlines(keepends=True)[1:]))
    try:
        lines = wrong(second.folder)
    finally:
        ledger.write_bytes(kept)
    assert named(lines, "test_ledger.jsonl: line 1: 1 line(s) before it were removed")


@pytest.mark.slow
def test_swapped_predictions_stop_a_run_that_goes_on(finished, tmp_path):
    folder = Path(shutil.copytree(finished.folder, tmp_path / "first"))
    (folder / "result.json").unlink()
    file = winner_file_of(folder)
    edit_score(file)
    with pytest.raises(autopeft.RunError, match="changed since the run recorded them"):
        autopeft.search(**tiny(tmp_path, name="first", group=("sex",), min_group=1))


def winner_file_of(folder):
    return sorted((folder / "predictions").glob("*-0-all-*-test.npz"))[0]


# ---- choices before test, and damaged lines -----------------------------------------------------


def test_a_choice_that_a_resumed_run_made_again_before_test_is_no_forgery():
    result = {"protocol": "p", "best": {"fingerprint": "b"}, "contrast": {"baseline": "lora"}}
    start, opened = {"event": "started", "protocol": "p"}, {"event": "test_opened"}
    first, last = ({"event": "chosen", "winner": w, "against": "lora"} for w in "ab")
    story = verification._story
    assert story([start, first, start, last, opened], result) == []
    assert story([start, first, start, last, opened, start, last], result) == []
    other = ["what was chosen is not the winner of result.json against lora"]
    assert story([start, last, first, opened], result) == other
    assert story([start, last, opened, start, first], result) == other
    unasked = ["test was opened before the winner was chosen, or never"]
    assert story([start, opened, last], result) == unasked
    assert unasked[0] in story([start, last], result)


@pytest.mark.parametrize(
    ("facts", "key", "start"),
    [
        ({"event": "finished"}, "", "files: cannot be checked (KeyError"),
        ({"event": "finished", "files": 1}, "", "files: cannot be checked (AttributeError"),
        ({"event": "finished", "files": {}, "numbers": "", "verdict": "", "journal": {}}, "",
         "files: cannot be checked (KeyError"),
        ({"event": "started", "protocol": []}, "", "log.jsonl: cannot be checked (TypeError"),
        ({}, "log", "log.jsonl: cannot be checked (AttributeError"),
        ({}, "looks", "test_ledger.jsonl: cannot be checked (TypeError"),
        ({}, "versions", "result.json: cannot be checked (AttributeError"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_one_line(copy, monkeypatch, facts, key, start):
    monkeypatch.setattr(verification, "recomputed", lambda *_: [])
    monkeypatch.setattr(verification, "_recounts", lambda *_: [])
    if facts:
        chain.append(copy / "log.jsonl", facts)
    if key:
        edit_json(copy / "result.json", lambda numbers: numbers.update({key: [1]}))
    lines = wrong(copy)
    assert named(lines, start), lines
    assert all("\n" not in line for line in lines)


# ---- what cannot be verified --------------------------------------------------------------------


def test_no_run_and_an_unfinished_one_are_one_line(copy, tmp_path):
    with pytest.raises(UserError, match="is no run"):
        verify("gone", tmp_path)
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match="the run is not finished"):
        verify("first", copy.parent)


def test_a_result_without_hashes_is_one_line(copy):
    edit_json(copy / "result.json", lambda numbers: numbers.pop("log"))
    with pytest.raises(UserError, match="recorded no hashes"):
        verify("first", copy.parent)


def test_a_run_without_its_ledger_is_told(copy):
    (copy.parent / "test_ledger.jsonl").unlink()
    found = verify("first", copy.parent)
    assert found.ok
    assert ("told", "test_ledger.jsonl") in [(c.word, c.what) for c in found.checks]


def test_the_command_prints_lines_and_exits_with_1(copy, capsys, monkeypatch):
    from autopeft import cli

    monkeypatch.setattr(
        "sys.argv", ["autopeft", "verify", "first", "--runs-dir", str(copy.parent)]
    )
    cli.main()
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "all that can be recomputed agrees"
    assert any(line.startswith("ok       result.json: ") for line in out)
    os.truncate(copy / "report.html", 100)
    monkeypatch.setattr("sys.argv", [*os.sys.argv, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert {c["word"] for c in found["checks"]} == {"ok", "differs", "told"}


def test_differences_say_where():
    a = {"x": [1, {"y": 0.5}], "z": None, "w": True, "same": 1.0}
    b = {"x": [1, {"y": 0.5 + 1e-6}], "z": 0.0, "w": 1, "same": 1.0 + 1e-13, "new": 3}
    assert [d[0] for d in differences(a, b)] == ["x[1].y", "z", "w", "new"]
    assert list(differences({"x": [1]}, {"x": [1, 2]})) == [("x", [1], [1, 2])]
