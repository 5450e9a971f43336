"""The story of one run, top to bottom: every step is a call."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft import baselines, plugins, protocol
from autopeft import settings as settings_file
from autopeft.bench import Audience, Bench, Model
from autopeft.data import load_task
from autopeft.data.counted import CountedGroups, check_groups
from autopeft.data.task import Task
from autopeft.engine import Engine
from autopeft.errors import UserError
from autopeft.evaluation import Evaluation, Predictions
from autopeft.files import lock
from autopeft.job import Outcome, Rows, Setup
from autopeft.metrics import METRICS
from autopeft.objective import Objective, load_objective
from autopeft.progress import Screen
from autopeft.result import Result, load_result
from autopeft.runners import open_runner
from autopeft.sampler import Proposer
from autopeft.schedule import rungs
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
from autopeft.space import Space, load_space
from autopeft.study import Study
from autopeft.writing import Answer, write_answer

# The smallest run that shows everything, so that `autopeft search` alone answers within minutes.
# Written to the run's settings and protocol like flags.
FIRST_RUN: dict[str, Any] = {
    "space": "quick",
    "trials": 8,
    "epochs": 3,
    "views": 2,
    "confirm": 2,
    "seeds": 2,
    "inner": "holdout",
    "min_group": 10,
    "baselines": ("linear_probe", "lora_r8", "full"),
}
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
    values = complete({"dataset": dataset, **options})
    return run(settings_file.from_mapping(values, "autopeft.search"))


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the small settings of the first run where the synthetic task is asked for."""
    plain = {str(k).replace("-", "_"): v for k, v in values.items()}
    first = plain.get("dataset", "phantom") == "phantom"
    return {**(FIRST_RUN if first else {}), **plain}


def run(settings: Settings) -> Result:
    """Runs or resumes what the settings say."""
    screen = Screen(settings.quiet)
    finished = _finished(settings)
    if finished is not None:
        return finished
    ready = _prepare(settings, screen)
    with lock(settings.run_dir / ".lock"):
        return _drive(settings, ready, screen)


# ---- before anything is written -----------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """Everything that bad input could break, opened and checked."""

    task: Task
    objective: Objective
    space: Space
    network: Any
    images: Path
    counted: CountedGroups
    decode_seconds: float


def _finished(settings: Settings) -> Result | None:
    """The result of a run that is done, or None; refuses other settings on an old run."""
    folder = settings.run_dir
    saved_file = folder / "settings.yaml"
    if not saved_file.exists():
        return None
    saved = settings_file.from_mapping(settings_file.load(saved_file), str(saved_file))
    settings.check_same(saved)
    if not (folder / "result.json").exists():
        return None
    if settings.trials > saved.trials:
        raise UserError(
            f"the run is finished with {saved.trials} trials and its test patients are opened",
            str(folder),
            "More trials would be chosen knowing the test; take a new --name.",
        )
    return load_result(folder)


def _prepare(settings: Settings, screen: Screen) -> Ready:
    """Loads and checks task, objective, space, backbone and images; writes only to the cache."""
    from autopeft.backbones.weights import load_backbone
    from autopeft.methods import METHODS, canonical
    from autopeft.training.images import build_store

    cache = Path(settings.runs_dir) / ".cache"
    objective = load_objective(settings.objective)
    baselines.names(settings.baselines, "groups" in objective.needs)
    space = load_space(settings.space)
    network = load_backbone(
        settings.backbone, settings.weights, settings.image_size, settings.offline
    )
    space.check(network.facts, METHODS, True, canonical)
    task = load_task(settings, cache)
    needed = "groups" in objective.needs
    counted = check_groups(task, settings, needed or bool(settings.group))
    if needed and not task.attributes:
        raise UserError(
            f"objective {settings.objective!r} compares groups, but none is declared",
            "--group",
            "Name at least one attribute, e.g. --group sex --group age:60.",
        )
    started = time.perf_counter()
    with screen.bar("decoding images") as bar:
        store = build_store(
            task.root,
            task.paths,
            network.facts.image_size,
            settings.fit,
            cache,
            bar,
            os.cpu_count() or 1,
        )
    seconds = time.perf_counter() - started
    return Ready(task, objective, space, network, store.folder, counted, seconds)


