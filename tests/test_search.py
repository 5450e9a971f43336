"""One search, end to end: the files of a run, resume, kill -9, both runners."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tiny_run import flags, tiny

import autopeft
import autopeft.prepare
from autopeft.errors import UserError
from autopeft.objective import load_objective
from autopeft.result import load_result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run, looked at by most tests here."""
    runs = tmp_path_factory.mktemp("runs")
    return autopeft.search(**tiny(runs, name="first"))


def table(result, model, split, repeat=0):
    """Rows of ``predictions.csv``: path -> (target, score)."""
    with (result.folder / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    kept = [
        r for r in rows if (r["model"], r["split"], r["repeat"]) == (model, split, str(repeat))
    ]
    return {r["path"]: (float(r["target"]), float(r["score"])) for r in kept}


def test_every_promised_file_is_there(finished):
    names = {p.name for p in finished.folder.iterdir()}
    assert names >= {
        "settings.yaml", "protocol.yaml", "study.journal", "trials.csv", "predictions",
        "predictions.csv", "splits.csv", "best", "baselines", "result.json", "report.html",
        "log.jsonl",
    }  # fmt: skip
    assert not (finished.folder / "states").exists()
    assert {p.name for p in (finished.folder / "baselines").iterdir()} == {
        "linear_probe",
        "lora_r8",
    }
    for name in ("predictions.csv", "splits.csv"):
        assert stat.S_IMODE((finished.folder / name).stat().st_mode) == 0o600


def test_result_json_has_the_promised_keys(finished):
    numbers = json.loads((finished.folder / "result.json").read_text())
    assert numbers.keys() >= {
        "verdict", "best", "baselines", "front", "optimism", "trials", "objective", "space",
        "seconds", "versions",
    }  # fmt: skip
    assert numbers["best"].keys() >= {
        "config", "fingerprint", "search", "confirm", "test", "trainable_params", "adapter_bytes",
    }  # fmt: skip
    assert numbers["trials"].keys() == {"complete", "pruned", "failed"}
    assert sum(numbers["trials"].values()) == 3
    test = numbers["best"]["test"]["auroc"]
    assert test["low"] <= test["value"] <= test["high"]
    replay = numbers["replay"]
    assert replay["resamples"] == 1000
    assert sum(replay["families"].values()) == pytest.approx(1)
    assert replay["pick"]["fingerprint"] == numbers["finalists"][0]["fingerprint"]
    assert numbers["accuracy_kept"]["test"].keys() == {"kept", "difference", "floor"}


def test_a_plan_declares_what_the_run_declared(finished):
    found = autopeft.plan(**tiny(finished.folder.parent, name="first"), timing=0).numbers
    assert found["state"] == "finished"
    assert found["protocol"]["sha256"] == finished.numbers["protocol"]


def test_what_the_budget_keeps_back_is_what_came_after_the_search(finished):
    from autopeft import settings
    from autopeft.data import load_task
    from autopeft.reserve import after_search, before_search

    options = settings.from_mapping(tiny(finished.folder.parent, name="first"), "test")
    task = load_task(options, finished.folder.parent / ".cache")
    due = [*before_search(options, ()), *after_search(options, (), task)]
    trainings = sum(d.count for d in due if d.what != "scoring")
    storage = JournalStorage(JournalFileBackend(str(finished.folder / "study.journal")))
    done = len(optuna.load_study(study_name="confirm", storage=storage).trials)
    # An ablation is left out where the winner has no levers, or is the probe itself; a finalist
    # that is a baseline is trained once.
    assert trainings - 3 <= done <= trainings


def test_test_value_is_the_auroc_of_the_saved_scores(finished):
    from sklearn.metrics import roc_auc_score

    for model, numbers in {
        "winner": finished.numbers["best"],
        **finished.numbers["baselines"],
    }.items():
        pairs = np.array(list(table(finished, model, "test").values()))
        assert numbers["test"]["auroc"]["value"] == pytest.approx(
            roc_auc_score(pairs[:, 0], pairs[:, 1]), abs=1e-9
        )


def test_saved_adapters_reproduce_the_scores(finished):
    root = next((finished.folder.parent / ".cache").glob("phantom-*"))
    for model, best in {"winner": finished.best, **finished.baselines}.items():
        scores = table(finished, model, "test")
        again = best.adapter().predict([root / path for path in scores])[:, 0]
        assert np.abs(again - [s for _, s in scores.values()]).max() < 1e-4


def test_peft_loads_the_lora_baseline(finished):
    import peft
    import timm
    import torch

    import autopeft.backbones.nano  # noqa: F401
    from autopeft.training.images import decode, normalize

    root = next((finished.folder.parent / ".cache").glob("phantom-*"))
    scores = table(finished, "lora_r8", "test")
    base = timm.create_model("autopeft_vit_nano", pretrained=True, num_classes=1, img_size=28)
    model = peft.PeftModel.from_pretrained(base, finished.folder / "baselines" / "lora_r8").eval()
    info = json.loads((finished.folder / "baselines/lora_r8/autopeft.json").read_text())[
        "backbone"
    ]
    pixels = normalize(np.stack([decode(root / p, 28) for p in scores]), info["mean"], info["std"])
    with torch.inference_mode():
        again = model(pixels).sigmoid()[:, 0].numpy()
    assert np.abs(again - [s for _, s in scores.values()]).max() < 1e-4


def test_splits_are_disjoint_and_search_never_saw_test(finished):
    splits = pd.read_csv(finished.folder / "splits.csv")
    assert splits.groupby("patient_id")["split"].nunique().max() == 1
    events = [
        json.loads(x)["event"] for x in (finished.folder / "log.jsonl").read_text().splitlines()
    ]
    assert events.count("test_opened") == 1
    assert events.index("chosen") < events.index("test_opened") < events.index("finished")


def test_protocol_is_written_before_the_first_trial(finished):
    declared = yaml.safe_load((finished.folder / "protocol.yaml").read_text())
    assert declared["finalists"].startswith("1, and always the linear probe")
    assert declared["baselines"] == ["linear_probe", "lora_r8"]
    assert (finished.folder / "protocol.yaml").stat().st_mtime <= (
        finished.folder / "study.journal"
    ).stat().st_mtime
    assert finished.numbers["protocol"]


def test_journal_opens_in_plain_optuna(finished):
    storage = JournalStorage(JournalFileBackend(str(finished.folder / "study.journal")))
    study = optuna.load_study(study_name="search", storage=storage)
    assert Counter(t.state.name for t in study.trials)["RUNNING"] == 0
    assert len(study.trials) == 3 == len(finished.trials)


def test_figures_and_optuna_s_own_plots(finished):
    assert finished.plot_front()._repr_svg_().startswith("<svg")
    history = optuna.visualization.plot_optimization_history(finished.study)
    assert len(history.data) >= 1


def test_report_and_log_name_no_patient_and_no_path(finished):
    splits = pd.read_csv(finished.folder / "splits.csv")
    for name in ("report.html", "log.jsonl", "result.json", "protocol.yaml", "best/README.md"):
        text = (finished.folder / name).read_text()
        assert not any(p in text for p in splits["path"]), name
        assert str(finished.folder.parent) not in text, name


def test_finished_run_answers_at_once(finished, monkeypatch):
    import autopeft.driver as room

    monkeypatch.setattr(room, "prepare", lambda *_: pytest.fail("prepared again"))
    again = autopeft.search(**tiny(finished.folder.parent, name="first"))
    assert again.numbers == finished.numbers


def test_a_finished_run_does_not_answer_for_other_data(finished, monkeypatch):
    options = tiny(finished.folder.parent, name="first")
    other = autopeft.prepare.load_task(
        autopeft.Settings(split_seed=1, data_option=options["data_option"]),
        finished.folder.parent / ".cache",
    )
    monkeypatch.setattr(autopeft.prepare, "load_task", lambda *_: other)
    with pytest.raises(UserError, match="data changed since this run was finished"):
        autopeft.search(**options)


def test_a_lost_state_and_result_are_made_again(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "first")
    (tmp_path / "first" / "result.json").unlink()
    again = autopeft.search(**tiny(tmp_path, name="first"))
    assert again.numbers["best"]["test"] == finished.numbers["best"]["test"]


def test_nothing_is_chosen_once_test_is_opened(finished, tmp_path):
    """Killed behind the look at test, or its result removed: the search is closed."""
    shutil.copytree(finished.folder, tmp_path / "first")
    (tmp_path / "first" / "result.json").unlink()
    with pytest.raises(UserError, match="test patients are opened"):
        autopeft.search(**tiny(tmp_path, name="first", trials=9))
    assert not (tmp_path / "first" / "result.json").exists()


def test_a_budget_that_ended_the_search_adds_nothing_once_test_is_opened(finished, tmp_path):
    """More trials had been asked for than were trained; the answer was lost behind the look."""
    folder = Path(shutil.copytree(finished.folder, tmp_path / "first"))
    (folder / "result.json").unlink()
    text = (folder / "settings.yaml").read_text()
    (folder / "settings.yaml").write_text(text.replace("trials: 3", "trials: 5"))
    again = autopeft.search(**tiny(tmp_path, name="first", trials=5))
    assert len(again.trials) == 3
    assert again.numbers["best"]["test"] == finished.numbers["best"]["test"]


def test_a_run_that_another_driver_finished_meanwhile_answers(finished, tmp_path, monkeypatch):
    import autopeft.driver as room

    prepare = room.prepare

    def slow(*given):
        ready = prepare(*given)
        shutil.copytree(finished.folder, tmp_path / "first")  # the other one was faster
        return ready

    monkeypatch.setattr(room, "prepare", slow)
    monkeypatch.setattr(room, "_drive", lambda *_: pytest.fail("driven again"))
    found = autopeft.search(**tiny(tmp_path, name="first"))
    assert found.numbers == finished.numbers


def test_replaced_images_are_refused(finished, tmp_path, monkeypatch):
    import autopeft.training.images as room

    shutil.copytree(finished.folder, tmp_path / "first")
    (tmp_path / "first" / "result.json").unlink()
    monkeypatch.setattr(room, "digest", lambda store: "other pixels")
    with pytest.raises(UserError, match="the images changed since this run was started"):
        autopeft.search(**tiny(tmp_path, name="first"))


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".hidden", "x" * 300])
def test_a_name_stays_below_the_runs_folder(tmp_path, name):
    with pytest.raises(UserError, match="is no name for a run"):
        autopeft.search(**tiny(tmp_path, name=name))


