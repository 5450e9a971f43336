"""Another objective on a finished run's stored predictions."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tiny_run import tiny

import autopeft
from autopeft.data.task import Task
from autopeft.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run with groups, chosen by AUROC."""
    runs = tmp_path_factory.mktemp("runs")
    many = {"patients": "440", "size": "32", "contrast": "2"}
    return autopeft.search(
        **tiny(
            runs, name="first", group=("sex",), min_group=10, epochs=1, views=1, data_option=many
        )
    )


def hashes(folder):
    """Every file of a run but those of `choose`."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "choices" not in p.parts
    }


def test_the_run_s_own_rule_picks_what_search_picked(finished):
    before = hashes(finished.folder)
    found = autopeft.choose("first", "auroc", runs_dir=finished.folder.parent)
    assert hashes(finished.folder) == before
    first = finished.numbers["finalists"][0]
    assert found.numbers["candidate"]["fingerprint"] == first["fingerprint"]
    assert found.config == first["config"]
    assert found.numbers["reference"]["auroc"] == finished.numbers["reference"]["auroc"]
    stored = finished.numbers["replay"]
    for key in ("corrected", "pick", "families", "resamples", "picks"):
        assert found.numbers["replay"][key] == stored[key]
    assert [f["number"] for f in found.numbers["front"]] == [
        f["number"] for f in finished.numbers["front"]
    ]


def test_it_is_marked_and_written(finished):
    found = autopeft.choose("first", "worst_group", runs_dir=finished.folder.parent)
    assert found.file == finished.folder / "choices" / "worst_group.json"
    written = json.loads(found.file.read_text())
    assert written == found.numbers
    assert written["post_hoc"].startswith("post hoc: chosen by this rule after the run")
    assert "verdict" not in written
    assert found.lines[0] == written["post_hoc"]
    assert written["groups"] == {"sex": ["sex=F", "sex=M"]}
    assert "worst_group_auroc" in written["search"]
    assert set(written["replay"]["corrected"]) <= {"auroc", "worst_group_auroc"}
    patients = {line.split(",")[1] for line in (finished.folder / "splits.csv").open()}
    assert not any(f'"{p}"' in found.file.read_text() for p in patients)


def test_groups_can_be_named(finished):
    found = autopeft.choose("first", "fairness", ["sex"], finished.folder.parent)
    assert found.file.name == "fairness-sex.json"
    whole = autopeft.choose("first", "fairness", (), finished.folder.parent)
    assert found.numbers["candidate"] == whole.numbers["candidate"]


def test_test_patients_stay_sealed_and_nothing_is_trained(finished, monkeypatch):
    monkeypatch.setattr(Task, "open_test", lambda self: pytest.fail("opened"))
    monkeypatch.setattr(
        "autopeft.rebuild.Nobody.submit", lambda *_: pytest.fail("something was to be trained")
    )
    autopeft.choose("first", "efficiency", runs_dir=finished.folder.parent)


@pytest.mark.parametrize(
    ("name", "objective", "group", "said"),
    [
        ("nobody", "auroc", (), "is no run"),
        ("first", "aurok", (), "there is no objective 'aurok'"),
        ("first", "memorization", (), "this run cut no probe patients"),
        ("first", "fairness", ["age"], "the run has no group 'age'"),
        ("first", "fairness", ["sex=F"], "the run has no group 'sex=F'"),
        ("first", "calibration", (), "none of the trials has a value for each of its terms"),
    ],
)
def test_what_cannot_be_had_is_refused(finished, name, objective, group, said):
    before = hashes(finished.folder)
    with pytest.raises(UserError, match=said):
        autopeft.choose(name, objective, group, finished.folder.parent)
    assert hashes(finished.folder) == before


def test_groups_need_groups(finished, tmp_path):
    folder = Path(shutil.copytree(finished.folder, tmp_path / "first"))
    saved = json.loads((folder / "task.json").read_text())
    saved["task"]["attributes"] = []
    (folder / "task.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="compares groups, and none counts in this run"):
        autopeft.choose("first", "fairness", runs_dir=tmp_path)


def test_a_user_s_own_objective(finished, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        '"""Fewest parameters."""\n'
        "from autopeft.objective import Objective, Rule, Term\n"
        "def small(e):\n    return -float(e.cost.trainable_params)\n"
        'TERM = Term(small, "maximize")\n'
        'OBJECTIVE = Objective(terms=(TERM,), choose=Rule("small", (TERM,)))\n'
    )
    found = autopeft.choose("first", str(mine), runs_dir=finished.folder.parent)
    assert found.file.name == "mine.json"
    params = finished.trials.query("state == 'complete'").set_index("fingerprint")
    fewest = params["trainable_params"].min()
    assert params["trainable_params"][found.numbers["candidate"]["fingerprint"]] == fewest
    assert found.numbers["replay"]["resamples"] == 200
    assert str(tmp_path) not in found.file.read_text()