# ---- the run ------------------------------------------------------------------------------------


def _drive(settings: Settings, ready: Ready, screen: Screen) -> Result:
    """Baselines, search, confirmation, the one look at test, the answer."""
    folder, clock = settings.run_dir, Clock(settings.run_dir)
    settings.save(folder / "settings.yaml")
    study = Study(folder, ready.objective.directions, [t.name for t in ready.objective.terms])
    setup = _setup(settings, ready, study)
    declared = protocol.write_protocol(folder, _declare(settings, ready, setup))
    protocol.log(folder, "started", protocol=declared, pid=os.getpid(), trials=settings.trials)
    screen.say(_opening(settings, ready, setup))
    runner = open_runner(settings, setup)
    audience = _audience(settings, ready, setup)
    bench = Bench(audience, study, runner, _rung_value(ready.objective, audience))
    repeats = range(1, settings.seeds + 1)
    try:
        readout, models = _baselines(settings, ready, bench, screen, clock)
        reference = study.fact("reference")
        _search(settings, ready, bench, reference, clock, screen)
        pool = evaluations(study, audience, reference)
        chosen, front, feasible = finalists(pool, ready.objective, settings.confirm)
        if not chosen:
            reasons = sorted({e.reason for e in study.entries if e.reason})
            raise UserError(
                f"no trial could be trained to the end: {'; '.join(reasons[:3])}", str(folder)
            )
        entrants = [Model(f"finalist_{i}", e.candidate) for i, e in enumerate(chosen)]
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
        answer = Answer(
            settings, ready.task, ready.objective, ready.network, bench, picked, opponent,
            entrants, models, scored, metric, readout, reference, feasible,
            tuple(e.number for e in front), pool, declared, clock, ready.decode_seconds,
        )  # fmt: skip
        return write_answer(answer, screen)
    finally:
        runner.close()


def _baselines(
    settings: Settings, ready: Ready, bench: Bench, screen: Screen, clock: Clock
) -> tuple[ReadoutChoice, list[Model]]:
    """The probe's readout, the reference baselines and the frozen reference."""
    facts, objective = ready.network.facts, ready.objective
    with clock.part("prefix"), screen.bar("probing readouts") as bar:
        readout = choose_readout(bench, facts, bar)
    bench.study.fix("readout", [readout.block, readout.pool, readout.strength])
    wanted = baselines.names(settings.baselines, "groups" in objective.needs)
    models = baselines.make(wanted, facts, (readout.block, readout.pool), readout.strength)
    first = [m for m in models if m.name in baselines.REFERENCE]
    repeats = range(1, settings.seeds + 1)
    with clock.part("baselines"), screen.bar("reference baselines") as bar:
        bench.train(first, repeats, "baseline", bar)
    if bench.study.fact("reference") is None:
        bench.study.fix("reference", reference_values(bench, first, repeats, objective))
    value = bench.study.fact("reference")["auroc"]
    screen.say(
        f"best probe reads block {readout.block} ({readout.pool}); "
        f"baselines reach AUROC {value:.3f} on search patients"
    )
    return readout, models


def _search(
    settings: Settings,
    ready: Ready,
    bench: Bench,
    reference: dict[str, float],
    clock: Clock,
    screen: Screen,
) -> None:
    """The outer loop: promotions and new candidates until trials or budget are spent."""
    engine = _engine(settings, ready, bench)
    audience, objective, runner = bench.audience, ready.objective, bench.runner

    def evaluate(outcome: Outcome) -> tuple[float, Evaluation]:
        assert outcome.cost is not None
        predictions = audience.predictions(outcome, "search", 0)
        evaluation = audience.evaluation(predictions, outcome.cost, reference)
        value = METRICS[objective.rung](evaluation)
        return float("nan") if value is None else value, evaluation

    with clock.part("search"), screen.bar("searching (rungs)") as bar:
        while True:
            _stop_when_spent(settings, bench, engine, clock)
            while engine.running < runner.slots and (job := engine.next_job()) is not None:
                known = bench.study.done(job)
                if known is not None:  # a baseline is this very training
                    engine.record(job, known, evaluate)
                else:
                    runner.submit(job, engine.name(job))
            if not engine.running:
                break
            for job, outcome in runner.wait():
                engine.record(job, outcome, evaluate)
            bar(_rungs_done(bench.study), max(settings.trials, _rungs_done(bench.study)))
        engine.finish()
    for entry in bench.study.entries:
        if entry.state == "complete" and entry.last is not None:
            bench.trained[(entry.candidate.fingerprint, 0)] = entry.last.outcome