def test_a_folder_with_other_files_is_not_written_into(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="something else"):
        autopeft.search(**tiny(tmp_path, name="mine"))
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_more_trials_on_a_finished_run_are_refused(finished):
    with pytest.raises(UserError, match="test patients are opened"):
        autopeft.search(**tiny(finished.folder.parent, name="first", trials=9))


def test_changed_settings_are_refused_with_a_diff(finished):
    with pytest.raises(UserError, match="--epochs was 2, now 3"):
        autopeft.search(**tiny(finished.folder.parent, name="first", epochs=3))


@pytest.mark.slow
def test_second_look_at_the_same_patients_is_counted(finished):
    again = autopeft.search(**tiny(finished.folder.parent, name="second"))
    assert finished.numbers["look"] == 1
    assert again.numbers["look"] == 2
    assert again.best.config == finished.best.config
    assert (again.folder / "predictions.csv").read_text() == (
        finished.folder / "predictions.csv"
    ).read_text()


@pytest.mark.slow
def test_fairness_search_ranks_by_the_worst_group(tmp_path):
    films = {"patients": "400", "size": "32", "contrast": "2", "images_per_patient": "1"}
    options = tiny(tmp_path, objective="fairness", group=("sex",), min_group=10, data_option=films)
    result = autopeft.search(**options)
    assert result.numbers["primary"] == "worst_group_auroc"
    assert list(result.front[0]["values"]) == ["auroc", "worst_group_auroc"]
    groups = {r["group"]: r for r in result.numbers["groups"] if r["model"] == "winner"}
    worst = min(groups[g]["auroc"] for g in ("sex=F", "sex=M"))
    assert result.best.test["worst_group_auroc"]["value"] == pytest.approx(worst)
    assert result.numbers["accuracy_kept"]["margin"] == 0.01
    check_groups(result, groups)
    check_operating_point(result)
    check_company(result)


