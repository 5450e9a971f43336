"""What a run will take, from what its pieces take: the real search on workers that only wait.

The engine, the space, its warm starts and successive halving are those of the run; the jobs cost
what the timing says of their placement, and their values are drawn at random, so that who is
promoted has nothing to do with how deep it trains.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.backbones.facts import Facts
from autopeft.bench import Audience, Bench
from autopeft.candidate import Candidate
from autopeft.driver import make_engine
from autopeft.engine import drive
from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.job import Job, Outcome
from autopeft.methods import METHODS
from autopeft.prepare import Ready
from autopeft.settings import Settings
from autopeft.study import Study
from autopeft.timing import Speed


@dataclass(frozen=True)
class Shape:
    """What decides the cost of a candidate.

    Attributes:
        kind: ``probe``, ``adapter`` or ``full``.
        below: share of the blocks below the first that trains.
        trained: share of the blocks from there to the readout.
        first: that block.
        cached: whether the frozen states below are kept.
        changed: numbers that train.
    """

    kind: str
    below: float
    trained: float
    first: int
    cached: bool
    changed: int


def shape_of(candidate: Candidate, facts: Facts, views: int) -> Shape:
    """The shape of a candidate, without building it."""
    placed = [(METHODS[s.method].make(dict(s.options)), s) for s in candidate.strata]
    readout = candidate.readout.block
    if not placed:
        return Shape("probe", readout / facts.depth, 0.0, readout, False, 0)
    first = min(m.first_block(s) for m, s in placed)
    cached = bool(views) and first > 0 and all(m.prefix_ok(s) for m, s in placed)
    cached = cached and not any(m.in_fp32 for m, _ in placed)
    changed = sum(m.parameter_count(facts, s, candidate.readout) for m, s in placed)
    kind = "full" if any(s.method == "full" for s in candidate.strata) else "adapter"
    share = (readout - first) / facts.depth
    return Shape(kind, first / facts.depth, share, first, cached, changed)


@dataclass
class Costs:
    """Seconds of jobs, and what their frozen states take on disk. It remembers what was filled.

    Attributes:
        speed: of this machine.
        facts: the backbone.
        train: train images.
        scored: images that a rung scores.
        epochs: of a whole training.
        views: as the settings' (0 = nothing can be kept).
        number: bytes of a number in the store.
        limit: bytes that the store may take.
    """

    speed: Speed
    facts: Facts
    train: int
    scored: int
    epochs: int
    views: int
    number: int
    limit: int
    filled: dict[int, float] = field(default_factory=dict)  # boundary -> share of its states
    bytes: int = 0
    read: set[tuple[int, str]] = field(default_factory=set)  # readouts whose features are known

    def rung(self, candidate: Candidate, epochs: int, share: float = 1.0) -> float:
        """Seconds of a training of so many epochs on a share of the train images."""
        shape, s, n = shape_of(candidate, self.facts, self.views), self.speed, self.train * share
        if shape.kind == "probe":
            return s.probe.of(n) + self._features(candidate)
        depth = s.full if shape.kind == "full" else s.depth
        step = s.step + depth * shape.trained
        frozen = s.pixels + s.forward * shape.below
        scoring = self.scored * s.forward * shape.trained
        if shape.cached:
            missing = self._missing(shape.first, epochs, n)
        else:
            missing = epochs * n + self.scored
        head = self._features(candidate) if candidate.train.head_init == "probe" else 0.0
        return s.job + head + epochs * n * step + missing * frozen + scoring

    def _missing(self, boundary: int, epochs: int, n: float) -> float:
        """Frozen states that have to be computed: each (image, view) once, while there is room."""
        if boundary not in self.filled:
            shape, rows = self.facts.shapes[boundary], self.train + self.scored
            size = rows * self.views * int(np.prod(shape)) * self.number
            if self.bytes + size > self.limit:
                return epochs * n + self.scored
            self.bytes += size
            self.filled[boundary] = 0.0
        begun = self.scored if self.filled[boundary] == 0 else 0
        share, missing = self.filled[boundary], 0.0
        for _ in range(epochs):
            missing += n * (1 - share)
            share += (1 - share) / self.views * n / self.train
        self.filled[boundary] = share
        return missing + begun

    def _features(self, candidate: Candidate) -> float:
        """Frozen features at a readout and the strength of its probe, the first time."""
        key = (candidate.readout.block, candidate.readout.pool)
        if key in self.read:
            return 0.0
        self.read.add(key)
        s, share = self.speed, candidate.readout.block / self.facts.depth
        places = len(range(max(1, self.facts.depth // 3), self.facts.depth + 1))
        strength = s.readouts.of(self.train) / (places * len(self.facts.pools))
        return (self.train + self.scored) * (s.pixels + s.forward * share) + strength


@dataclass
class Waiting:
    """A runner on a clock of its own: no time passes, and nothing is trained."""

    slots: int
    seconds: Callable[[Job], float]
    now: float = 0.0
    queue: list[tuple[float, int, Job]] = field(default_factory=list)
    begun: int = 0

    def submit(self, job: Job, name: str = "") -> None:
        """Starts a job now."""
        self.begun += 1
        heapq.heappush(self.queue, (self.now + self.seconds(job), self.begun, job))

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Moves the clock to the next end of a job."""
        self.now, _, job = heapq.heappop(self.queue)
        cost = Cost(0, 0, train_seconds=1.0)
        return [(job, Outcome("ok", "", job.stop, job.name, cost, job.name))]

    def report(self, name: str, tag: str, values: Any) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True)
