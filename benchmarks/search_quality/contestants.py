"""Who races: autopeft's engine and its peers, each on the table, on a clock of their own.

Nothing is trained and nobody waits: a job takes the seconds that the table has for it, and the
workers are served in the order in which their jobs end. The decisions are those of the real
objects: autopeft's `Study`, `Proposer` and `Engine` behind a runner, Optuna's study, and Ray
Tune's `OptunaSearch` and `ASHAScheduler`, called as Tune's controller calls them
(`TuneController._process_trial_result` and `stop_trial`), without its start-up times.
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from curves import Curve, Table, key

from autopeft.candidate import Candidate
from autopeft.engine import Engine, drive
from autopeft.evaluation import Cost
from autopeft.job import Job, Outcome
from autopeft.methods import canonical
from autopeft.sampler import Proposer
from autopeft.schedule import Ladder, epoch_ladder
from autopeft.space import Space
from autopeft.study import Study

ETA = 3
MEMORY = Path("/dev/shm")  # the journals of thousands of races need no disk


@dataclass(frozen=True)
class Aim:
    """What is searched for.

    Attributes:
        name: a word.
        terms: term of the table -> ``maximize`` or ``minimize``.
    """

    name: str
    terms: Mapping[str, str]

    def values(self, curve: Curve, epoch: int) -> tuple[float, ...]:
        """The terms after so many epochs."""
        return tuple(curve.value(term, epoch) for term in self.terms)


AUROC = Aim("auroc", {"search_auroc": "maximize"})
FAIR = Aim("fair", {"search_auroc": "maximize", "search_worst_group": "maximize"})
SMALL = Aim("small", {"search_auroc": "maximize", "trainable_params": "minimize"})


@dataclass(frozen=True)
class Race:
    """The conditions, the same for all.

    Attributes:
        table: what training gives.
        space: what can be asked for; every candidate of it is in the table.
        facts: the backbone that the candidates are for.
        aim: what is searched for.
        workers: jobs at a time.
        seconds: the budget of wall time.
    """

    table: Table
    space: Space
    facts: Any
    aim: Aim
    workers: int
    seconds: float

    @property
    def most(self) -> int:
        """More trials than anybody can finish."""
        return 2 * len(self.table.curves)

    def ask(self, trial: Any) -> Candidate:
        """A candidate, from Optuna's trial or from what looks like one."""
        return canonical(self.space.ask(trial, self.facts), self.facts)


@dataclass(frozen=True)
class Seen:
    """A result that a contestant has got.

    Attributes:
        time: seconds since the start of the race.
        trial: number of the trial.
        curve: the candidate.
        epoch: how far it is trained.
    """

    time: float
    trial: int
    curve: Curve
    epoch: int


@dataclass
class History:
    """Everything that one contestant saw in one race.

    Attributes:
        seen: results in the order of their time.
        asked: candidates in the order in which they were started.
    """

    seen: list[Seen] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def repeats(self) -> float:
        """Share of the trials whose candidate had been started before."""
        return 1 - len(set(self.asked)) / max(1, len(self.asked))


class Clock:
    """Ends of jobs in the order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Any]] = []
        self._started = 0

    def __len__(self) -> int:
        return len(self._queue)

    def start(self, seconds: float, what: Any) -> None:
        """Starts something now."""
        self._started += 1
        heapq.heappush(self._queue, (self.now + seconds, self._started, what))

    def next(self) -> Any:
        """Moves to the next end and gives what ended."""
        self.now, _, what = heapq.heappop(self._queue)
        return what


# ---- autopeft --------------------------------------------------------------------------------


class TableRunner:
    """A runner whose workers look results up: a resumed job takes its additional epochs only."""

    def __init__(self, race: Race, history: History, curves: Mapping[str, Curve]) -> None:
        self.slots, self.clock = race.workers, Clock()
        self._history, self._curves = history, curves
        self._numbers: dict[str, int] = {}

    def submit(self, job: Job, name: str = "") -> None:
        """Starts a job now."""
        assert job.candidate is not None
        curve = self._curves[job.candidate.fingerprint]
        if curve.key not in self._numbers:
            self._numbers[curve.key] = len(self._numbers)
            self._history.asked.append(curve.key)
        self.clock.start(curve.cost(job.start, job.stop), job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Moves the clock to the next end of a job."""
        job: Job = self.clock.next()
        assert job.candidate is not None
        curve = self._curves[job.candidate.fingerprint]
        if curve.diverged and curve.diverged <= job.stop:
            return [(job, Outcome("nan", "the loss is nan", job.start))]
        number = self._numbers[curve.key]
        self._history.seen.append(Seen(self.clock.now, number, curve, job.stop))
        cost = Cost(curve.params, 4 * curve.params, curve.cost(job.start, job.stop), 0)
        outcome = Outcome(
            "ok", epoch=job.stop, cost=cost, state=job.name, extra={"key": curve.key}
        )
        return [(job, outcome)]

    def report(self, name: str, tag: str, values: Mapping[str, float]) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """There is nobody to send home."""


@dataclass(frozen=True)
class Judge:
    """What an ``Objective`` is to the engine; here an evaluation is the terms themselves."""

    aim: Aim

    @property
    def promoting(self) -> tuple[tuple[int, int], ...]:
        """Every term ranks a half-trained model."""
        signs = [1 if d == "maximize" else -1 for d in self.aim.terms.values()]
        return tuple(enumerate(signs))

    def values(self, evaluation: Any) -> tuple[float | None, ...]:
        """The terms."""
        return tuple(evaluation)

    def violations(self, evaluation: Any) -> dict[str, float]:
        """There is no constraint."""
        return {}


