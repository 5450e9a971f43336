"""The outer loop: what starts next, what an outcome means, and that a kill loses nothing."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fake_driver
import pytest
from fake_driver import drive, evaluate, make_engine

from autopeft.evaluation import Cost
from autopeft.job import Outcome
from autopeft.schedule import fold_ladder
from autopeft.study import Study


def ok(job, value, state="s"):
    return Outcome("ok", epoch=job.stop, cost=Cost(1, 4), state=state, extra={"value": value})


def finish_job(engine, value=0.7, job=None):
    job = job or engine.next_job()
    return job, engine.record(job, ok(job, value, state=job.name), evaluate)


def test_promotion_comes_before_a_new_candidate(tmp_path):
    engine = make_engine(tmp_path, trials=4)
    for value in (0.7, 0.9, 0.8):
        job, _ = finish_job(engine, value)
        assert (job.start, job.stop, job.state) == (0, 1, None)
    job = engine.next_job()
    assert job.candidate == engine.study.entry(1).candidate
    assert (job.start, job.stop) == (1, 3)
    assert job.state == engine.study.entry(1).rungs[1].outcome.state
    assert engine.next_job().candidate not in [engine.study.entry(n).candidate for n in range(3)]
    assert engine.next_job() is None  # four trials asked for, two jobs out
    assert engine.running == 2


def test_the_search_ends_with_a_full_training_however_few_trials(tmp_path):
    for trials in (1, 2, 5):
        engine = make_engine(tmp_path / str(trials), trials=trials)
        stops = []
        while (job := engine.next_job()) is not None:
            stops.append(job.stop)
            finish_job(engine, 0.5 + engine.running / 10, job)
        engine.finish()
        states = Counter(e.state for e in engine.study.entries)
        assert states["complete"] >= 1
        assert states["complete"] + states["pruned"] == trials
        assert stops[-1] == 9


def test_a_stopped_search_starts_only_what_a_front_needs(tmp_path):
    engine = make_engine(tmp_path, trials=10)
    first, second = engine.next_job(), engine.next_job()
    engine.stop("the budget is spent")
    assert engine.next_job() is None  # jobs are out
    finish_job(engine, 0.6, first)
    finish_job(engine, 0.8, second)
    job = engine.next_job()
    assert (job.candidate, job.stop) == (second.candidate, 3)
    finish_job(engine, 0.8, job)
    job, entry = finish_job(engine, 0.8)
    assert (job.stop, entry.state) == (9, "complete")
    assert engine.next_job() is None
    engine.finish()
    assert [e.state for e in engine.study.entries] == ["pruned", "complete"]


def test_what_cannot_pause_is_trained_in_one_stretch(tmp_path):
    engine = make_engine(tmp_path, trials=2, unpaused=lambda candidate: True)
    job, entry = finish_job(engine)
    assert (job.start, job.stop) == (0, 9)
    assert entry.state == "complete"


def test_nan_fails_at_once(tmp_path):
    engine = make_engine(tmp_path, trials=1)
    job = engine.next_job()
    entry = engine.record(job, Outcome("nan", "loss is nan", 0), evaluate)
    assert (entry.state, entry.reason) == ("fail", "nan: loss is nan")
    assert engine.next_job() is None


def test_out_of_memory_gets_one_retry_with_half_the_micro_batch(tmp_path):
    engine = make_engine(tmp_path, trials=1, batch_size=32)
    job = engine.next_job()
    assert job.micro_batch == 0
    engine.record(job, Outcome("oom", "no memory", 0), evaluate)
    again = engine.next_job()
    assert (again.candidate, again.stop, again.micro_batch) == (job.candidate, 1, 16)
    finish_job(engine, 0.7, again)
    later = engine.next_job()
    assert (later.start, later.stop, later.micro_batch) == (1, 3, 16)  # it stays halved
    engine.record(later, Outcome("oom", "no memory", 1), evaluate)
    last = engine.next_job()
    entry = engine.record(last, Outcome("oom", "no memory", 1), evaluate)
    assert (entry.state, entry.reason) == ("fail", "oom: no memory")


def test_a_dead_worker_gets_one_retry_from_the_last_state(tmp_path):
    engine = make_engine(tmp_path, trials=1)
    finish_job(engine)
    job = engine.next_job()
    engine.record(job, Outcome("error", "worker died: gone", 1), evaluate)
    again = engine.next_job()
    assert again == job
    assert again.state is not None
    entry = engine.record(again, Outcome("error", "worker died: gone", 1), evaluate)
    assert (entry.state, entry.reason) == ("fail", "error: worker died: gone")


def test_a_retry_is_remembered_over_a_restart(tmp_path):
    engine = make_engine(tmp_path, trials=1, batch_size=8)
    job = engine.next_job()
    engine.record(job, Outcome("oom", "no memory", 0), evaluate)
    again = make_engine(tmp_path, trials=1, batch_size=8).next_job()
    assert (again.candidate, again.micro_batch) == (job.candidate, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_undefined_rung_metric_fails_with_a_reason(tmp_path, value):
    engine = make_engine(tmp_path, trials=1)
    _, entry = finish_job(engine, value)
    assert entry.state == "fail"
    assert "undefined" in entry.reason


def test_an_undefined_term_fails_only_at_the_end(tmp_path):
    engine = make_engine(tmp_path, trials=1)
    engine.objective.values = lambda evaluation: (evaluation, None)
    _, entry = finish_job(engine)
    assert entry.state == "running"  # a low rung need not define every term
    finish_job(engine)
    _, entry = finish_job(engine)
    assert (entry.state, entry.reason) == ("fail", "objective term 1 is undefined (None)")


def test_an_exhausted_space_ends_the_search(tmp_path):
    engine = make_engine(tmp_path, trials=9)
    proposals = iter([engine._propose(), None])
    engine._propose = lambda: next(proposals)
    finish_job(engine)
    job = engine.next_job()
    assert engine.exhausted
    assert (job.start, job.stop) == (1, 3)


def test_names_are_for_people(tmp_path):
    engine = make_engine(tmp_path, trials=2)
    job = engine.next_job()
    rank = job.candidate.strata[0].options["r"]
    assert engine.name(job) == f"00000-lora-r{rank}-e1"


def test_every_complete_trial_carries_every_constraint(tmp_path):
    import fake_worker

    from autopeft.runners.serial import SerialRunner

    engine = make_engine(tmp_path, "tpe")
    drive(engine, SerialRunner(fake_worker.make_setup(), "fake_worker:run"))
    trials = engine.study._search.trials
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert complete
    assert all(set(t.constraints) == {"floor"} for t in complete)
    assert all(max(e.rungs) == 9 for e in engine.study.entries if e.state == "complete")
    assert Counter(t.state.name for t in trials)["RUNNING"] == 0


def run_driver(folder, seed, kills, sampler="random"):
    folder.mkdir()
    root = Path(fake_driver.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, fake_driver.__file__, folder, str(seed), str(kills), sampler],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "log.txt").read_text().splitlines()


def recordings(folder):
    """How often each rung of each trial was written to the journal."""
    lines = (folder / "study.journal").read_text().splitlines()
    written = [op for op in map(json.loads, lines) if "trial_id" in op]
    attrs = [(op["trial_id"], key) for op in written for key in op.get("user_attr", {})]
    return Counter(attr for attr in attrs if attr[1].startswith("rung/"))


def test_a_driver_killed_at_any_moment_loses_nothing_and_repeats_nothing(tmp_path):
    run_driver(tmp_path / "whole", 0, kills=0)
    reference = Study(tmp_path / "whole", ("maximize", "minimize")).entries
    assert {e.state for e in reference} == {"complete", "pruned", "fail"}
    torn = 0
    for seed in range(2):
        folder = tmp_path / str(seed)
        recorded = set()
        for line in run_driver(folder, seed, kills=9):
            what, job, status = line.split()
            assert not (what == "trained" and job in recorded), f"{job} was trained again"
            if what == "recorded" and status == "ok":
                recorded.add(job)
        assert set(recordings(folder).values()) == {1}
        study = Study(folder, ("maximize", "minimize"))
        assert all(e.state != "running" for e in study.entries)
        assert all(e.reason for e in study.entries if e.state == "fail")
        assert all(set(t.constraints) == {"floor"} for t in study._search.trials if t.values)
        # With random sampling the candidates do not depend on what came back, or when.
        assert [e.candidate for e in study.entries] == [e.candidate for e in reference]
        torn += len(list(folder.glob("*.torn-*")))
    assert torn, "no kill hit an append: the test does not test torn journals"


# ---- folds, several terms -----------------------------------------------------------------------


def test_folds_are_rungs(tmp_path):
    """Three candidates, five folds: worked by hand."""
    engine = make_engine(tmp_path, trials=3, ladder=fold_ladder(9))
    seen = []

    def judge(outcomes):
        return (
            sum(o.extra["value"] for o in outcomes) / len(outcomes),
            [o.extra["value"] for o in outcomes],
        )

    engine.objective.values = lambda values: (values[-1], len(values))
    engine.objective.violations = lambda values: {"floor": -1.0}
    while (job := engine.next_job()) is not None:
        number = [e.candidate for e in engine.study.entries].index(job.candidate)
        assert (job.start, job.stop, job.state) == (0, 9, None)
        seen.append((number, job.part, engine.name(job).split("-")[-1]))
        engine.record(job, ok(job, (0.5, 0.9, 0.7)[number]), judge)
    engine.finish()
    # One fold of each; the best of the three does two more, alone at that rung, so that it is
    # promoted only at the end, for the last two.
    assert seen == [
        (0, "all", "fold0"), (1, "all", "fold0"), (2, "all", "fold0"),
        (1, "fold:1", "fold1"), (1, "fold:2", "fold2"),
        (1, "fold:3", "fold3"), (1, "fold:4", "fold4"),
    ]  # fmt: skip
    best = engine.study.entry(1)
    assert best.state == "complete"
    assert list(best.rungs) == [1, 2, 3, 4, 5]
    assert best.last.values == (0.9, 5)
    assert (
        engine.study.entry(0).reason == "stopped after 1 fold: not among the best 1/3 of its rung"
    )


def test_a_trial_between_two_fold_rungs_goes_on_after_a_restart(tmp_path):
    def judge(outcomes):
        return 0.7, 0.7

    engine = make_engine(tmp_path, trials=4, ladder=fold_ladder(9))
    for _ in range(4):  # three first folds, then the second of the best
        job = engine.next_job()
        engine.record(job, ok(job, 0.7), judge)
    again = make_engine(tmp_path, trials=4, ladder=fold_ladder(9))
    job = again.next_job()
    assert (job.part, job.candidate) == ("fold:2", again.study.entry(0).candidate)


def test_several_terms_promote_by_their_front(tmp_path):
    """The second term is minimized; the best first term and the best second term go on."""
    engine = make_engine(tmp_path, trials=6)
    engine.objective.promoting = ((0, 1), (1, -1))
    table = [(0.9, 9.0), (0.5, 1.0), (0.8, 8.0), (0.4, 2.0), (0.3, 3.0), (0.2, 4.0)]
    engine.objective.values = lambda number: table[number]
    engine.objective.violations = lambda number: {}
    out = [engine.next_job() for _ in range(6)]
    for number, job in enumerate(out):
        engine.record(job, ok(job, 0.5), lambda outcomes, number=number: (0.5, number))
    candidates = [e.candidate for e in engine.study.entries]
    promoted = [candidates.index(engine.next_job().candidate) for _ in range(2)]
    assert promoted == [0, 1]
    assert engine.next_job() is None


def test_a_runner_without_slots_is_waited_for(tmp_path):
    """All nodes of a cluster are gone for a while: the search is not over."""
    import fake_worker

    from autopeft.engine import drive as drive_engine
    from autopeft.runners.serial import SerialRunner

    class Elastic(SerialRunner):
        slots, waits = 0, 0

        def wait(self):
            self.waits += 1
            self.slots = 0 if self.waits < 3 else 1
            return super().wait() if self._queue else []

    engine = make_engine(tmp_path, trials=3)
    runner = Elastic(fake_worker.make_setup(), "fake_worker:run")
    drive_engine(engine, runner, evaluate)
    assert runner.waits > 3
    assert {e.state for e in engine.study.entries} == {"complete", "pruned"}


def test_stopped_trials_say_why(tmp_path):
    engine = make_engine(tmp_path, trials=9)
    jobs = [engine.next_job() for _ in range(2)]
    engine.stop("asked to stop")
    engine.stop("the budget is spent")
    assert engine.stopped == "asked to stop"
    for value, job in zip((0.8, 0.6), jobs, strict=True):
        finish_job(engine, value, job)
    while (job := engine.next_job()) is not None:
        finish_job(engine, 0.8, job)
    engine.finish()
    assert [e.reason for e in engine.study.entries] == [
        "",
        "stopped after 1 epoch: asked to stop",
    ]


def test_a_search_that_was_stopped_goes_on_with_those_that_were_paused(tmp_path):
    """Stopped, not yet answered, started again: none was told, and the best goes on."""
    import fake_worker

    from autopeft.engine import drive as drive_engine
    from autopeft.runners.serial import SerialRunner

    engine = make_engine(tmp_path, trials=7)
    calls = []

    def moment():
        calls.append(1)
        if len(calls) > 5:
            engine.stop("the budget is spent")

    runner = SerialRunner(fake_worker.make_setup(), "fake_worker:run")
    drive_engine(engine, runner, evaluate, moment=moment, tell=False)
    first = Study(tmp_path, ("maximize", "minimize")).entries
    assert {e.state for e in first} == {"running", "complete"}
    again = make_engine(tmp_path, trials=7)
    drive_engine(again, SerialRunner(fake_worker.make_setup(), "fake_worker:run"), evaluate)
    whole = make_engine(tmp_path / "whole", trials=7)
    drive_engine(whole, SerialRunner(fake_worker.make_setup(), "fake_worker:run"), evaluate)
    assert {e.state for e in again.study.entries} == {"complete", "pruned"}
    for rung in (1, 3):  # who stands best at a rung has gone on, as in an undisturbed search
        ranked = sorted(
            (e for e in again.study.entries if rung in e.rungs),
            key=lambda e: -e.rungs[rung].value,
        )
        assert max(ranked[0].rungs) > rung
    assert [e.candidate for e in again.study.entries] == [e.candidate for e in whole.study.entries]


def test_a_trial_whose_files_are_gone_begins_again(tmp_path):
    engine = make_engine(tmp_path, trials=4, kept=lambda outcome: False)
    for value in (0.7, 0.9, 0.8):
        finish_job(engine, value)
    job = engine.next_job()
    assert job.candidate == engine.study.entry(1).candidate
    assert (job.start, job.stop, job.state) == (0, 3, None)