def _engine(settings: Settings, ready: Ready, bench: Bench) -> Engine:
    from autopeft.methods import canonical

    facts, space = ready.network.facts, ready.space
    has_groups = any(len(g) > 1 for g in ready.counted.groups.values())
    proposer = Proposer(
        bench.study,
        lambda trial: canonical(space.ask(trial, facts, has_groups), facts),
        space.defaults(facts, has_groups),
        rungs(settings.epochs),
        settings.sampler,
        settings.seed,
        settings.trials,
    )
    return Engine(
        bench.study,
        proposer.ask,
        ready.objective,
        rungs(settings.epochs),
        settings.trials,
        bench.audience.setup,
        settings.batch_size,
        unpaused=lambda candidate: 12 * _trained_params(candidate, facts) > STATE_LIMIT,
    )


def _trained_params(candidate: Any, facts: Any) -> int:
    """Parameters below the head that training changes (weights and two optimizer moments)."""
    from autopeft.methods import METHODS

    return sum(
        METHODS[s.method].make(dict(s.options)).parameter_count(facts, s, candidate.readout)
        for s in candidate.strata
    )


def _stop_when_spent(settings: Settings, bench: Bench, engine: Engine, clock: Clock) -> None:
    """Stops the search when what is left of the budget is needed for confirmation."""
    if settings.budget is None:
        return
    costs = [o.cost.train_seconds for o in bench.trained.values() if o.cost]
    each = max(costs, default=0.0)
    trainings = settings.confirm * settings.seeds + 3 * (settings.seeds + 1)
    if clock.total() + each * trainings / bench.runner.slots > settings.budget:
        engine.stop()


def _rungs_done(study: Study) -> int:
    return sum(len(e.rungs) or bool(e.reason) for e in study.entries)


# ---- plain data for workers, driver and protocol ------------------------------------------------