def autopeft(race: Race, seed: int, sampler: str = "tpe", pruning: bool = True) -> History:
    """The engine as ``autopeft search`` has it, without warm starts and baselines."""
    history, epochs = History(), race.table.epochs
    ladder = epoch_ladder(epochs, eta=ETA) if pruning else Ladder((epochs,), epochs)
    runner = TableRunner(race, history, by_fingerprint(race))
    where = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        study = Study(Path(folder), tuple(race.aim.terms.values()))
        proposer = Proposer(study, race.ask, (), ladder, sampler, seed, race.most)
        engine = Engine(
            study, proposer.ask, Judge(race.aim), ladder, race.most, "table", eta=ETA,
            unpaused=lambda candidate: not candidate.strata,
        )  # fmt: skip

        def evaluate(outcomes: Sequence[Outcome]) -> tuple[float, Any]:
            curve = race.table.curves[outcomes[-1].extra["key"]]
            values = race.aim.values(curve, outcomes[-1].epoch)
            return values[0], values

        def moment() -> None:
            if runner.clock.now >= race.seconds:
                engine.stop("the budget is spent")

        drive(engine, runner, evaluate, moment=moment)
    return history


def by_fingerprint(race: Race) -> dict[str, Curve]:
    """The table's curves by the fingerprint of the candidate."""
    found = {}
    for name, curve in race.table.curves.items():
        trial = optuna.trial.FixedTrial(json.loads(name))
        found[race.ask(trial).fingerprint] = curve
    assert len(found) == len(race.table.curves), "two rows of the table are one candidate"
    return found


# ---- peers -----------------------------------------------------------------------------------


class Paid:
    """Seconds that a training takes; where repeats are free, only what was never trained."""

    def __init__(self, free: bool) -> None:
        self._free = free
        self._done: dict[str, int] = {}

    def cost(self, curve: Curve, start: int, stop: int) -> float:
        """Seconds from epoch ``start`` to ``stop``."""
        begin = max(start, self._done.get(curve.key, 0)) if self._free else start
        self._done[curve.key] = max(stop, self._done.get(curve.key, 0))
        return curve.cost(begin, stop) if begin < stop else 0.0


def optuna_study(
    race: Race, seed: int, sampler: Callable[[int], optuna.samplers.BaseSampler], free: bool
) -> History:
    """Ask, train to the end, tell."""
    history, clock, epochs, paid = History(), Clock(), race.table.epochs, Paid(free)
    study = optuna.create_study(directions=list(race.aim.terms.values()), sampler=sampler(seed))
    while True:
        while len(clock) < race.workers and clock.now < race.seconds:
            if len(history.asked) >= race.most:
                break
            trial = study.ask()
            race.space.ask(trial, race.facts)
            curve = race.table.curves[key(trial.params)]
            history.asked.append(curve.key)
            clock.start(paid.cost(curve, 0, epochs), (trial, curve))
        if not len(clock):
            return history
        trial, curve = clock.next()
        if curve.diverged:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, race.aim.values(curve, epochs))
            history.seen.append(Seen(clock.now, trial.number, curve, epochs))


def optuna_tpe(race: Race, seed: int, free: bool = False) -> History:
    """Optuna's TPE without pruning, its constant liar on because four workers share it."""

    def sampler(number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=number, constant_liar=True)

    return optuna_study(race, seed, sampler, free)


def random_search(race: Race, seed: int, free: bool = False) -> History:
    """Random search without pruning."""

    def sampler(number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=number)

    return optuna_study(race, seed, sampler, free)


def tune(race: Race, seed: int, free: bool = False) -> History:
    """Ray Tune's OptunaSearch and ASHAScheduler: stops what is not in the best third.

    Order of calls as in Tune's controller: the scheduler decides on each result; the searcher
    hears of it unless the trial is stopped, and then both are told that the trial is complete.
    """
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.schedulers.trial_scheduler import TrialScheduler
    from ray.tune.search.optuna import OptunaSearch

    modes = {"maximize": "max", "minimize": "min"}
    names, epochs = list(race.aim.terms), race.table.epochs
    several = len(names) > 1
    chosen = [modes[d] for d in race.aim.terms.values()]

    def define(trial: Any) -> None:
        race.space.ask(trial, race.facts)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        searcher = OptunaSearch(
            define, names if several else names[0], chosen if several else chosen[0], seed=seed
        )
    scheduler = ASHAScheduler(
        metric=names[0], mode="max", max_t=epochs, grace_period=1, reduction_factor=ETA
    )
    history, clock, paid = History(), Clock(), Paid(free)
    while True:
        while len(clock) < race.workers and clock.now < race.seconds:
            if len(history.asked) >= race.most:
                break
            trial = SimpleNamespace(trial_id=str(len(history.asked)), number=len(history.asked))
            params = searcher.suggest(trial.trial_id)
            curve = race.table.curves[key(params)]
            history.asked.append(curve.key)
            scheduler.on_trial_add(None, trial)
            clock.start(paid.cost(curve, 0, 1), (trial, curve, epochs if curve.fitted else 1))
        if not len(clock):
            return history
        trial, curve, epoch = clock.next()
        if curve.diverged == epoch:
            scheduler.on_trial_error(None, trial)
            searcher.on_trial_complete(trial.trial_id, error=True)
            continue
        history.seen.append(Seen(clock.now, trial.number, curve, epoch))
        result = {name: curve.value(name, epoch) for name in names}
        result["training_iteration"] = epoch
        if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            scheduler.on_trial_complete(None, trial, result)
            searcher.on_trial_complete(trial.trial_id, result)
        else:
            searcher.on_trial_result(trial.trial_id, result)
            clock.start(paid.cost(curve, epoch, epoch + 1), (trial, curve, epoch + 1))
