"""The planted task of docs/planted.md, small: what is trained, picked, attacked and covered."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import planted_coverage  # noqa: E402
import planted_data as data  # noqa: E402
import planted_memory  # noqa: E402
import planted_pool  # noqa: E402
import planted_report  # noqa: E402

from autopeft.evaluation import Predictions  # noqa: E402
from autopeft.methods import canonical  # noqa: E402
from autopeft.training.probe import Probe  # noqa: E402

TINY = data.Size(image=42, train=60, search=160, fresh=200, population=200, epochs=1)
FEW = ("probe 6 both", "lora r=8 blocks 3-5", "ssf blocks 4-5, DRO")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = planted_pool.DESIGNS["mixed"]
    small = replace(mixed, pool={n: planted_pool.MIXED[n] for n in FEW}, size=TINY)
    monkeypatch.setitem(planted_pool.DESIGNS, "mixed", small)


def test_films_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    planted = data.phantom(3, 40, 0.9, TINY)
    whole = data.films(tmp_path / "a", planted)
    draw, calls = data.draw, []

    def stops(film: Any, size: int) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return draw(film, size)

    monkeypatch.setattr(data, "CHUNK", 8)
    monkeypatch.setattr(data, "draw", stops)
    with pytest.raises(KeyboardInterrupt):
        data.films(tmp_path / "b", planted)
    again = data.films(tmp_path / "b", planted)
    assert len(calls) == 20 + 40 - 16
    assert np.array_equal(whole.store.array, again.store.array)
    rows = whole.rows(slice(10, 20))
    assert rows.index.tolist() == list(range(10, 20))
    assert set(rows.groups) == set(data.COUNTED)
    assert set(rows.groups["age:60"]) <= {"age<60", "age>=60"}


@pytest.mark.slow
def test_a_pool_is_trained_once_picked_from_and_reported(tmp_path, few, capsys):
    for seed in (0, 1):
        planted_pool.pool(tmp_path, "mixed", seed)
    folder = tmp_path / "mixed" / "00"
    first = {f.name: f.read_bytes() for f in folder.glob("*.npz")}
    assert len(first) > len(FEW)
    assert not (folder / "run").exists()
    capsys.readouterr()
    planted_pool.pool(tmp_path, "mixed", 0)
    assert capsys.readouterr().out == ""
    found = planted_report.seeds_of(tmp_path, "mixed")
    assert [s.number for s in found] == [0, 1]
    for s in found:
        worst = {name: v.worst for name, v in s.search.items()}
        assert s.picks["worst_group"] == max(worst, key=worst.__getitem__)
        assert s.gain("auroc") == 0
    text = "\n".join([*planted_report.pool_lines(found), *planted_report.candidate_lines(found)])
    assert "| 1 |" in text
    assert "`fairness` minus `auroc`" in text
    assert planted_report.pool_picture(found, "0.9").startswith("<svg")


@pytest.mark.slow
def test_fresh_scores_are_what_the_worker_gives(tmp_path, few, monkeypatch):
    kept = []
    monkeypatch.setattr(planted_pool.shutil, "rmtree", lambda *a, **k: kept.append(a))
    planted_pool.pool(tmp_path, "mixed", 5)
    found = data.films(tmp_path, data.phantom(5, TINY.train + TINY.search, 0.9, TINY))
    frozen = data.frozen(found, TINY.image, data.BOUNDARIES)
    folder = tmp_path / "mixed" / "05"
    design = planted_pool.DESIGNS["mixed"]
    known = planted_pool.scored(folder, design, found.rows(slice(TINY.train, None)))
    for name, candidate in planted_pool.candidates(design).items():
        state = next((folder / "run" / "states").glob(f"{candidate.fingerprint}*"))
        model = planted_pool.load_adapter(state, network=data.network(TINY.image))
        planted_pool.speed_up(model.adapted, data.PRECISION, data.casts(TINY.image))
        again = data.scores(model.adapted, frozen, slice(TINY.train, None))
        then = known[name][0].score[:, 0]  # its head is in bf16
        assert again == pytest.approx(then, abs=0.1)
        assert np.corrcoef(again, then)[0, 1] > 0.9995


def test_true_values_are_those_of_the_groups():
    score = np.array([0.1, 0.9, 0.8, 0.2] * 20, np.float32) + np.linspace(0, 1e-3, 80)
    label = np.array([[0], [1], [0], [1]] * 20, np.float32)
    sex = np.array(["sex=F", "sex=F", "sex=M", "sex=M"] * 20)
    age = np.array(["age<60"] * 40 + ["age>=60"] * 40)
    p = Predictions(
        score[:, None], label, np.arange(80), np.zeros(80), {"sex": sex, "age:60": age},
        ("lesion",), "binary", "search",
    )  # fmt: skip
    found = data.values(p)
    assert (found.groups["sex=F"], found.worst, found.worst_name) == (1, 0, "sex=M")
    mark = (score > 0.5).astype(int)
    assert data.follows(score, mark, label[:, 0]) == 1
    assert data.follows(-score, mark, label[:, 0]) == 0


@pytest.mark.slow
def test_copies_are_attacked_apart_from_patients_who_are_there_once(tmp_path, monkeypatch):
    monkeypatch.setattr(planted_memory, "ORIGINALS", 30)
    monkeypatch.setattr(planted_memory, "STRANGERS", 60)
    recipes = {"full": {**planted_memory.RECIPES["full"], "lr": 3e-4}}
    monkeypatch.setattr(planted_memory, "RECIPES", recipes)
    size = replace(TINY, epochs=6)
    planted_memory.memory(tmp_path, [0], size)
    file = planted_memory.memory_file(tmp_path, size.epochs)
    assert (file.name, planted_memory.memory_file(tmp_path, 12).name) == (
        "memory-6.csv",
        "memory.csv",
    )
    lines = planted_memory.read(file, planted_memory.MEMORY)
    value = {(c["members"], c["attack"]): float(c["value"]) for c in lines}
    assert set(value) == {
        (m, a) for m in ("1 x", "2 x", "4 x", "as in a run") for a in ("loss", "confidence")
    }
    assert value["4 x", "loss"] > 0.1
    planted_memory.memory(tmp_path, [0], size)
    assert planted_memory.read(file, planted_memory.MEMORY) == lines
    assert "| full |" in "\n".join(planted_report.memory_lines(lines))


@pytest.mark.slow
def test_strangers_raise_no_alarm_and_true_labels_outside_do(tmp_path, monkeypatch):
    size = replace(TINY, population=2200)
    monkeypatch.setattr(planted_memory, "SIZE", size)
    monkeypatch.setattr(planted_memory, "TRAINED", {})
    planted_memory.alarm(tmp_path, 6, [0], 0.9, size)
    lines = planted_memory.read(tmp_path / "alarm.csv", planted_memory.ALARM)
    value = {
        model: np.mean([float(c["value"]) for c in lines if c["model"] == model])
        for model in {c["model"] for c in lines}
    }
    assert abs(value["stranger"]) < 0.03
    assert value["stranger, true labels outside"] < value["stranger"] - 0.003
    assert "| stranger | loss | 6 |" in "\n".join(planted_report.alarm_lines(lines))


def test_a_cheap_run_knows_its_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(planted_coverage, "PATIENTS", 400)
    monkeypatch.setattr(planted_coverage, "STRENGTHS", (0.1,))
    size = replace(TINY, population=500, fresh=300)
    planted_coverage.coverage(tmp_path, 1, 0.9, size)
    lines = planted_memory.read(tmp_path / "coverage.csv", planted_coverage.COVERAGE)
    assert len(lines) == 2 * len(planted_coverage.ESTIMATES)
    assert all(0 < float(c["truth"]) < 1 for c in lines if "minus" not in c["estimate"])
    assert "search, the pick as it was chosen" in "\n".join(planted_report.coverage_lines(lines))
    people, frozen = data.population(tmp_path, 0.9, size)
    cheap = planted_coverage.Cheap.drawn(0, people, frozen)
    splits = [set(cheap.rows[s].patient.tolist()) for s in ("train", "search", "confirm", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 400
    name = "6 token 0.1"
    assert not np.array_equal(cheap.head(name, 0).weight, cheap.head(name, 1).weight)
    # The truth of a head that says nothing.
    others, fresh = data.fresh(tmp_path, 0.9, size)
    cheap.heads[name, 0] = Probe(np.zeros((1, 384)), np.zeros(1))
    assert cheap.true(name, (0,), "auroc", (others.rows(), fresh)) == 0.5


def test_coverage_counts_what_is_inside():
    cells = [
        {"metric": "auroc", "estimate": planted_coverage.ESTIMATES[4], "value": "0.8",
         "low": "0.7", "high": "0.9", "truth": truth}
        for truth in ("0.7", "0.75", "0.69", "0.9")
    ]  # fmt: skip
    (row,) = list(planted_report.coverage_lines(cells))[2:]
    assert "| 4 | 75.0% |" in row


def test_every_candidate_of_a_pool_is_its_own():
    facts = data.network(42).facts
    for kind, count in (("mixed", 24), ("late", 16), ("few-women", 24)):
        design = planted_pool.DESIGNS[kind]
        raws = design.pool
        assert len({canonical(raw, facts).fingerprint for raw in raws.values()}) == count
        assert set(design.floor) <= set(raws)