class Foreseen:
    """A search as it may go.

    Attributes:
        seconds: of its wall time.
        trials: candidates tried.
        rungs: jobs.
        finished: candidates trained to the end.
        paused: the largest sum of numbers that paused trials' states hold.
        shapes: of the candidates, for the mix of placements.
    """

    seconds: float
    trials: int
    rungs: int
    finished: tuple[Candidate, ...]
    changed: int
    shapes: tuple[Shape, ...]


def foresee(
    settings: Settings,
    ready: Ready,
    audience: Audience,
    costs: Costs,
    slots: int,
    seed: int,
    until: float | None = None,
) -> Foreseen:
    """One possible search, in seconds or less.

    Args:
        settings: of the run; the sampler is random here, since nothing is learned.
        ready: of the run.
        audience: of the run.
        costs: of jobs; it is used up.
        slots: workers.
        seed: of values and candidates.
        until: seconds after which the search is stopped; None = never.
    """
    drawn = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        apart = replace(
            settings, runs_dir=folder, sampler="random", seed=seed, budget=None, name="foreseen"
        )
        study = Study(Path(folder), ("maximize",), ("value",))
        runner = Waiting(slots, lambda job: _seconds(costs, job))
        # The objective is asked for nothing but these.
        judged = replace(ready, objective=_Judge())  # type: ignore[arg-type]
        bench = _Bench(audience, study, runner, lambda outcome: None)
        engine = make_engine(apart, judged, bench)
        quality: dict[str, float] = {}

        def evaluate(outcomes: Sequence[Outcome]) -> tuple[float, Evaluation]:
            name = str(outcomes[-1].state).split("-")[0]
            quality.setdefault(name, float(drawn.normal()))
            return quality[name] + 0.5 * float(drawn.normal()), _NOTHING

        def moment() -> None:
            if until is not None and study.count and runner.now > until:
                engine.stop("the budget is spent")

        drive(engine, runner, evaluate, moment=moment)
        shapes = [shape_of(e.candidate, ready.network.facts, costs.views) for e in study.entries]
        return Foreseen(
            runner.now,
            study.count,
            runner.begun,
            tuple(e.candidate for e in study.entries if e.state == "complete"),
            sum(s.changed for s in shapes),
            tuple(shapes),
        )


def _seconds(costs: Costs, job: Job) -> float:
    assert job.candidate is not None
    return costs.rung(job.candidate, job.stop - job.start)


class _Bench(Bench):
    def is_there(self, outcome: Outcome) -> bool:
        """Nothing was written, and nothing is missed."""
        return True


class _Judge:
    """What the engine asks of an objective."""

    promoting: tuple[tuple[int, int], ...] = ()

    def values(self, evaluation: Evaluation) -> tuple[float, ...]:
        return (0.0,)

    def violations(self, evaluation: Evaluation) -> dict[str, float]:
        return {}


_NOTHING = Evaluation(
    train=None,
    probe=None,
    search=Predictions(
        score=np.zeros((0, 1)),
        target=np.zeros((0, 1)),
        patient=np.zeros(0, dtype=str),
        part=np.zeros(0, dtype=int),
        groups={},
        classes=("nothing",),
        kind="binary",
        split="search",
    ),
    cost=Cost(0, 0),
)
