"""A simulated search: a small space, a judge, the real engine, and workers on a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft.candidate import Candidate, Readout, Stratum, Train
from autopeft.evaluation import Evaluation, Predictions
from autopeft.job import Job, Outcome, Setup
from autopeft.simulated.worker import BLOCKS, answer, seconds_of, world_of

if TYPE_CHECKING:
    import optuna

    from autopeft.engine import Engine
    from autopeft.runners import Runner
    from autopeft.schedule import Ladder
    from autopeft.study import Study

DIRECTIONS = ("maximize", "maximize")
TERMS = ("auroc", "worst_group_auroc")
RANKS = (1, 2, 4, 8, 16, 32, 64)


def suggest(trial: optuna.trial.Trial) -> Candidate:
    """A small space: learning rate, rank, depth, readout and balanced sampling."""
    lr = trial.suggest_float("lora.lr", 1e-5, 1e-1, log=True)
    rank = trial.suggest_categorical("lora.r", RANKS)
    first = trial.suggest_int("first", 0, BLOCKS - 1)
    block = trial.suggest_int("readout", 6, BLOCKS)
    balanced = trial.suggest_categorical("balanced", (False, True))
    stratum = Stratum((first, BLOCKS - 1), ("qkv",), "lora", {"r": rank})
    train = Train(lr=lr, sampling="label_x_group" if balanced else "plain")
    return Candidate((stratum,), train, Readout(block, "avg"))


_NOBODY = Predictions(
    score=np.zeros((0, 1)),
    target=np.zeros((0, 1)),
    patient=np.zeros(0, dtype=str),
    part=np.zeros(0, dtype=int),
    groups={},
    classes=("simulated",),
    kind="binary",
    split="search",
)


@dataclass(frozen=True)
class Simulated(Evaluation):
    """An evaluation without predictions: the terms are known.

    Attributes:
        terms: values by name.
    """

    terms: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Judge:
    """What an ``Objective`` is to the engine: two terms and a constraint.

    Attributes:
        floor: AUROC below it is infeasible.
        promoting: terms that promote, as (index, +1 or -1); none: the rung value does.
    """

    floor: float = 0.6
    promoting: tuple[tuple[int, int], ...] = ()

    def values(self, evaluation: Evaluation) -> tuple[float | None, ...]:
        """AUROC over all and of the worst group."""
        assert isinstance(evaluation, Simulated)
        return tuple((evaluation.terms or {}).get(name) for name in TERMS)

    def violations(self, evaluation: Evaluation) -> dict[str, float]:
        """AUROC is not to be below the floor."""
        assert isinstance(evaluation, Simulated)
        return {"floor": self.floor - (evaluation.terms or {}).get("auroc", 0.0)}


def evaluate(outcomes: Sequence[Outcome]) -> tuple[float, Evaluation]:
    """Rung value (AUROC) and evaluation; with folds as rungs, the means over the folds so far."""
    last = outcomes[-1]
    assert last.cost is not None
    used = [o for o in outcomes if o.epoch == last.epoch]
    terms = {name: sum(o.extra[name] for o in used) / len(used) for name in TERMS}
    return terms["auroc"], Simulated(_NOBODY, last.cost, terms=terms)


def make_engine(
    folder: Path,
    ladder: Ladder,
    trials: int,
    sampler: str = "random",
    seed: int = 0,
    **changes: Any,
) -> Engine:
    """An engine on the study in ``folder``, new or resumed; ``changes`` go to ``Engine``."""
    from autopeft.engine import Engine
    from autopeft.sampler import Proposer
    from autopeft.study import Study

    study = Study(folder, DIRECTIONS, TERMS)
    proposer = Proposer(study, suggest, (), ladder, sampler, seed, trials)
    return Engine(study, proposer.ask, Judge(), ladder, trials, "simulated", **changes)


def search(
    folder: Path,
    runner: Runner,
    trials: int,
    sampler: str = "random",
    seed: int = 0,
    epochs: int = 9,
    folds: int = 0,
    moment: Callable[[], None] = lambda: None,
) -> Study:
    """Runs or resumes a simulated search to its end.

    Args:
        folder: holds ``study.journal``.
        runner: executes ``autopeft.simulated:run``, or is a ``VirtualRunner``.
        trials: how many candidates.
        sampler: as ``--sampler``.
        seed: of the sampler.
        epochs: length of the full schedule.
        folds: so many folds are the rungs; 0 = epochs are.
        moment: called between any two steps of the driver: a test may end the process there.
    """
    from autopeft.engine import drive
    from autopeft.schedule import epoch_ladder, fold_ladder

    ladder = fold_ladder(epochs, folds) if folds else epoch_ladder(epochs)
    engine = make_engine(folder, ladder, trials, sampler, seed)
    drive(engine, runner, evaluate, moment=moment)
    return engine.study


class VirtualRunner:
    """Many workers inside this process, on a clock of its own: no time really passes.

    Jobs end in the order of their simulated seconds, so that late results arrive late.

    Args:
        setup: from ``make_setup``.
        slots: workers.
    """

    def __init__(self, setup: Setup, slots: int = 64) -> None:
        self.slots, self.now = slots, 0.0
        self._setup, self._world = setup, world_of(setup)
        self._queue: list[tuple[float, int, Job]] = []
        self._started = 0
        self._died: set[str] = set()

    def submit(self, job: Job, name: str = "") -> None:
        """Starts a job now."""
        self._started += 1
        heapq.heappush(self._queue, (self.now + seconds_of(self._world, job), self._started, job))

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Moves the clock to the next end of a job."""
        self.now, _, job = heapq.heappop(self._queue)
        fate = self._world.fate(self._setup.seed, job)
        if fate == "doom" or (fate == "death" and job.name not in self._died):
            self._died.add(job.name)
            return [(job, Outcome("error", "worker died: simulated", job.start))]
        if fate == "error":
            return [(job, Outcome("error", "ValueError: a simulated bug", job.start))]
        return [(job, answer(self._setup, job, fate))]

    def report(self, name: str, tag: str, values: Mapping[str, float]) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """Drops what is out."""
        self._queue.clear()
