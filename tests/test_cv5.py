"""Small data: a search over five folds, end to end, killed between them, on both runners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sklearn.metrics import roc_auc_score
from tiny_run import flags, tiny

import autopeft
from autopeft.errors import RunError, UserError
from autopeft.parts import FOLD_PARTS
from autopeft.result import load_result

OPTIONS = {"inner": "cv5", "trials": 3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run, looked at by most tests here."""
    runs = tmp_path_factory.mktemp("runs")
    return autopeft.search(**tiny(runs, name="folds", **OPTIONS))


def study(folder, name):
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage)


def outcomes(trial):
    """Folds done -> outcome, of a trial of the search."""
    return {int(k[5:]): v["outcome"] for k, v in trial.user_attrs.items() if k.startswith("rung/")}


def value(folder, found):
    """AUROC of pairs inside folds, from the files alone."""
    table = autopeft_rows(folder)
    concordant, pairs = 0.0, 0
    for fold, outcome in enumerate(found):
        with np.load(folder / "predictions" / outcome["predictions"]) as stored:
            z, y = stored["score"][:, 0], table[fold]
        n = (y == 1).sum() * (y == 0).sum()
        concordant += roc_auc_score(y, z) * n if n else 0
        pairs += n
    return concordant / pairs


def autopeft_rows(folder):
    """Labels of what each fold judges by, from the run's own settings."""
    from autopeft.data import load_task
    from autopeft.parts import fold_rows
    from autopeft.settings import from_mapping, load

    settings = from_mapping(load(folder / "settings.yaml"), "saved")
    task = load_task(settings, folder.parent / ".cache")
    rows = fold_rows({s: task.rows(s) for s in ("train", "search")})
    return [r.label[:, 0] for r in rows]


def test_folds_are_the_rungs(finished):
    protocol = yaml.safe_load((finished.folder / "protocol.yaml").read_text())
    assert (protocol["inner"], protocol["rungs"]) == ("cv5", [1, 3, 5])
    assert protocol["folds"] == [9] * 5
    assert "on all folds" in protocol["reference"]
    assert finished.numbers["inner"] == {"kind": "cv5", "folds": [9] * 5}
    trials = study(finished.folder, "search").trials
    assert len(trials) == 3
    for trial in trials:
        done = outcomes(trial)
        assert sorted(done) == list(range(1, len(done) + 1))
        assert [done[k]["part"] for k in sorted(done)] == list(FOLD_PARTS[: len(done)])
        assert [bool(done[k]["state"]) for k in sorted(done)] == [k == 1 for k in sorted(done)]
        assert all(o["epoch"] == 2 for o in done.values())  # each fold is a whole training
        assert (trial.state.name == "COMPLETE") == (len(done) == 5)
    assert any(t.state.name == "COMPLETE" for t in trials)


def test_a_value_is_of_pairs_inside_folds(finished):
    for trial in study(finished.folder, "search").trials:
        done = outcomes(trial)
        for k in done:
            got = trial.user_attrs[f"rung/{k}"]["value"]
            want = value(finished.folder, [done[i] for i in range(1, k + 1)])
            assert got == pytest.approx(want, abs=1e-6)


def test_the_folds_stand_for_the_seeds_of_the_reference(finished):
    found: dict[str, dict[str, dict]] = {}
    for trial in study(finished.folder, "confirm").trials:
        attrs = trial.user_attrs
        if attrs["role"].startswith("baseline") and attrs["repeat"] == 0:
            found.setdefault(attrs["fingerprint"], {})[attrs["part"]] = attrs["outcome"]
    whole = [f for f in found.values() if set(f) == set(FOLD_PARTS)]
    assert len(whole) == 2  # linear probe and LoRA r=8
    best = max(value(finished.folder, [f[part] for part in FOLD_PARTS]) for f in whole)
    assert finished.numbers["reference"]["auroc"] == pytest.approx(best, abs=1e-5)


