"""The replay of searches on a table: the clock, the costs, the answers and the contestants."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "search_quality"
sys.path.insert(0, str(FOLDER))

import contestants  # noqa: E402
import curves  # noqa: E402
import measures  # noqa: E402
import replay  # noqa: E402
import train_table  # noqa: E402

from autopeft.backbones.weights import load_backbone  # noqa: E402
from autopeft.job import Job  # noqa: E402
from autopeft.space import load_space, read_space  # noqa: E402

TINY = """
methods:
  bitfit:
    last: {choices: [1, 6]}
    lr: {choices: [1e-4, 1e-3, 1e-2]}
    head_init: {choices: [probe, random]}
  linear_probe: {weight_decay: {choices: [1e-3, 1e-1]}}
"""


@pytest.fixture(scope="module")
def facts() -> Any:
    return load_backbone("autopeft_vit_nano", None, 28, offline=True).facts


def curve(name: str, values: list[float], each: float = 1.0, params: int = 10) -> curves.Curve:
    terms = dict.fromkeys(curves.TERMS, tuple(values))
    text = curves.key({"method": "bitfit", "bitfit.lr": name})
    return curves.Curve(text, terms, tuple(each * (i + 1) for i in range(len(values))), params)


@pytest.fixture
def race(facts: Any) -> contestants.Race:
    """14 candidates of 9 epochs; one is best (lr 1e-3, 6 blocks, probe), one diverges."""
    space, found = read_space(TINY, "tiny"), {}
    for params in train_table.grid(space):
        name = curves.key(params)
        if params["method"] == "linear_probe":
            values, each = [0.70 + params["linear_probe.weight_decay"] / 10] * 9, 0.0
        else:
            goal = 0.8 - 0.1 * abs(np.log10(params["bitfit.lr"]) + 3)
            goal += 0.02 * (params["bitfit.head_init"] == "probe")
            each = float(params["bitfit.last"])
            goal += each / 100
            values = [goal - 0.2 / (e + 1) for e in range(1, 10)]
        terms = {t: tuple(values) for t in curves.TERMS}
        seconds = tuple(each * (i + 1) if each else 0.5 for i in range(9))
        found[name] = curves.Curve(name, terms, seconds, int(100 * each) + 7)
    bad = next(k for k in found if '"bitfit.lr":0.01' in k and '"bitfit.last":6' in k)
    found[bad] = replace(
        found[bad],
        values={t: v[:2] for t, v in found[bad].values.items()},
        seconds=found[bad].seconds[:3],
    )
    table = curves.Table(found, 9)
    return contestants.Race(table, space, facts, contestants.AUROC, 2, 200.0)


# ---- table -----------------------------------------------------------------------------------


def test_a_torn_line_is_cut_and_what_is_done_is_not_trained_again(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [
        {"params": "a", "epoch": e, "status": "ok", **dict.fromkeys(curves.TERMS, 0.5 + e / 100),
         "seconds": e, "trainable_params": 3}
        for e in range(1, 10)
    ]  # fmt: skip
    train_table.append(table, rows, ["trained somewhere"])
    train_table.append(table, [{"params": "b", "epoch": 1, "status": "nan", "seconds": 2}], [])
    whole = table.read_bytes()
    with table.open("ab") as file:
        file.write(b"c,1,ok,0.")
    assert train_table.read_keys(table) == {"a", "b"}
    assert table.read_bytes() == whole
    read = curves.read_table(table)
    assert read.about == ("trained somewhere",)
    assert read.curves["a"].value("search_auroc", 9) == pytest.approx(0.59)
    assert read.curves["b"].diverged == 1
    assert [c.key for c in read.full] == ["a"]


def test_the_committed_table_is_the_whole_grid_and_names_nobody() -> None:
    file = FOLDER / "table.csv"
    assert file.stat().st_size < 1_000_000
    table = curves.read_table(file)
    grid = {curves.key(p) for p in train_table.grid(load_space(str(replay.SPACE)))}
    assert set(table.curves) == grid
    lines = [li for li in file.read_text().splitlines() if not li.startswith("#")]
    assert tuple(next(csv.reader(lines))) == train_table.COLUMNS
    assert not any(word in file.read_text() for word in (".jpg", ".png", "images/", "patient"))
    # What a search has to find: most candidates are clearly worse than the best.
    final = np.array([c.value("search_auroc", table.epochs) for c in table.full])
    assert final.max() - np.median(final) > 0.01


# ---- clock and costs -------------------------------------------------------------------------


def test_the_clock_ends_jobs_by_time_and_equal_ones_by_their_start() -> None:
    clock = contestants.Clock()
    for seconds, name in ((3.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.start(seconds, name)
    assert [clock.next(), clock.now] == ["a", 1.0]
    clock.start(0.5, "d")
    assert [clock.next() for _ in range(3)] == ["b", "d", "c"]
    assert clock.now == 3.0


def test_a_resumed_rung_costs_only_its_own_epochs(race: contestants.Race) -> None:
    history = contestants.History()
    by_fingerprint = contestants.by_fingerprint(race)
    runner = contestants.TableRunner(race, history, by_fingerprint)
    slow = next(c for c in race.table.full if '"bitfit.last":6' in c.key)
    found = next(f for f, c in by_fingerprint.items() if c is slow)
    candidate = race.ask(contestants.optuna.trial.FixedTrial(json.loads(slow.key)))
    assert candidate.fingerprint == found
    for start, stop, now in ((0, 1, 6.0), (1, 3, 18.0), (3, 9, 54.0)):
        runner.submit(Job("rung", "", candidate, start=start, stop=stop))
        ((_, outcome),) = runner.wait()
        assert outcome.status == "ok"
        assert runner.clock.now == pytest.approx(now)
    assert [(s.time, s.epoch) for s in history.seen] == [(6.0, 1), (18.0, 3), (54.0, 9)]


def test_a_free_repeat_costs_only_what_nobody_trained_before() -> None:
    one = curve("x", [0.5] * 9, each=2.0)
    paid = contestants.Paid(free=False)
    assert [paid.cost(one, 0, 9), paid.cost(one, 0, 9)] == [18.0, 18.0]
    free = contestants.Paid(free=True)
    assert [free.cost(one, 0, 3), free.cost(one, 0, 3), free.cost(one, 0, 9)] == [6.0, 0.0, 12.0]


# ---- measures --------------------------------------------------------------------------------


def test_the_answer_is_the_best_fully_trained_or_the_best_last_result() -> None:
    a, b = curve("a", [0.7, 0.6, 0.65]), curve("b", [0.8, 0.5, 0.6])
    table = curves.Table({"a": a, "b": b}, 3)
    seen = [(1.0, 0, a, 1), (2.0, 1, b, 1), (3.0, 0, a, 3), (4.0, 1, b, 3)]
    history = contestants.History([contestants.Seen(*s) for s in seen])
    times = [0.5, 1.0, 2.0, 3.0, 4.0]
    full = [search for search, _ in measures.incumbents(history, table, times)]
    assert full == [0.5, 0.5, 0.5, 0.65, 0.65]
    last = [search for search, _ in measures.incumbents(history, table, times, trained=False)]
    assert last == [0.5, 0.7, 0.8, 0.8, 0.65]


def test_hypervolume_by_hand() -> None:
    points = [(0.7, 0.6), (0.6, 0.8), (0.6, 0.55), (0.4, 0.9)]
    # 0.2 x 0.1 below the first point, 0.1 x 0.2 more for the second; the others add nothing.
    assert measures.hypervolume(points, (0.5, 0.5)) == pytest.approx(0.04)
    assert measures.hypervolume([], (0.5, 0.5)) == 0.0


def test_small_counts_parameters_as_logarithms() -> None:
    table = curves.Table(
        {"a": curve("a", [0.7], params=10), "b": curve("b", [0.9], params=1000)}, 1
    )
    history = contestants.History(
        [
            contestants.Seen(1.0, 0, table.curves["a"], 1),
            contestants.Seen(2.0, 1, table.curves["b"], 1),
        ]
    )
    values = measures.hypervolumes(history, table, contestants.SMALL, [0.0, 1.0, 2.0])
    # b lies on the corner's edge: it has the most parameters.
    assert values == pytest.approx([0.0, 1.0, 1.0])


def test_intervals_hold_the_mean_of_equal_and_of_spread_values() -> None:
    assert measures.mean_interval(np.full(20, 0.3)) == pytest.approx((0.3, 0.3, 0.3))
    mean, low, high = measures.mean_interval(np.arange(20.0))
    assert mean == 9.5
    # Normal approximation: 1.96 * 5.77 / sqrt(20) = 2.53.
    assert low == pytest.approx(9.5 - 2.53, abs=0.15)
    assert high == pytest.approx(9.5 + 2.53, abs=0.15)


# ---- races -----------------------------------------------------------------------------------


def check(history: contestants.History, race: contestants.Race) -> None:
    """Time rises, no worker is in two places, and results are those of the table."""
    times = [s.time for s in history.seen]
    assert times == sorted(times)
    assert all(s.epoch <= race.table.epochs for s in history.seen)
    spent: dict[int, float] = {}
    for seen in history.seen:
        spent[seen.trial] = seen.curve.cost(0, seen.epoch)
    assert sum(spent.values()) <= race.workers * max(times) + 1e-6


def test_autopeft_finds_the_best_without_repeating_anything(race: contestants.Race) -> None:
    history = contestants.autopeft(race, 0)
    check(history, race)
    assert history.repeats == 0
    goal = race.table.best("search_auroc")
    assert measures.incumbents(history, race.table, [200.0])[0][0] == pytest.approx(goal)
    full = [s for s in history.seen if s.epoch == 9]
    assert 0 < len(full) < len({s.trial for s in history.seen})  # the others were not trained on
    assert history == contestants.autopeft(race, 0)


def test_autopeft_without_pruning_trains_all_to_the_end(race: contestants.Race) -> None:
    history = contestants.autopeft(race, 0, sampler="random", pruning=False)
    check(history, race)
    assert {s.epoch for s in history.seen} == {9}


@pytest.mark.parametrize("play", [contestants.optuna_tpe, contestants.random_search])
def test_peers_without_pruning_pay_for_repeats(race: contestants.Race, play: Any) -> None:
    history = play(race, 1)
    check(history, race)
    assert {s.epoch for s in history.seen} == {9}
    assert history.repeats > 0  # 14 candidates, 200 seconds
    assert len(history.asked) < len(play(race, 1, free=True).asked)


def test_several_terms_race_too(race: contestants.Race) -> None:
    fair = replace(race, aim=contestants.SMALL, seconds=60.0)
    for play in (contestants.autopeft, contestants.optuna_tpe):
        values = measures.hypervolumes(play(fair, 0), race.table, fair.aim, [0.0, 60.0])
        assert values[0] == 0
        assert 0 < values[1] <= 1


@pytest.mark.slow
def test_tune_stops_what_is_below_the_best_third_and_counts_its_epochs(
    race: contestants.Race,
) -> None:
    history = contestants.tune(replace(race, workers=1), 0)
    check(history, race)
    stepped = [s for s in history.seen if not s.curve.fitted]
    reached = {s.trial: s.epoch for s in stepped}
    assert 1 in reached.values()
    assert 9 in reached.values()
    # The rule by hand: stopped at epoch 1 when below the 2/3 quantile of those before it.
    before: list[float] = []
    for seen in stepped:
        if seen.epoch == 1:
            value = seen.curve.value("search_auroc", 1)
            stops = bool(before) and value < np.percentile(before, 100 * 2 / 3)
            assert (reached[seen.trial] == 1) == stops
            before.append(value)