def check_groups(result, groups):
    """The gap is that of the groups' rows; the bands are of the same groups."""
    fairness, contrast = result.numbers["fairness"], result.numbers["contrast"]
    opponent = contrast["baseline"]
    floor = contrast["worst_group"]  # every group was held against the opponent's worst one
    assert {floor["group"], floor["against"]} <= {"sex=F", "sex=M"}
    if floor["low"] <= 0:
        assert contrast["word"] != "better"
    assert set(fairness["models"]) == {"winner", opponent}
    (gap,) = fairness["models"]["winner"]["gaps"]
    values = [groups[g]["auroc"] for g in gap["mean"]["groups"]]
    assert gap["mean"]["value"] == pytest.approx(max(values) - min(values))
    assert gap["word"] in ("gap shown", "gap below", "cannot tell")
    assert set(fairness["bands"]) == {"sex=F", "sex=M"}
    assert {r["group"] for r in fairness["models"]["winner"]["across"]} == {"sex=F", "sex=M"}


def check_operating_point(result):
    """Rates on test are those at the threshold that search gave, never one fitted on test."""
    search = table(result, "winner", "search")
    positives = sorted((score for target, score in search.values() if target == 1), reverse=True)
    threshold = positives[int(np.ceil(0.9 * len(positives) - 1e-9)) - 1]
    test = table(result, "winner", "test")
    found = [score >= threshold for target, score in test.values() if target == 1]
    rates = result.best.numbers["operating"]["rates"]
    assert rates["sensitivity"]["value"] == pytest.approx(np.mean(found))
    cleared = [score < threshold for target, score in test.values() if target == 0]
    assert rates["specificity"]["value"] == pytest.approx(np.mean(cleared))
    check_temperature(result, search, test)


