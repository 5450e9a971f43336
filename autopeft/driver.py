"""The story of one run, top to bottom: every step is a call."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from autopeft import protocol
from autopeft import settings as settings_file
from autopeft.backbones.facts import Facts
from autopeft.bench import Bench
from autopeft.candidate import Candidate
from autopeft.clock import Clock
from autopeft.declaring import declare, opening
from autopeft.engine import Engine, drive
from autopeft.errors import RunError, UserError
from autopeft.evaluation import Evaluation
from autopeft.files import disk_trouble, lock
from autopeft.interrupts import Interrupts
from autopeft.job import Job, Outcome, Setup
from autopeft.metrics import METRICS
from autopeft.objective import Objective
from autopeft.parts import FOLDS
from autopeft.prepare import (
    Ready,
    finished,
    make_audience,
    make_setup,
    prepare,
)
from autopeft.progress import Bar, Screen
from autopeft.rehearsal import rehearse
from autopeft.reserve import Due, after_search, kept_back
from autopeft.result import Result
from autopeft.runners import open_runner
from autopeft.runners.early import Early
from autopeft.sampler import Proposer
from autopeft.seals import refuse_changed
from autopeft.settings import Settings
from autopeft.stages import conclude, first_baselines, rung_value
from autopeft.study import Study
from autopeft.writing import write_answer

_SHOW_SECONDS = 1.0  # between two looks at everything, however fast trials come
STATE_LIMIT = 64 * 2**20  # bytes; a trial whose state is larger is never paused


def search(dataset: str = "phantom", **options: Any) -> Result:
    """Searches for the best adapter and confirms it (the command ``autopeft search``).

    The same call on an existing run goes on where it stopped; a finished run answers at once.

    Args:
        dataset: a data set's name or a CSV file.
        **options: fields of ``Settings``, e.g. ``objective="fairness", trials=64``.

    Returns:
        The result, as ``autopeft.load_result`` reads it again later.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    values = settings_file.complete({"dataset": dataset, **options})
    return run(settings_file.from_mapping(values, "autopeft.search"))


def run(settings: Settings) -> Result:
    """Runs or resumes what the settings say."""
    screen, began = Screen(settings.quiet), time.monotonic()
    done = finished(settings)
    if done is not None:
        return done
    _refuse_foreign(settings)
    try:
        with closing(Early(settings)) as early:
            ready = prepare(settings, screen, early.begin)
            rehearse(ready.objective, make_audience(settings, ready, ""), settings.objective)
            with lock(settings.run_dir / ".lock"):
                # Another driver may have finished the run while this one was preparing.
                done = finished(settings)
                return _drive(settings, ready, screen, began, early) if done is None else done
    except OSError as error:
        raise _plain(error, settings) from error


def _plain(error: OSError, settings: Settings) -> Exception:
    """A disk that cannot be written to, in one line; any other error as it is."""
    trouble = disk_trouble(error)
    where = str(error.filename or settings.run_dir)
    if not trouble:
        return error
    if trouble.startswith("the disk is full") or "quota" in trouble:
        return RunError(f"{where}: {trouble}. Make space; the same command goes on.")
    return UserError(trouble, where, "Take a --runs-dir that can be written to.")


# ---- the run ------------------------------------------------------------------------------------


def _drive(settings: Settings, ready: Ready, screen: Screen, began: float, early: Early) -> Result:
    """Baselines, search, confirmation, the one look at test, the answer."""
    folder = settings.run_dir
    settings.save(folder / "settings.yaml")
    study = Study(folder, ready.objective.directions, [t.name for t in ready.objective.terms])
    setup = make_setup(settings, ready, study)
    declared = _declare(settings, ready, study, setup, screen)
    with (
        Clock(folder, began) as clock,
        Interrupts(screen.say) as interrupts,
        closing(open_runner(settings, setup, early=early)) as runner,
    ):
        audience = make_audience(settings, ready, setup.digest())
        value = rung_value(ready.objective, audience)
        most = setup.micro_batch or settings.batch_size
        bench = Bench(audience, study, runner, value, clock.tick, most)
        first = first_baselines(settings, ready, bench, screen, clock)
        reference = study.fact("reference")
        engine = _search(settings, ready, bench, reference, clock, screen, interrupts)
        told = (declared, engine.stopped)
        answer = conclude(settings, ready, bench, first, told, clock, screen)
        won = {"winner": answer.picked.candidate.fingerprint, "against": answer.opponent.name}
        protocol.log(folder, "chosen", **won)
        engine.finish()  # only now: a run that is stopped before may still promote them
        return write_answer(answer, screen)


def _declare(settings: Settings, ready: Ready, study: Study, setup: Setup, screen: Screen) -> str:
    """Writes down what will be called a success, and says what happened since the last start."""
    folder = settings.run_dir
    if study.fact("identity") is None:
        study.fix("identity", uuid.uuid4().hex)
    if study.fact("pixels") not in (None, ready.pixels):
        raise UserError(
            "the images changed since this run was started",
            str(ready.task.root),
            "Put them back, or take a new --name.",
        )
    study.fix("pixels", ready.pixels)
    declared = protocol.write_protocol(folder, declare(settings, ready, setup))
    for line in (study.repaired, *protocol.since_last_start(folder)):
        if line:
            screen.say(line)
    _refuse_lost(study, folder, ready.folds)
    refuse_changed(folder, study.outcomes)
    known = {"trials": settings.trials, "recorded": study.count}
    protocol.log_start(folder, protocol=declared, pid=os.getpid(), **known)
    screen.say(opening(settings, ready, setup))
    return declared


