"""Uncertain labels take part in no number, and the verdict says where they would decide it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny_run import tiny

import autopeft
from autopeft import prepare, words
from autopeft.answer import Answer
from autopeft.bench import Audience, Model
from autopeft.data import load_task
from autopeft.data.task import Task
from autopeft.evaluation import Predictions
from autopeft.job import Rows
from autopeft.metrics.classification import auroc
from autopeft.readings import readings_of, with_readings
from autopeft.verdict import declared_word

N = 240  # test patients, half of them ill; then some whose only label is uncertain


def answer(unsure_score, opponent_score, alone=60, kept=True, counted=None):
    """Winner and opponent alike on certain labels; on uncertain ones their scores are given."""
    rng = np.random.default_rng(0)
    ill = np.arange(N) % 2
    score = 1.2 * ill + rng.normal(size=N)
    near = score + 0.05 * rng.normal(size=N)
    n = N + alone
    split = np.array(["test"] * N + ["uncertain"] * alone + ["train", "train"])
    label = np.concatenate([ill, np.full(alone, np.nan), [0, 1]]).astype(np.float32)
    names = np.array([f"{i:04}" for i in range(n + 2)])
    groups = {"sex": np.where(np.arange(n + 2) % 4 < 2, "sex=F", "sex=M")}
    rows = Rows(names, np.arange(n + 2), names, label[:, None], groups)
    unsure = (split == "uncertain")[:, None]
    task = Task(
        "t", "binary", "patient", ("ill",), Path(), ("sex",), (), (), rows, split,
        unsure if kept else None,
    )  # fmt: skip
    task.open_test()
    scored = {}
    for name, own, rest in (("winner", score, unsure_score), ("other", near, opponent_score)):
        for part, z in (("test", own), ("uncertain", np.full(alone, rest) + score[:alone] / 50)):
            part_rows = task.rows(part)
            scored[name, 0, part] = Predictions(
                z[:, None], part_rows.label, part_rows.patient, np.zeros(len(z), int),
                part_rows.groups, ("ill",), "binary", part,
            )  # fmt: skip
    audience = Audience(Path(), ("ill",), "binary", {}, counted or {}, 0.01, "", 1)
    given = dict.fromkeys(f.name for f in dataclasses.fields(Answer))
    given |= {
        "task": task, "scored": scored, "settings": SimpleNamespace(margin=0.01),
        "bench": SimpleNamespace(audience=audience),
        "won": SimpleNamespace(opponent=Model("other", None)),
    }  # fmt: skip
    return Answer(**given)


def test_nothing_uncertain_is_nothing_to_say():
    found = readings_of(answer(0, 0, kept=False), "auroc", "not worse")
    assert found == {}
    assert words.reading_lines({"readings": found}) == []
    assert with_readings("Better than lora.", found) == "Better than lora."


def test_a_word_that_hangs_on_uncertain_labels_is_said():
    """The winner scores them low, the opponent high: as 0 it is better, as 1 it is worse."""
    asked = answer(-4.0, 4.0)
    _, _, word = declared_word(asked, "auroc")
    found = readings_of(asked, "auroc", word)
    assert word == "not worse"
    assert (found["as_zero"]["word"], found["as_one"]["word"]) == ("better", "worse")
    assert found["flips"]
    assert found["labels"] == 60
    told = with_readings("Not worse than other in AUROC.", found)
    assert told == (
        'Not worse than other in AUROC; it hangs on uncertain labels: read as 0 "better" and as '
        '1 "worse".'
    )
    assert "the verdict hangs on them" in words.reading_lines({"readings": found})[0]


def test_a_word_that_stays_is_said_to_stay():
    asked = answer(0.5, 0.5)
    found = readings_of(asked, "auroc", declared_word(asked, "auroc")[2])
    assert not found["flips"]
    assert with_readings("Not worse.", found) == "Not worse."
    assert "does not hang on them" in words.reading_lines({"readings": found})[0]


def test_the_values_are_those_of_the_filled_labels():
    asked = answer(-4.0, 4.0)
    found = readings_of(asked, "auroc", "not worse")
    test, rest = (asked.scored["winner", 0, s] for s in ("test", "uncertain"))
    score = np.concatenate([test.score[:, 0], rest.score[:, 0]])
    for name, value in (("as_zero", 0), ("as_one", 1)):
        y = np.concatenate([test.target[:, 0], np.full(60, value)])
        pairs = score[y == 1][:, None] - score[y == 0][None]
        expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
        assert found[name]["winner"] == pytest.approx(expected)
    assert auroc(asked.scored["winner", 0, "test"]) == auroc(test)  # nothing was filled in place


def test_groups_that_would_be_levelled_down_and_accuracy_are_read_too():
    """The word of the worst group is given as it comes out, so that only the others change."""
    asked = answer(-4.0, 4.0, counted={"sex": ("sex=F", "sex=M")})
    plain = readings_of(asked, "auroc", "worse")
    assert plain["as_zero"]["levelled_down"] == []
    assert plain["as_one"]["levelled_down"] == ["sex=F", "sex=M"]
    assert plain["as_one"]["changes"] == ["levelled_down"]
    assert plain["as_one"]["accuracy"]["difference"] == plain["as_one"]["difference"]
    assert plain["as_zero"]["accuracy"]["kept"]
    assert not plain["as_one"]["accuracy"]["kept"]
    assert "worse, levelled down sex=F, sex=M: the" in words.reading_lines({"readings": plain})[0]
    known = readings_of(asked, "auroc", "worse", ["sex=F", "sex=M"])
    assert known["as_one"]["changes"] == []
    found = readings_of(asked, "average_precision", "worse")
    assert "accuracy" in found["as_one"]["changes"]
    assert "accuracy" not in found["as_zero"]["changes"]
    assert found["flips"]
    told = with_readings("Worse.", found)
    assert 'as 1 "worse", levelled down sex=F, sex=M, AUROC on test not shown to be kept.' in told


def test_rates_by_group_and_label():
    found = readings_of(answer(0.5, 0.5), "auroc", "not worse")
    rates = {row["group"]: row["uncertain"] for row in found["rates"]}
    assert rates["all"] == pytest.approx(60 / 300)
    assert set(rates) == {"all", "sex=F", "sex=M"}
    lines = words.reading_lines({"readings": found})
    assert "uncertain labels, all test images: 20.0%" in lines


def test_they_are_read_only_once_test_is_open():
    asked = answer(0, 0)
    task = asked.task
    closed = Task(
        "t", "binary", "patient", ("ill",), Path(), ("sex",), (), (),
        dataclasses.replace(task._all, label=np.zeros((len(task.paths), 1), np.float32)),
        task._split, (task._split == "uncertain")[:, None],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="sealed"):
        readings_of(dataclasses.replace(asked, task=closed), "auroc", "better")


@pytest.mark.slow
def test_a_run_scores_uncertain_images_and_says_what_they_would_change(tmp_path, monkeypatch):
    """A quarter of the test patients' images lose their label to doubt; nothing else moves."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    films = {"patients": "120", "size": "32", "contrast": "2", "images_per_patient": "2"}

    def doubted(*asked):
        task = load_task(*asked)
        task.open_test()
        label = np.full((len(task.paths), 1), np.nan, np.float32)
        for name in ("train", "search", "confirm", "test"):
            rows = task.rows(name)
            label[rows.index] = rows.label
        split = task._split.astype("U32")
        lost = np.flatnonzero(split == "test")[::4]
        split[lost], label[lost] = "uncertain", np.nan
        rows = dataclasses.replace(task._all, label=label)
        fields = (task.name, task.kind, task.unit, task.classes, task.root, task.attributes)
        return Task(*fields, (), (), rows, split, (split == "uncertain")[:, None])

    monkeypatch.setattr(prepare, "load_task", doubted)
    result = autopeft.search(
        **tiny(tmp_path, name="doubt", data_option=films, group=("sex",), inner="holdout")
    )
    found = result.numbers["readings"]
    assert found["labels"] == result.numbers["images"]["uncertain"] > 3
    assert found["as_zero"]["winner"] != found["as_one"]["winner"]
    assert found["flips"] == any(
        found[r]["word"] != result.numbers["contrast"]["word"] for r in ("as_zero", "as_one")
    )
    page = (result.folder / "report.html").read_text()
    assert f"{found['labels']} uncertain test labels take no part in any number" in page
    assert "Uncertain labels" in page
    table = pd.read_csv(result.folder / "predictions.csv")
    waiting = table[table["split"] == "uncertain"]
    assert set(waiting["model"]) == {"winner", result.numbers["contrast"]["baseline"]}
    assert waiting["target"].isna().all()
    assert words.externals(result.numbers) == []