def check_temperature(result, search, test):
    """What the scores are divided by was fitted on search, and is saved with the adapter."""
    told = result.best.numbers["operating"]
    (fitted,) = told["temperature"].values()
    y, q = np.array(list(search.values())).T
    z = np.log(q / (1 - q))
    losses = {t: np.mean(np.logaddexp(0, -np.where(y == 1, 1, -1) * z / t)) for t in (0.5, 1, 2)}
    losses[fitted] = np.mean(np.logaddexp(0, -np.where(y == 1, 1, -1) * z / fitted))
    assert min(losses, key=losses.__getitem__) == fitted
    y, q = np.array(list(test.values())).T
    cold = -np.where(y == 1, 1, -1) * np.log(q / (1 - q)) / fitted
    expected = pytest.approx(np.mean(np.logaddexp(0, cold)), rel=1e-4)
    assert told["after_temperature"]["log_loss"] == expected
    assert autopeft.load_adapter(result.folder / "best").temperatures == (fitted,)


def check_company(result):
    """Simple predictors, shortcuts and the winner's parts stand beside it, and in the files."""
    numbers, page = result.numbers, (result.folder / "report.html").read_text()
    assert set(numbers["simple"]) == {"knn", "demographics", "thumbnail"}
    for name in numbers["simple"]:
        rows = table(result, name, "test")
        assert set(rows) == set(table(result, "winner", "test"))
    knn = table(result, "knn", "test").values()
    positive, negative = ([s for t, s in knn if t == label] for label in (1, 0))
    ranked = np.mean([(a > b) + (a == b) / 2 for a in positive for b in negative])
    assert numbers["simple"]["knn"]["test"]["auroc"]["value"] == pytest.approx(ranked, abs=1e-4)
    assert {r["attribute"] for r in numbers["shortcuts"]["winner"]} == {"sex"}
    assert numbers["memorization"] == {}
    assert "Gaps between groups" in page
    assert "What simple things reach" in page
    assert "Memorization" not in page


@pytest.mark.slow
def test_a_memorization_search_attacks_its_winner(tmp_path):
    films = {"patients": "400", "size": "32", "contrast": "2", "images_per_patient": "1"}
    options = tiny(tmp_path, objective="memorization", data_option=films)
    result = autopeft.search(**options)
    found = result.numbers["memorization"]
    assert set(found["models"]) == {"winner", "linear_probe", "lora_r8"}
    assert {a["name"] for a in found["models"]["winner"]} == {"loss", "confidence"}
    assert {a["name"] for a in found["recipes"]["lora_r8"]} == {"likelihood ratio", "rmia"}
    assert found["generalization"]["all"]["low"] < found["generalization"]["all"]["high"]
    assert set(found["planted"]) == {"winner", "lora_r8"}
    assert all(0 <= f["share"] <= 1 and f["planted"] > 5 for f in found["planted"].values())
    assert result.numbers["patients"]["probe"] == result.numbers["patients"]["search"]
    values = result.front[0]["values"]
    assert -0.5 <= values["memorization"] <= 0.5
    assert "Memorization" in (result.folder / "report.html").read_text()
    assert autopeft.search(**options).numbers == result.numbers


def test_fairness_without_a_group_large_enough_is_refused(tmp_path):
    with pytest.raises(UserError, match="fewer than two groups|too few patients"):
        autopeft.search(**tiny(tmp_path, objective="fairness", group=("sex",), min_group=40))
    assert not list(tmp_path.glob("[!.]*"))


def test_a_group_too_small_to_be_scored_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="scored from 10 positive"):
        autopeft.search(**tiny(tmp_path, objective="fairness", group=("sex",), min_group=1))


