"""The simulation behind docs/protocol.md: its truth is true, its steps are the tool's own."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import protocol  # noqa: E402
import protocol_truth as truth  # noqa: E402

from autopeft.evaluation import Cost, Evaluation  # noqa: E402
from autopeft.metrics.classification import auroc  # noqa: E402
from autopeft.objective import load_objective  # noqa: E402
from autopeft.replay import replay  # noqa: E402


def world(auroc=((0.85,), (0.75,)), **options):
    return truth.World(np.array(auroc), 7, **options)


def test_the_auroc_of_a_large_table_is_the_declared_truth():
    w = world([[0.90, 0.70], [0.75, 0.80]], images=3)
    test = w.patients("test", 12_000)
    for k in range(2):
        p = test.scored(k)
        for g in range(2):
            assert auroc(p.take(test.group == g)) == pytest.approx(w.truth(k, 0, g), abs=0.012)
    assert 1 < len(test.patient) / 24_000 / 3 + 0.01 < 1.02  # images a patient
    first = np.diff(test.patient, prepend=-1) > 0
    assert test.label[first].mean() == pytest.approx(0.4)


def test_seeds_move_the_truth_around_that_of_the_recipe():
    w = world(seed_sd=0.01)
    seeds = [w.truth(0, s) for s in range(400)]
    assert np.mean(seeds) == pytest.approx(0.85, abs=0.002)
    assert np.std(seeds) == pytest.approx(0.01, abs=0.002)
    extreme = int(np.argmin(seeds))
    found = auroc(w.patients("test", 30_000).scored(0, extreme))
    assert found == pytest.approx(seeds[extreme], abs=0.005)


def test_what_candidates_and_seeds_share():
    test = world().patients("test", 20_000)
    ill = test.label == 1
    a, b, again = (test.scored(k, s).score[ill, 0] for k, s in ((0, 0), (1, 0), (0, 1)))
    assert a.var() == pytest.approx(1, abs=0.03)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(truth.SHARED, abs=0.02)
    assert np.corrcoef(a, again)[0, 1] == pytest.approx(truth.SHARED + truth.OWN, abs=0.01)
    images = world(images=4).patients("search", 5_000)
    same = np.diff(images.patient) == 0
    score = images.scored(0).score[:, 0] - 1.466 * images.label
    assert np.corrcoef(score[:-1][same], score[1:][same])[0, 1] == pytest.approx(0.6, abs=0.05)


def test_the_same_patients_come_again_and_every_draw_is_another():
    w = world()
    once, twice = (w.patients("test", 50).scored(1, 2).score for _ in "ab")
    assert (once == twice).all()
    drawn = [
        w.patients("search", 50).hard,
        w.patients("test", 50).hard,
        *(truth._noise(w.draws("test", *x), np.arange(50)) for x in ((0,), (1,), (0, 0), (0, 1))),
        truth.World(w.auroc, 8).patients("test", 50).hard,
    ]
    assert len({x.tobytes() for x in drawn}) == len(drawn)
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 0.6


def slow_replay(found, draws, seed):
    """Bootstrap bias correction, patient by patient and pair by pair: its mean and its spread."""
    search = found[0].search
    ids = sorted(set(search.patient))
    rng, kept = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = rng.choice(len(ids), len(ids))
        inside = [i for d in drawn for i in np.flatnonzero(search.patient == ids[d])]
        outside = [i for i in range(len(search.patient)) if search.patient[i] not in drawn]
        values = [by_pairs(e.search, inside) for e in found]
        kept.append(by_pairs(found[int(np.argmax(values))].search, outside))
    return np.mean(kept), np.std(kept) / np.sqrt(draws)


def by_pairs(p, rows):
    score, y = p.score[rows, 0], p.target[rows, 0]
    gap = score[y == 1][:, None] - score[y == 0][None]
    return np.mean((gap > 0) + (gap == 0) / 2)


def test_replay_agrees_with_a_slow_one():
    w = truth.World(truth.differing(np.random.default_rng(2), 12, 0.8, 0.01), 5, images=2)
    search = w.patients("search", 90)
    found = [Evaluation(search.scored(k), Cost(10 + k, 10)) for k in range(12)]
    tool = replay(found, load_objective("auroc"), n=600).corrected["auroc"]
    mean, error = slow_replay(found, 300, 1)
    assert tool.value == pytest.approx(mean, abs=4 * error)
    assert tool.naive == max(auroc(e.search) for e in found)
    assert tool.naive - mean > 8 * error  # so that no correction at all would be seen


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(protocol, "CANDIDATES", 6)
    monkeypatch.setattr(protocol, "REPLAYS", 40)


def test_a_search_from_search_to_verdict(small):
    row = protocol.one_search(100, "equal", 3)
    assert set(row) >= {"search", "reseeded", "replay", "confirm", "test", "naive_word", "word"}
    assert row["regret_pick"] == row["regret_winner"] == row["gain"] == 0
    assert all(abs(row[k]) < 0.25 for k in ("search", "reseeded", "replay", "confirm", "test"))
    assert protocol.one_search(100, "equal", 3) == row
    differ = protocol.one_search(100, "differ", 3)
    assert differ["regret_pick"] >= 0
    assert differ["gain"] != 0


def test_searching_is_optimistic_and_new_patients_are_not(small, monkeypatch):
    monkeypatch.setattr(protocol, "CANDIDATES", 25)
    rows = [protocol.one_search(100, "equal", n) for n in range(12)]
    means = {k: np.mean([r[k] for r in rows]) for k in ("search", "reseeded", "confirm", "replay")}
    assert means["search"] > means["reseeded"] > 0.015
    assert abs(means["confirm"]) < 0.03 > abs(means["replay"])


def test_words_follow_a_large_truth():
    for difference, word in ((0.08, "better"), (-0.08, "worse")):
        row = protocol.one_contrast(1500, 2, difference, 1)
        assert row["word"] == word
        assert row["kept"] == (word == "better")
        assert row["low"] <= difference <= row["high"]


def test_the_worst_group_is_judged_by_every_group():
    better = protocol.one_worst(5000, 1, "winner .05 better", 2)
    assert better == {"plain": "better", "word": "better"}
    rows = [
        protocol.one_worst(150, 1, "winner .005 worse, its groups differ", n) for n in range(20)
    ]
    assert sum(r["word"] == "better" for r in rows) <= sum(r["plain"] == "better" for r in rows)


def test_the_interval_of_a_recipe():
    row = protocol.one_recipe(200, 3, 0.02, 1)
    assert 0 < row["seed_share"] < 1
    assert row["patients_alone_width"] < row["satterthwaite_width"] <= row["width"] * 1.0001


def test_it_goes_on_where_it_stopped(small, monkeypatch, tmp_path, capsys):
    one, _ = protocol.STUDIES["verdict"]
    cases = [protocol.Case({"difference": d, "patients": 60, "images": 1}, 2) for d in (0.0, 0.05)]
    monkeypatch.setitem(protocol.STUDIES, "verdict", (one, cases[:1]))
    protocol.simulate(tmp_path, ["verdict"], 1)
    first = (tmp_path / "verdict.csv").read_text()
    assert protocol.simulate(tmp_path, ["verdict"], 0) is None
    monkeypatch.setitem(protocol.STUDIES, "verdict", (one, cases))
    protocol.simulate(tmp_path, ["verdict"], 1)
    assert (tmp_path / "verdict.csv").read_text().startswith(first)
    with (tmp_path / "verdict.csv").open(newline="") as file:
        assert [r["case"] for r in csv.DictReader(file)] == ["0.0 60 1"] * 2 + ["0.05 60 1"] * 2
    protocol.report(tmp_path)
    printed = capsys.readouterr().out
    assert "| +0.00 | 60 | 2 |" in printed
    assert "| +0.05 | 60 | 2 |" in printed


def test_every_study_has_its_table(small, monkeypatch, tmp_path, capsys):
    few = {
        "search": {"patients": 60, "candidates": "differ"},
        "verdict": {"difference": 0.0, "patients": 60, "images": 1},
        "worst": {"patients": 60, "images": 1, "groups": "equal, no group differs"},
        "recipe": {"seeds": 3, "seed_sd": 0.01, "patients": 60},
    }
    assert set(few) == set(protocol.STUDIES)
    for name, values in few.items():
        one, _ = protocol.STUDIES[name]
        monkeypatch.setitem(protocol.STUDIES, name, (one, [protocol.Case(values, 2)]))
    monkeypatch.setattr(sys, "argv", ["protocol.py", str(tmp_path), "--minutes", "1"])
    protocol.main()
    printed = capsys.readouterr().out
    assert printed.count("\n|---|") == 5
    assert "| 60 | differ | 2 |" in printed
    assert "| equal, no group differs | 2 |" in printed
    assert "| 3 | 0.01 | 60 | 2 |" in printed