def test_what_is_shipped_saw_no_fold_that_judges_it(finished):
    """The saved adapter is the training on folds 1 to 4; thresholds are of fold 0 alone."""
    assert finished.best.numbers["search"]["auroc"]["patients"] == 9
    trial = next(
        t
        for t in study(finished.folder, "search").trials
        if t.user_attrs["fingerprint"] == finished.numbers["finalists"][0]["fingerprint"]
    )
    assert finished.numbers["optimism"]["looks"] == sum(
        len(outcomes(t)) for t in study(finished.folder, "search").trials
    )
    rows = (finished.folder / "predictions.csv").read_text().splitlines()[1:]
    searched = {r.split(",")[0] for r in rows if r.split(",")[2] == "search"}
    splits = (finished.folder / "splits.csv").read_text().splitlines()[1:]
    assert searched == {r.split(",")[0] for r in splits if r.split(",")[2] == "search"}
    assert outcomes(trial)[1]["part"] == "all"
    assert (finished.folder / "best").is_dir()
    assert "patients in 5 folds" in (finished.folder / "report.html").read_text()


def test_a_lost_score_of_a_fold_is_named(finished, tmp_path):
    import shutil

    copy = tmp_path / "folds"
    shutil.copytree(finished.folder, copy)
    shutil.copytree(finished.folder.parent / ".cache", tmp_path / ".cache")
    for name in ("result.json", "log.jsonl"):
        (copy / name).unlink()
    trial = next(t for t in study(copy, "search").trials if t.state.name == "COMPLETE")
    lost = outcomes(trial)[3]["predictions"]
    (copy / "predictions" / lost).unlink()
    with pytest.raises(RunError, match=rf"{lost} of trial {trial.number} is missing"):
        autopeft.search(**tiny(tmp_path, name="folds", **OPTIONS))


def test_a_share_of_the_labels_is_no_business_of_folds(tmp_path):
    with pytest.raises(UserError, match="beyond the share"):
        autopeft.search(**tiny(tmp_path, **OPTIONS, label_fraction=0.5))
    assert not list(tmp_path.glob("[!.]*"))


# ---- killed, and on Ray -------------------------------------------------------------------------


def values(folder):
    """Fingerprint -> values of each fold, with what they were told at the end."""
    return {
        t.user_attrs["fingerprint"]: (
            t.state.name,
            t.values,
            {k: v["value"] for k, v in t.user_attrs.items() if k.startswith("rung/")},
        )
        for t in study(folder, "search").trials
    }


@pytest.mark.slow
def test_kill_minus_nine_between_folds_loses_nothing(tmp_path, finished):
    options = tiny(tmp_path, name="folds", **OPTIONS)
    words = [sys.executable, "-m", "autopeft.cli", "search", *flags(options)]
    env = {**os.environ, "PYTHONPATH": str(Path(autopeft.__file__).parent.parent)}
    journal, begun = tmp_path / "folds" / "study.journal", []
    for lines in (3, 12, 15, 17):  # inside the baselines' folds, then inside those of trials
        process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline:
            text = journal.read_text(errors="replace") if journal.exists() else ""
            if text.count('"status"') >= lines:
                process.send_signal(signal.SIGKILL)
                begun.append(text.count('"status"'))
                break
            time.sleep(0.02)
        process.wait()
    assert len(begun) == 4
    assert subprocess.run(words, env=env, capture_output=True, check=False).returncode == 0
    assert values(tmp_path / "folds") == values(finished.folder)
    again = load_result(tmp_path / "folds")
    assert again.numbers["best"]["fingerprint"] == finished.numbers["best"]["fingerprint"]
    assert (again.folder / "predictions.csv").read_text() == (
        finished.folder / "predictions.csv"
    ).read_text()
    done = [o["predictions"] for t in study(again.folder, "search").trials
            for o in outcomes(t).values()]  # fmt: skip
    assert len(done) == len(set(done))


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_folds(tmp_path, finished):
    result = autopeft.search(**tiny(tmp_path, name="folds", **OPTIONS, runner="ray", workers=1))
    assert values(result.folder) == values(finished.folder)
    assert result.numbers["reference"] == finished.numbers["reference"]