def _refuse_lost(study: Study, folder: Path, folds: bool) -> None:
    """Scores that are still looked at: of finished trials, and of every fold of one under way."""
    for entry in study.entries:
        needed = entry.outcomes if folds and entry.state in ("running", "complete") else []
        if entry.state == "complete" and not folds:
            needed = entry.outcomes[-1:]
        for lost in (o.predictions for o in needed if o.predictions):
            if not (folder / "predictions" / lost).exists():
                raise RunError(
                    f"{folder}/predictions/{lost} of trial {entry.number} is missing. "
                    "Put it back, or take a new --name."
                )


def _search(
    settings: Settings,
    ready: Ready,
    bench: Bench,
    reference: dict[str, float],
    clock: Clock,
    screen: Screen,
    interrupts: Interrupts,
) -> Engine:
    """The outer loop: promotions and new candidates until trials or budget are spent."""
    engine = make_engine(settings, ready, bench)
    audience, objective, runner = bench.audience, ready.objective, bench.runner
    due = after_search(settings, objective.needs, ready.task, ready.folds)

    def evaluate(outcomes: Sequence[Outcome]) -> tuple[float | None, Evaluation]:
        evaluation = audience.trial(outcomes, reference)
        value = METRICS[objective.rung](evaluation)
        if value is None and len(outcomes) < len(audience.folds):
            # The first folds hold too few patients of a group, the same ones for every trial.
            value = METRICS["auroc"](evaluation)
        return value, evaluation

    unit = "folds" if ready.folds else "rungs"
    with clock.part("search"), screen.bar(f"searching ({unit})") as bar:
        shown = -math.inf

        def moment() -> None:
            nonlocal shown
            _stop_when_spent(settings, due, bench, engine, clock)
            if interrupts.asked:
                engine.stop("asked to stop by Ctrl-C")
            clock.tick()
            if time.monotonic() - shown > _SHOW_SECONDS:
                shown = time.monotonic()
                _show(settings, bench, objective, bar)

        def known(job: Job) -> Outcome | None:
            outcome = bench.study.done(job)
            return outcome if outcome is not None and bench.is_there(outcome) else None

        drive(engine, runner, evaluate, known, moment, tell=False)
        _show(settings, bench, objective, bar)
    return engine


def make_engine(settings: Settings, ready: Ready, bench: Bench) -> Engine:
    """What decides: proposals from the space, rungs, promotions."""
    from autopeft.methods import canonical

    facts, space = ready.network.facts, ready.space
    has_groups = any(len(g) > 1 for g in ready.counted.groups.values())
    proposer = Proposer(
        bench.study,
        lambda trial: canonical(space.ask(trial, facts, has_groups), facts),
        space.defaults(facts, has_groups, len(ready.task.rows("train"))),
        ready.ladder(settings.epochs),
        settings.sampler,
        settings.seed,
        settings.trials,
    )
    return Engine(
        bench.study,
        proposer.ask,
        ready.objective,
        ready.ladder(settings.epochs),
        # Once test is opened the search is closed, whatever a budget would still allow.
        bench.study.count if protocol.test_opened(settings.run_dir) else settings.trials,
        bench.audience.setup,
        bench.batch_size,
        finalists=settings.confirm,
        unpaused=lambda candidate: _is_unpaused(candidate, facts),
        kept=bench.is_there,
    )


def _is_unpaused(candidate: Candidate, facts: Facts) -> bool:
    """Trained in one stretch: a probe is solved, and a large state is not worth keeping."""
    from autopeft.methods import METHODS

    methods = [(METHODS[s.method].make(dict(s.options)), s) for s in candidate.strata]
    changed = sum(m.parameter_count(facts, s, candidate.readout) for m, s in methods)
    large = 12 * changed > STATE_LIMIT  # weights and two moments, fp32
    return not methods or large or not all(m.pausable for m, _ in methods)


def _show(settings: Settings, bench: Bench, objective: Objective, bar: Bar) -> None:
    """The state of the search for people: progress bar and dashboard."""
    entries = bench.study.entries
    rungs = sum(len(e.rungs) or e.state == "fail" for e in entries)
    bar(rungs, max(settings.trials, rungs))
    states = dict.fromkeys(("running", "complete", "pruned", "fail"), 0.0)
    for entry in entries:
        states[entry.state] += 1
    done = [e.last.values for e in entries if e.state == "complete" and e.last]
    best = {}
    for index, term in enumerate(objective.terms):
        values = [v for row in done if (v := row[index]) is not None]
        if values:
            best[term.name] = max(values) if term.direction == "maximize" else min(values)
    bench.runner.report("trials", "state", states)
    bench.runner.report("best_value", "term", best)


def _stop_when_spent(
    settings: Settings, due: Sequence[Due], bench: Bench, engine: Engine, clock: Clock
) -> None:
    """Stops the search when what is left of the budget is needed for what is due after it."""
    if settings.budget is None or not bench.study.count:  # without a trial there is no answer
        return
    costs = [o.cost.train_seconds for o in bench.trained.values() if o.cost]
    if bench.audience.folds and not any(e.state == "complete" for e in bench.study.entries):
        due = [*due, Due("folds", "adapter", FOLDS - 1)]  # of the one trial that is then finished
    kept = kept_back(due, max(costs, default=0.0), bench.runner.slots)
    if clock.total() + kept > settings.budget:
        engine.stop("the budget is spent")


def _refuse_foreign(settings: Settings) -> None:
    """A folder that holds something else is not written into."""
    folder = settings.run_dir
    started = (folder / ".lock").exists() or (folder / "settings.yaml").exists()
    if folder.exists() and not started and any(folder.iterdir()):
        raise UserError("holds files of something else", str(folder), "Take another --name.")
