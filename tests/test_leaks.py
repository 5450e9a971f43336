"""Nothing of the test patients reaches anything that is decided before they are opened."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import FunctionType, MethodType

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from tiny_run import tiny

import autopeft
from autopeft import prepare, protocol
from autopeft.bench import Audience
from autopeft.data import load_task
from autopeft.data.frame import Source, build_task
from autopeft.data.splits import SPLITS
from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.job import Rows
from autopeft.result import load_result
from autopeft.summary import print_summary

FILMS = {"patients": "120", "size": "32", "contrast": "2", "images_per_patient": "1"}


def whole_labels(task: Task) -> np.ndarray:
    """All labels of a task, test opened."""
    task.open_test()
    label = np.full((len(task.paths), len(task.classes)), np.nan, np.float32)
    for split in (*SPLITS, *task.external):
        rows = task.rows(split)
        label[rows.index] = rows.label
    return label


def with_test_permuted(task: Task) -> Task:
    """The same task; the labels of its test patients went round inside each group of sex."""
    label, table = whole_labels(task), task.split_table()
    groups = task._all.groups
    for group in task.groups_of("sex"):
        here = np.flatnonzero((table["split"] == "test") & (groups["sex"] == group))
        assert len(set(label[here, 0].tolist())) == 2, "or a permutation would change nothing"
        order = here[np.argsort(label[here, 0], kind="stable")]
        label[order] = label[order[::-1]]
    rows = replace(task._all, label=label)
    fields = (task.name, task.kind, task.unit, task.classes, task.root, task.attributes)
    return Task(*fields, task.notes, task.external, rows, task._split)


# ---- the task -----------------------------------------------------------------------------------


def made_task(turned: bool = False) -> Task:
    """Twelve patients; with ``turned`` the labels of the test patients are swapped in each sex."""
    n = 12
    label = np.array([0, 1, 1, 0] * 3, np.float32)
    split = np.array(["train"] * 4 + ["search"] * 4 + ["test"] * 4)
    if turned:
        label[8:] = 1 - label[8:]  # one of either label in each sex, before and after
    rows = Rows(
        np.array([f"{i:03}.png" for i in range(n)]),
        np.arange(n),
        np.array([f"p{i}" for i in range(n)]),
        label[:, None],
        {"sex": np.array(["sex=F", "sex=F", "sex=M", "sex=M"] * 3)},
    )
    return Task(
        "made", "binary", "patient", ("ill",), Path(), ("sex",), (), (), rows, split
    )  # fmt: skip


def reachable(value: object, depth: int = 0) -> Iterator[object]:
    """Plain values inside of an object: attributes, slots, items, frames, arrays."""
    if depth > 8:
        return
    if isinstance(value, np.ndarray):
        yield value.tolist()
    elif isinstance(value, pd.DataFrame):
        yield value.to_csv()
    elif isinstance(value, Mapping):
        for key in value:
            yield from reachable(value[key], depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from reachable(item, depth + 1)
    elif isinstance(value, (FunctionType, MethodType)):
        return
    elif is_dataclass(value) or hasattr(value, "__slots__") or hasattr(value, "__dict__"):
        names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
        for name in names:
            yield from reachable(getattr(value, name, None), depth + 1)
    else:
        yield value


def told(task: Task) -> list[str]:
    """Everything that a sealed task says when it is asked in every way that it has."""
    found = [repr(task), str(task), repr(list(reachable(task)))]
    for name in dir(task):
        if name.startswith("__") or name in ("digest", "open_test"):
            continue
        value = getattr(task, name)
        found.append(repr(list(reachable(value))))
        if not callable(value):
            continue
        for given in ((), ("test",), ("uncertain",), ("search",), ("sex",), ([8], "train")):
            try:
                answer = value(*given)
                found.append(f"{name}{given} {list(reachable(answer))!r}")
            except Exception as error:
                found.append(f"{name}{given} {type(error).__name__} {error}")
    return found


def test_a_sealed_task_says_nothing_that_depends_on_test_labels():
    one, other = told(made_task()), told(made_task(turned=True))
    assert one == other
    assert len(one) > 50
    opened = made_task()
    opened.open_test()
    turned = made_task(turned=True)
    turned.open_test()
    assert told(opened) != told(turned)  # this looks where labels are, once they may be seen


@pytest.mark.parametrize("ask", [
    lambda t: t.rows("test"), lambda t: t.unsure("test"), lambda t: t._opened("test"),
    lambda t: t._sealed.read(), pickle.dumps, copy.deepcopy,
    lambda t: t.with_split(np.array([8]), "train"), lambda t: t.without(np.array([8])),
])  # fmt: skip
def test_before_the_opening_every_way_raises(ask):
    with pytest.raises((RuntimeError, AssertionError)):
        ask(made_task())


def test_counts_by_label_and_group_are_those_of_the_making():
    task = made_task()
    table = task.counts("test").set_index("group")
    assert table.loc["all", ["images", "positives", "negatives"]].tolist() == [4, 2, 2]
    assert table.loc["sex=F", ["images", "positives", "negatives"]].tolist() == [2, 1, 1]
    assert task.count_images("test") == {"ill": (2, 2)}
    table["positives"] = 99  # a copy: nobody counts again
    assert task.counts("test")["positives"].max() == 2


def test_the_opening_is_seen_by_every_copy_of_the_task():
    task = made_task()
    smaller = task.without(np.array([0]))
    task.open_test()
    assert smaller.rows("test").label[:, 0].tolist() == [0, 1, 1, 0]
    assert smaller.rows("test").path.tolist() == task.rows("test").path.tolist()


def test_the_digest_still_binds_test_labels():
    assert made_task().digest == made_task().digest != made_task(turned=True).digest


# ---- a patient across splits --------------------------------------------------------------------


def source(tmp_path: Path, patients: list[str], **columns: list[str]) -> Source:
    """Twelve images with one byte each."""
    paths = [f"{i:02}.png" for i in range(len(patients))]
    for path in paths:
        (tmp_path / path).touch()
    frame = pd.DataFrame({"path": paths, "patient_id": patients, **columns})
    label = (np.arange(len(paths)) % 2).astype(np.float32)[:, None]
    return Source("made", "made.csv", tmp_path, "binary", "patient", ("ill",), frame, label)


def test_a_patient_in_two_given_splits_is_refused(tmp_path):
    patients = [f"p{i // 2}" for i in range(40)]
    given = ["train"] * 21 + ["test"] * 19  # patient 10 is in both
    with pytest.raises(UserError, match=r"1 patient\(s\) are in two of the given splits"):
        build_task(source(tmp_path, patients, split=given), (), 0)


def test_our_own_splits_keep_patients_whole_and_the_task_insists(tmp_path):
    patients = [f"p{i // 4}" for i in range(240)]
    task = build_task(source(tmp_path, patients), (), 0)
    table = task.split_table()
    assert table.groupby("patient_id")["split"].nunique().max() == 1
    assert set(table["split"]) == set(SPLITS)
    split = task._split.astype("U9")
    split[np.argmax(split == "test")] = "train"
    with pytest.raises(RuntimeError, match="1 patients have rows in two splits"):
        replace(task, _split=split)


# ---- a whole run --------------------------------------------------------------------------------


class Snapshot:
    """The files of a run's folder at the moment in which its test patients are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, object] = {}
        self.facts: dict[str, object] = {}
        log = protocol.log

        def logged(run_dir: Path, event: str, **facts: object) -> None:
            if event == "test_opened":
                self.facts = facts
                self.files = {
                    str(p.relative_to(run_dir)): content(p)
                    for p in sorted(run_dir.rglob("*"))
                    if p.is_file() and p.name not in (".lock", "clock.json")
                }
            log(run_dir, event, **facts)

        monkeypatch.setattr(protocol, "log", logged)


