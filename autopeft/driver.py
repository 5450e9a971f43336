"""The story of one run, top to bottom: every step is a call."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from autopeft import baselines, protocol
from autopeft import settings as settings_file
from autopeft.ablation import ablations
from autopeft.answer import Answer
from autopeft.backbones.facts import Facts
from autopeft.bench import Audience, Bench, Model
from autopeft.candidate import Candidate
from autopeft.clock import Clock
from autopeft.engine import Engine, drive
from autopeft.errors import RunError, UserError
from autopeft.evaluation import Evaluation, Predictions
from autopeft.files import disk_trouble, lock
from autopeft.interrupts import Interrupts
from autopeft.job import Job, Outcome, Setup, total_cost
from autopeft.members import recipe_attacks, with_null
from autopeft.metrics import METRICS
from autopeft.metrics.memorization import Attack
from autopeft.objective import Objective
from autopeft.prepare import (
    Ready,
    declare,
    finished,
    make_audience,
    make_setup,
    opening,
    prepare,
)
from autopeft.progress import Bar, Screen
from autopeft.rehearsal import rehearse
from autopeft.result import Result
from autopeft.runners import open_runner
from autopeft.runners.early import Early
from autopeft.sampler import Proposer
from autopeft.schedule import epoch_ladder
from autopeft.selection import (
    ReadoutChoice,
    choose_readout,
    choose_winner,
    evaluations,
    finalists,
    ranking_metric,
    reference_values,
    strongest,
)
from autopeft.settings import Settings
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
    repeats = range(1, settings.seeds + 1)
    with (
        Clock(folder, began) as clock,
        Interrupts(screen.say) as interrupts,
        closing(open_runner(settings, setup, early=early)) as runner,
    ):
        audience = make_audience(settings, ready, setup.digest())
        value = _rung_value(ready.objective, audience)
        most = setup.micro_batch or settings.batch_size
        bench = Bench(audience, study, runner, value, clock.tick, most)
        readout, models = _baselines(settings, ready, bench, screen, clock)
        audience = bench.audience
        reference = study.fact("reference")
        engine = _search(settings, ready, bench, reference, clock, screen, interrupts)
        pool = evaluations(study, audience, reference)
        chosen, front, feasible = finalists(pool, ready.objective, settings.confirm)
        if not chosen:
            reasons = sorted({e.reason for e in study.entries if e.state == "fail"})
            why = "; ".join(reasons[:3]) or engine.stopped or "there was none"
            raise RunError(f"no trial was trained to the end ({why}); give it more time")
        entrants = _entrants([e.candidate for e in chosen], models)
        with clock.part("confirm"):
            with screen.bar("confirming finalists") as bar:
                bench.train(entrants, [0, *repeats], "confirm", bar)
            with screen.bar("training baselines") as bar:
                bench.train(models, [0, *repeats], "baseline", bar)
            with screen.bar("scoring confirm patients") as bar:
                scored = bench.predict([*entrants, *models], [0, *repeats], "confirm", bar)
        metric = ranking_metric(ready.objective, audience, scored[(models[0].name, 1)])
        costs = {
            m.name: c
            for m in [*entrants, *models]
            if (c := bench.trained[(m.candidate.fingerprint, 0)].cost) is not None
        }
        picked = choose_winner(entrants, costs, scored, repeats, metric, audience)
        opponent = strongest(models, scored, repeats, metric, audience)
        protocol.log(folder, "chosen", winner=picked.candidate.fingerprint, against=opponent.name)
        with clock.part("confirm"), screen.bar("training the winner without its parts") as bar:
            found = ablations(picked.candidate, ready.network.facts, readout.strength)
            ablated = [Model(name, candidate) for name, candidate in found]
            bench.train(ablated, repeats, "ablation", bar)
        answer = Answer(
            settings, ready.task, ready.objective, ready.network, bench, picked, opponent,
            entrants, models, ablated, scored, metric, readout, reference, feasible,
            tuple(e.number for e in front), pool, declared, clock, ready.decode_seconds,
            ready.counted.notes, recipes=_recipes(settings, bench, picked, models, screen),
        )  # fmt: skip
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
    for entry in study.entries:
        lost = entry.last.outcome.predictions if entry.last and entry.state == "complete" else None
        if lost and not (folder / "predictions" / lost).exists():
            raise RunError(
                f"{folder}/predictions/{lost} of trial {entry.number} is missing. "
                "Put it back, or take a new --name."
            )
    protocol.log_start(folder, protocol=declared, pid=os.getpid(), trials=settings.trials)
    screen.say(opening(settings, ready, setup))
    return declared


def _baselines(
    settings: Settings, ready: Ready, bench: Bench, screen: Screen, clock: Clock
) -> tuple[ReadoutChoice, list[Model]]:
    """The probe's readout, the reference baselines and the frozen reference."""
    facts, objective = ready.network.facts, ready.objective
    with clock.part("prefix"), screen.bar("probing readouts") as bar:
        readout = choose_readout(bench, facts, bar)
    screen.say(readout.line)
    bench.study.fix("readout", [readout.block, readout.pool, readout.strength])
    wanted = baselines.names(settings.baselines, "groups" in objective.needs)
    models = baselines.make(wanted, facts, (readout.block, readout.pool), readout.strength)
    if "memorization" in objective.needs:
        with screen.bar("null of the memorization attacks") as bar:
            probe = next(m for m in models if m.name == "linear_probe")
            with_null(bench, probe.candidate, bar)
    first = [m for m in models if m.name in baselines.REFERENCE]
    repeats = range(1, settings.seeds + 1)
    with clock.part("baselines"), screen.bar("reference baselines") as bar:
        bench.train(first, repeats, "baseline", bar)
    if bench.study.fact("reference") is None:
        bench.study.fix("reference", reference_values(bench, first, repeats, objective))
    value = bench.study.fact("reference")["auroc"]
    screen.say(f"baselines reach AUROC {value:.3f} on search patients")
    return readout, models


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
    engine = _engine(settings, ready, bench)
    audience, objective, runner = bench.audience, ready.objective, bench.runner

    def evaluate(outcomes: Sequence[Outcome]) -> tuple[float | None, Evaluation]:
        cost = total_cost(outcomes)
        assert cost is not None
        predictions = audience.predictions(outcomes[-1], "search", 0)
        evaluation = audience.evaluation(predictions, cost, reference, outcomes[-1])
        return METRICS[objective.rung](evaluation), evaluation

    with clock.part("search"), screen.bar("searching (rungs)") as bar:
        shown = -math.inf

        def moment() -> None:
            nonlocal shown
            _stop_when_spent(settings, bench, engine, clock)
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
    for entry in bench.study.entries:
        if entry.state == "complete" and entry.last and bench.is_there(entry.last.outcome):
            bench.trained[(entry.candidate.fingerprint, 0)] = entry.trained
    return engine