def start(options):
    """The run as a process of its own."""
    words = [sys.executable, "-m", "autopeft.cli", "search", *flags(options)]
    env = {**os.environ, "PYTHONPATH": str(Path(autopeft.__file__).parent.parent)}
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def trainings(folder):
    """(fingerprint, repeat, part, stop epoch) of each training that the journal holds."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    found = []
    for name in ("search", "confirm"):
        for trial in optuna.load_study(study_name=name, storage=storage).trials:
            fingerprint = trial.user_attrs["fingerprint"]
            if name == "confirm":
                stop = trial.user_attrs["outcome"]["epoch"]
                found.append((name, fingerprint, trial.user_attrs["repeat"], "all", stop))
            else:
                stops = [k for k in trial.user_attrs if k.startswith("rung/")]
                found += [(name, fingerprint, 0, "all", int(k[5:])) for k in stops]
    return found


@pytest.mark.slow
def test_kill_minus_nine_loses_nothing_and_repeats_nothing(tmp_path, finished):
    options = tiny(tmp_path, name="first")
    recorded: set = set()
    for events in (2, 4, 7):  # killed once this many trainings are in the journal
        process = start(options)
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline:
            journal = tmp_path / "first" / "study.journal"
            if (
                journal.exists()
                and journal.read_text(errors="replace").count('"status"') >= events
            ):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        process.wait()
        process.stdout.close()
        process.stderr.close()
        if (tmp_path / "first" / "result.json").exists():
            break
        now = trainings(tmp_path / "first")
        assert recorded <= set(now)
        recorded = set(now)
    last = start(options)
    _, said = last.communicate(timeout=300)
    assert last.returncode == 0, said.decode()
    assert autopeft.verify("first", tmp_path).ok
    done = trainings(tmp_path / "first")
    assert max(Counter(done).values()) == 1
    result = load_result(tmp_path / "first")
    assert (result.folder / "predictions.csv").read_text() == (
        finished.folder / "predictions.csv"
    ).read_text()


@pytest.mark.slow
def test_a_second_driver_is_refused_naming_the_first(tmp_path):
    options = tiny(tmp_path, name="first", trials=6)
    first = start(options)
    lock = tmp_path / "first" / ".lock"
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.05)
    second = start(options)
    _, said = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert f"pid {first.pid}" in said.decode()


def values(result):
    """Everything that must be equal between two runs: trainings and saved scores."""
    frame = result.trials.drop(columns=["train_seconds"])
    return frame, (result.folder / "predictions.csv").read_text()


@pytest.mark.ray
def test_ray_with_one_worker_equals_serial(tmp_path, finished):
    other = autopeft.search(**tiny(tmp_path, name="first", runner="ray", workers=1))
    frame, scores = values(other)
    expected, expected_scores = values(finished)
    pd.testing.assert_frame_equal(frame, expected)
    assert scores == expected_scores
    assert autopeft.verify("first", tmp_path).ok


@pytest.mark.ray
def test_ray_with_two_workers_trains_the_same_candidates(tmp_path):
    one = autopeft.search(**tiny(tmp_path, name="one", sampler="random", trials=5))
    two = autopeft.search(
        **tiny(tmp_path, name="two", sampler="random", trials=5, runner="ray", workers=2)
    )
    assert set(one.trials["fingerprint"]) == set(two.trials["fingerprint"])

    def outcomes(result):
        folder = result.folder / "predictions"
        found = [p for p in folder.glob("*-all-*.npz") if not p.name.startswith("readouts")]
        stored = {p.name: np.load(p) for p in found}
        return {name: arrays["score"] for name, arrays in stored.items() if "score" in arrays}

    first, second = outcomes(one), outcomes(two)
    shared = first.keys() & second.keys()
    assert len(shared) >= 5
    for name in shared:
        assert np.array_equal(first[name], second[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficiency", "equalized_odds"])
def test_other_objectives_answer_too(tmp_path, name):
    """auroc, fairness and memorization have tests of their own."""
    films = {"patients": "400", "size": "32", "contrast": "2", "images_per_patient": "1"}
    options = tiny(tmp_path, objective=name, data_option=films, epochs=1)
    if "groups" in load_objective(name).needs:
        options |= {"group": ("sex",), "min_group": 10}
    result = autopeft.search(**options)
    objective = load_objective(name)
    assert set(result.front[0]["values"]) == {t.name for t in objective.terms}
    assert all(v is not None for entry in result.front for v in entry["values"].values())
    assert result.numbers["primary"] == objective.primary
    assert result.numbers["contrast"]["word"] in ("better", "not worse", "worse", "cannot tell")
    assert (result.folder / "report.html").exists()
    assert autopeft.search(**options).numbers == result.numbers