def _setup(settings: Settings, ready: Ready, study: Study) -> Setup:
    """What workers get. Threads and precision are decided at the first start and kept."""
    from autopeft.training.precision import decide

    machine = study.fact("machine")
    if machine is None:
        cores = os.cpu_count() or 1
        workers = settings.workers or (max(1, cores // 2) if settings.runner == "ray" else 1)
        threads = settings.cpus_per_worker or max(1, cores // workers)
        precision = decide(settings.precision, threads)
        machine = study.fix("machine", {"threads": threads, "precision": precision})
    task, facts = ready.task, ready.network.facts
    return Setup(
        kind=task.kind,
        classes=task.classes,
        backbone=settings.backbone,
        weights=settings.weights,
        weights_sha256=facts.sha256,
        image_size=facts.image_size,
        fit=settings.fit,
        images=str(ready.images.resolve()),
        cache=str((Path(settings.runs_dir) / ".cache").resolve()),
        run_dir=str(settings.run_dir.resolve()),
        rows={split: task.rows(split) for split in ("train", "search")},
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        views=settings.views,
        precision=machine["precision"],
        threads=machine["threads"],
        seed=settings.seed,
        offline=settings.offline,
    )


def _audience(settings: Settings, ready: Ready, setup: Setup) -> Audience:
    rows: dict[str, Rows] = {s: ready.task.rows(s) for s in ("train", "search", "confirm")}
    return Audience(
        settings.run_dir,
        ready.task.classes,
        ready.task.kind,
        rows,
        {a: g for a, g in ready.counted.groups.items() if len(g) > 1},
        settings.margin,
        setup.digest(),
        settings.epochs,
        dict(ready.counted.labels),
    )


def _rung_value(objective: Objective, audience: Audience) -> Any:
    """Rung metric of a training outside of the search, kept beside it in the journal."""

    def value(outcome: Outcome) -> float | None:
        assert outcome.cost is not None
        predictions: Predictions = audience.predictions(outcome, "search", 0)
        return METRICS[objective.rung](audience.evaluation(predictions, outcome.cost))

    return value


def _declare(settings: Settings, ready: Ready, setup: Setup) -> Mapping[str, Any]:
    """What ``protocol.yaml`` says: what will be called a success, before anything is trained."""
    from autopeft.version import __version__

    task, objective = ready.task, ready.objective
    wanted = baselines.names(settings.baselines, "groups" in objective.needs)
    splits = ("train", "search", "confirm", "test")
    counts = {s: task.counts(s) for s in splits}
    every = {
        s: {
            str(r["class"]): f"{r.positives}+ / {r.negatives}- of {r.patients} {task.unit}s"
            for _, r in t[t.attribute == "all"].iterrows()
        }
        for s, t in counts.items()
    }
    return {
        "autopeft": __version__,
        "use": "Research use; not a medical device.",
        "task": {"name": task.name, "digest": task.digest, "unit": task.unit},
        "classes": list(task.classes),
        "splits": every,
        "inner": "holdout",
        "setup": setup.digest(),
        "objective": settings.objective,
        "objective_sha256": plugins.find("objectives", settings.objective).sha256,
        "space_sha256": plugins.find("search_spaces", settings.space).sha256,
        "space": settings.space,
        "trials": settings.trials,
        "epochs": settings.epochs,
        "rungs": list(rungs(settings.epochs)),
        "finalists": settings.confirm,
        "seeds": settings.seeds,
        "baselines": list(wanted),
        "reference": "best of the reference baselines, mean of the seeds, on search",
        "groups": {a: list(g) for a, g in ready.counted.groups.items()},
        "groups_left_out": list(ready.counted.notes),
        "ranking": f"{objective.primary} on confirm, mean of the seeds; "
        "within one paired standard error the fewest trained parameters win",
        "contrast": f"winner minus the baseline strongest on confirm, {objective.primary}, test",
        "alpha": 0.05,
        "margin": settings.margin,
        "words": "better: interval above 0; not worse: above -margin; worse: below 0; "
        "else cannot tell",
    }


def _opening(settings: Settings, ready: Ready, setup: Setup) -> str:
    task = ready.task
    sizes = ", ".join(f"{s} {len(setup.rows[s])}" for s in setup.rows)
    return (
        f"run {settings.run_name}: {task.name}, {task.patients} {task.unit}s, "
        f"{len(task.paths)} images ({sizes}); holdout; {settings.backbone} at "
        f"{setup.image_size} px, {setup.precision}, {setup.threads} threads a worker"
    )


class Clock:
    """Wall time of a run over all its starts, by part.

    Args:
        folder: the run's folder; earlier starts are read from its log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._start = folder, time.monotonic()
        self.parts: dict[str, float] = {}
        for event in protocol.read_lines(folder / "log.jsonl"):
            if event["event"] == "time":
                self.parts[event["part"]] = self.parts.get(event["part"], 0) + event["seconds"]
        self._before = sum(self.parts.values())

    def total(self) -> float:
        """Seconds of all starts so far."""
        return self._before + time.monotonic() - self._start

    def part(self, name: str) -> Part:
        """A context whose time is logged under ``name``, also when it ends in an exception."""
        return Part(self, name)

    def add(self, name: str, seconds: float) -> None:
        """Enters seconds of one part."""
        self.parts[name] = self.parts.get(name, 0.0) + seconds
        protocol.log(self._folder, "time", part=name, seconds=round(seconds, 2))


class Part:
    """See ``Clock.part``."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name, self._start = clock, name, 0.0

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._name, time.monotonic() - self._start)