def content(path: Path) -> object:
    """What a file says, without times, hashes of compressed files, and the machine's ids."""
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return {name: stored[name].tobytes() for name in stored.files}
    if path.name == "protocol.yaml":
        declared = yaml.safe_load(path.read_text())
        del declared["task"]["digest"]  # binds the labels of all patients, and tells none
        return declared
    if path.name in ("study.journal", "log.jsonl"):
        return [plain(line) for line in path.read_text().splitlines()]
    if path.name == "trained.json":
        return plain(path.read_text())
    if path.name == "settings.yaml":
        return path.read_text().replace(str(path.parents[1]), "RUNS")
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Times, processes and machines; hashes of files that hold a time; what binds all labels.
_VARIES = {
    "seconds", "train_seconds", "prefix_seconds", "time", "datetime_start", "datetime_complete",
    "worker_id", "pid", "sha256", "identity", "place", "prev", "hash", "chain", "protocol",
    "pixels", "machine",
}  # fmt: skip


def plain(line: str) -> object:
    """One JSON object without what differs between any two runs."""

    def kept(value: object) -> object:
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if k not in _VARIES}
        return [kept(v) for v in value] if isinstance(value, list) else value

    return kept(json.loads(line))


def run(runs: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> tuple[object, Snapshot]:
    snapshot = Snapshot(monkeypatch)
    options = tiny(runs, name="one", data_option=FILMS, group=("sex",), inner="holdout", **changes)
    return autopeft.search(**options), snapshot


@pytest.mark.slow
def test_permuted_test_labels_change_nothing_before_the_last_step(tmp_path, monkeypatch):
    plainly, before = run(tmp_path / "a", monkeypatch, trials=2)
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "load_task", lambda *asked: with_test_permuted(load_task(*asked)))
    permuted, after = run(tmp_path / "b", monkeypatch, trials=2)
    assert len(before.files) > 10
    assert before.files.keys() == after.files.keys()
    for name, said in before.files.items():
        assert said == after.files[name], name
    assert before.facts == after.facts  # the thresholds
    assert plainly.best.config == permuted.best.config
    assert plainly.best.test != permuted.best.test  # it was these labels that moved
    assert plainly.numbers["thresholds"] == permuted.numbers["thresholds"]


