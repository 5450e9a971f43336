"""Who is confirmed, with how many seeds, and who ranks where `confirm` cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_bench import lora, make_bench, silent

from autopeft.bench import Model
from autopeft.candidate import Candidate, Readout, Train
from autopeft.clock import Clock
from autopeft.confirmation import choose_entrants, confirm, shares
from autopeft.entry import Measured
from autopeft.objective import load_objective
from autopeft.progress import Screen
from autopeft.selection import evaluations
from autopeft.settings import Settings
from autopeft.study import Study

PROBE = Candidate((), Train(optimizer="lbfgs"), Readout(6, "avg"))
QUALITY = {0: 0.4, 1: 2.0, 2: 1.9, 3: 1.0}


@pytest.fixture
def searched(tmp_path):
    """A bench with four finished trials and two trained baselines."""
    quality = {lora(2 + i, params=100 - i).fingerprint: q for i, q in QUALITY.items()}
    quality |= {PROBE.fingerprint: 0.2, lora(64).fingerprint: 1.2}
    bench = make_bench(tmp_path, lambda job: quality[job.key[0]], groups=True)
    baselines = [Model("linear_probe", PROBE), Model("lora_r8", lora(64))]
    bench.train(baselines, range(1, 6), "baseline", silent)
    for i in QUALITY:
        candidate = lora(2 + i, params=100 - i)
        bench.study.add(candidate, {}, {})
        bench.train([Model(str(i), candidate)], [0], "x", silent)
        outcome = bench.trained[(candidate.fingerprint, 0)]
        bench.study.record_rung(i, outcome.epoch, Measured(outcome, 0.5, (0.5,)))
        bench.study.complete(i)
    return bench, baselines, evaluations(bench.study, bench.audience, {"auroc": 0.6})


def confirmed(searched, tmp_path, settings, objective="auroc"):
    bench, baselines, pool = searched
    aim = load_objective(objective)
    entrants = choose_entrants(settings, aim, bench, baselines, pool)
    bench.runner.asked.clear()
    clock = Clock(tmp_path)
    return entrants, confirm(
        settings, aim, bench, entrants, baselines, pool, Screen(quiet=True), clock
    )


def seeds_of(won, name):
    return sorted(r for n, r in won.scored if n == name and r)


def test_the_last_two_and_the_baselines_get_more_seeds(searched, tmp_path):
    bench, baselines, _ = searched
    entrants, won = confirmed(searched, tmp_path, Settings(confirm=3))
    names = [m.name for m in entrants.models]
    assert names == ["finalist_0", "finalist_1", "finalist_2", "finalist_3"]
    assert entrants.models[-1].candidate == PROBE
    many = [n for n in names if seeds_of(won, n) == [1, 2, 3, 4, 5]]
    assert len(many) == 2
    assert all(seeds_of(won, n) == [1, 2, 3] for n in names if n not in many)
    assert all(seeds_of(won, m.name) == [1, 2, 3, 4, 5] for m in baselines)
    assert won.picked.name in many
    assert won.opponent.name == "lora_r8"
    assert not won.ranked_by_replay
    asked = [job for job in bench.runner.asked if job.kind == "rung"]
    prints = {m.candidate.fingerprint for m in entrants.models if m.name in many}
    more = {job.candidate.fingerprint for job in asked if job.repeat > 3}
    assert more <= prints
    before = [job for job in asked if job.candidate == PROBE and job.repeat]
    assert before == []  # a baseline's seeds are a finalist's, too


def test_seeds_sets_both(searched, tmp_path):
    entrants, won = confirmed(searched, tmp_path, Settings(confirm=2, seeds=2))
    assert all(seeds_of(won, m.name) == [1, 2] for m in entrants.models)


def test_replays_name_the_finalists(searched):
    bench, baselines, pool = searched
    settings, aim = Settings(confirm=2), load_objective("auroc")
    entrants = choose_entrants(settings, aim, bench, baselines, pool)
    share = shares(entrants.replay, pool)
    assert sum(share.values()) == pytest.approx(1)
    first, second, _ = [m.candidate.fingerprint for m in entrants.models]
    others = [s for f, s in share.items() if f not in (first, second)]
    assert share[second] >= max(others)
    assert choose_entrants(settings, aim, bench, baselines, []).models == []


def test_a_driver_that_was_killed_keeps_its_finalists(searched, monkeypatch):
    """Read again from the journal: another seed of the resamples would change nothing any more."""
    bench, baselines, pool = searched
    aim = load_objective("auroc")
    first = choose_entrants(Settings(confirm=2), aim, bench, baselines, pool)
    bench.study = Study(bench.audience.run_dir, ("maximize",))
    again = choose_entrants(Settings(confirm=2, seed=9), aim, bench, baselines, pool)
    assert again == first


def test_where_confirm_scores_no_group_replays_rank(searched, tmp_path):
    bench, _, pool = searched
    rows = bench.audience.rows["confirm"]
    nobody = {"sex": np.full(len(rows), "unknown")}
    bench.audience.rows["confirm"] = replace(rows, groups=nobody)
    entrants, won = confirmed(searched, tmp_path, Settings(confirm=3), "worst_group")
    assert won.ranked_by_replay
    assert won.metric == "auroc"
    share = shares(entrants.replay, pool)
    picked = won.picked.candidate.fingerprint
    assert share[picked] == max(share.values())
    assert seeds_of(won, won.picked.name) == [1, 2, 3, 4, 5]