def _engine(settings: Settings, ready: Ready, bench: Bench) -> Engine:
    from autopeft.methods import canonical

    facts, space = ready.network.facts, ready.space
    has_groups = any(len(g) > 1 for g in ready.counted.groups.values())
    proposer = Proposer(
        bench.study,
        lambda trial: canonical(space.ask(trial, facts, has_groups), facts),
        space.defaults(facts, has_groups, len(ready.task.rows("train"))),
        epoch_ladder(settings.epochs),
        settings.sampler,
        settings.seed,
        settings.trials,
    )
    return Engine(
        bench.study,
        proposer.ask,
        ready.objective,
        epoch_ladder(settings.epochs),
        # Once test is opened the search is closed, whatever a budget would still allow.
        bench.study.count if protocol.test_opened(settings.run_dir) else settings.trials,
        bench.audience.setup,
        bench.batch_size,
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


def _stop_when_spent(settings: Settings, bench: Bench, engine: Engine, clock: Clock) -> None:
    """Stops the search when what is left of the budget is needed for confirmation."""
    if settings.budget is None:
        return
    costs = [o.cost.train_seconds for o in bench.trained.values() if o.cost]
    each = max(costs, default=0.0)
    trainings = settings.confirm * settings.seeds + 3 * (settings.seeds + 1)
    if clock.total() + each * trainings / max(1, bench.runner.slots) > settings.budget:
        engine.stop("the budget is spent")


def _refuse_foreign(settings: Settings) -> None:
    """A folder that holds something else is not written into."""
    folder = settings.run_dir
    started = (folder / ".lock").exists() or (folder / "settings.yaml").exists()
    if folder.exists() and not started and any(folder.iterdir()):
        raise UserError("holds files of something else", str(folder), "Take another --name.")


def _recipes(
    settings: Settings, bench: Bench, picked: Model, models: Sequence[Model], screen: Screen
) -> dict[str, list[Attack]]:
    """The attacks that need many trainings, where the objective asks for memorization."""
    if bench.audience.null is None:
        return {}
    asked = [Model("winner", picked.candidate)]
    asked += [m for m in models if m.name in ("lora_r8", "full")]
    with screen.bar("training on halves of the patients") as bar:
        return {m.name: recipe_attacks(bench, m, settings.seed, bar) for m in asked}


def _entrants(chosen: Sequence[Candidate], models: Sequence[Model]) -> list[Model]:
    """Who is confirmed: the finalists, and always the linear probe at its best readout.

    A search that cannot beat the probe must be able to answer "the probe".
    """
    probe = next(m.candidate for m in models if m.name == "linear_probe")
    every = [*chosen, *([probe] if probe not in chosen else [])]
    return [Model(f"finalist_{i}", candidate) for i, candidate in enumerate(every)]


def _rung_value(objective: Objective, audience: Audience) -> Any:
    """Rung metric of a training outside of the search, kept beside it in the journal."""

    def value(outcome: Outcome) -> float | None:
        assert outcome.cost is not None
        predictions: Predictions = audience.predictions(outcome, "search", 0)
        return METRICS[objective.rung](audience.evaluation(predictions, outcome.cost))

    return value