@pytest.mark.slow
def test_thresholds_come_from_search_alone(tmp_path, monkeypatch):
    plainly, _ = run(tmp_path / "a", monkeypatch)
    monkeypatch.undo()
    own = Audience.predictions

    def turned(self, outcome, split, repeat):
        p = own(self, outcome, split, repeat)
        return p if split == "search" else replace(p, score=p.score[::-1].copy())

    monkeypatch.setattr(Audience, "predictions", turned)
    other, _ = run(tmp_path / "b", monkeypatch)
    for name, baseline in plainly.baselines.items():
        mine, theirs = (b.adapter().thresholds for b in (baseline, other.baselines[name]))
        assert mine == theirs, name
        assert baseline.test != other.baselines[name].test  # scores did move
    if plainly.best.config == other.best.config:
        assert plainly.numbers["thresholds"] == other.numbers["thresholds"]


@pytest.mark.slow
def test_a_second_run_on_the_same_test_patients_says_look_2(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    options = {"data_option": FILMS, "inner": "holdout"}
    autopeft.search(**tiny(tmp_path, name="one", **options))
    second = autopeft.search(**tiny(tmp_path, name="two", seed=1, **options))
    screen = io.StringIO()
    print_summary(load_result(second.folder), Console(file=screen, width=100))
    assert "look 2" in screen.getvalue()
    assert "look 2" in (second.folder / "report.html").read_text()
    assert "look 2" in json.dumps(second.numbers) or '"number": 2' in json.dumps(second.numbers)
