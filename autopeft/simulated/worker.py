"""The simulated worker: learning curves from formulas, failures from a hash."""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

from autopeft.candidate import Candidate
from autopeft.errors import UserError
from autopeft.evaluation import Cost
from autopeft.job import Job, Outcome, Setup

BLOCKS = 12
_NORMAL = NormalDist()


@dataclass(frozen=True)
class World:
    """What the simulated world is like; all numbers, as ``Setup.simulated`` carries them.

    A failure is drawn anew for each (candidate, repeat, part, stop) and stays what it is, except
    that a ``death`` happens once and ``oom`` needs the whole batch.

    Attributes:
        noise: standard deviation of a measured AUROC.
        seconds: length of an epoch of an average candidate, really slept; 0 = no time passes, and
            the costs are as if it were 1.
        nan: probability that a training diverges.
        oom: probability that the whole batch does not fit; the half does.
        error: probability of a Python exception.
        death: probability that the worker's process ends (``os._exit(7)``), the first time only.
        doom: probability that it ends every time.
    """

    noise: float = 0.01
    seconds: float = 0.0
    nan: float = 0.0
    oom: float = 0.0
    error: float = 0.0
    death: float = 0.0
    doom: float = 0.0

    def fate(self, seed: int, job: Job) -> str:
        """What happens to a job: ``ok``, ``nan``, ``oom``, ``error``, ``death`` or ``doom``."""
        drawn = _uniform("fate", seed, *job.key, job.stop)
        for name in ("nan", "oom", "error", "death", "doom"):
            drawn -= getattr(self, name)
            if drawn < 0:
                return "ok" if name == "oom" and job.micro_batch else name
        return "ok"


def make_setup(folder: Path, seed: int = 0, epochs: int = 9, **world: float) -> Setup:
    """A setup for ``run``: no images, no rows, no backbone.

    Args:
        folder: where dead workers leave a mark, so that they die once.
        seed: of everything that is drawn.
        epochs: length of the full schedule.
        **world: fields of ``World``.
    """
    return Setup(
        kind="binary",
        classes=("simulated",),
        backbone="simulated",
        weights=None,
        weights_sha256="",
        image_size=0,
        fit="",
        images="",
        cache="",
        run_dir=str(folder),
        rows={},
        epochs=epochs,
        batch_size=32,
        views=1,
        precision="fp32",
        threads=1,
        seed=seed,
        simulated=asdict(World(**world)),
    )


def run(setup: Setup, job: Job) -> Outcome:
    """Answers a job without doing it. May sleep, raise or end the process, as its world says.

    Raises:
        UserError: the setup is not that of a simulation.
        ValueError: the simulated bug.
    """
    world, fate = world_of(setup), world_of(setup).fate(setup.seed, job)
    if world.seconds:
        time.sleep(seconds_of(world, job) * (1 if fate == "ok" else 0.5))
    if fate == "doom" or (fate == "death" and _first_time(setup, job)):
        os._exit(7)
    return answer(setup, job, fate)


def answer(setup: Setup, job: Job, fate: str) -> Outcome:
    """What the worker says when its fate is ``ok``, ``nan`` or ``oom``; ``error`` raises."""
    world = world_of(setup)
    if fate == "error":
        raise ValueError("a simulated bug")
    if fate in ("nan", "oom"):
        reason = {"nan": "the simulated loss is nan", "oom": "simulated memory is full"}[fate]
        return Outcome("nan" if fate == "nan" else "oom", reason, job.start)
    assert job.candidate is not None
    assert not job.start or job.state, f"{job.name} goes on from nothing"
    auroc, worst = _measured(world, setup.seed, job)
    return Outcome(
        "ok",
        epoch=job.stop,
        predictions=f"{job.name}.npz",
        cost=_cost(world, job),
        state=None if job.part.startswith("fold:") else job.name,
        train_loss=1 - auroc,
        extra={"simulated": True, "auroc": auroc, "worst_group_auroc": worst},
        part=job.part,
    )


def _measured(world: World, seed: int, job: Job) -> tuple[float, float]:
    """AUROC over all and of the worst group after ``job.stop`` epochs."""
    assert job.candidate is not None
    own = _normal("training", seed, *job.key)  # this training's luck, the same at all its rungs
    seen = _normal("auroc", seed, *job.key, job.stop)
    group = _normal("group", seed, *job.key, job.stop)
    auroc = curve(job.candidate, job.stop) + world.noise * (0.6 * own + 0.8 * seen)
    worst = auroc - _gap(job.candidate) - world.noise * abs(group)
    return _within(auroc), _within(worst)


def curve(candidate: Candidate, epoch: int) -> float:
    """The AUROC that ``epoch`` epochs are worth: a power law from 0.5 to the asymptote.

    The best learning rate falls with the rank and with the depth that is adapted; what learns
    slowly can still end high, so that low rungs mislead now and then.
    """
    rank, depth = _rank(candidate), _depth(candidate)
    best = -2.6 - 0.25 * math.log2(rank / 8) - 0.05 * (depth - 4)
    off = math.log10(candidate.train.lr) - best
    size = 0.02 * math.log2(rank) / 6 + 0.03 * depth / BLOCKS
    loss = 0.035 * min(off * off, 4.0) + 0.004 * abs(candidate.readout.block - 9)
    asymptote = 0.92 + size - loss
    pace = 1.2 * math.pow(10, -0.25 * off) * (1 + depth / BLOCKS)  # in epochs
    return asymptote - (asymptote - 0.5) * math.pow(1 + epoch / pace, -0.9)


def _gap(candidate: Candidate) -> float:
    """How far the worst group stays behind: more with capacity, less with balanced sampling."""
    share = 0.6 if candidate.train.sampling == "label_x_group" else 1.0
    return share * (0.03 + 0.01 * math.log2(_rank(candidate)) / 6 + 0.02 * _depth(candidate) / 12)


def _cost(world: World, job: Job) -> Cost:
    assert job.candidate is not None
    size = 2 * 384 * 4 * _rank(job.candidate) * _depth(job.candidate) + 385
    return Cost(size, 4 * size, seconds_of(world, job), 1000 * (job.stop - job.start))


def seconds_of(world: World, job: Job) -> float:
    """Seconds of a job; shallow adapters of low rank are cheaper."""
    assert job.candidate is not None
    share = 0.4 + _depth(job.candidate) / BLOCKS + _rank(job.candidate) / 320
    return (job.stop - job.start) * share * (world.seconds or 1.0)


def world_of(setup: Setup) -> World:
    """The world that a setup carries.

    Raises:
        UserError: it carries none: it is for real training.
    """
    if setup.simulated is None:
        raise UserError(
            "the setup is for real training",
            "autopeft.simulated:run",
            "Make one with autopeft.simulated.make_setup, or use autopeft.trial:run.",
        )
    return World(**setup.simulated)


def _first_time(setup: Setup, job: Job) -> bool:
    """Leaves a mark below the run's folder; False if it was there."""
    mark = Path(setup.run_dir) / "deaths" / f"{job.name}-{job.repeat}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.open("x").close()
    except FileExistsError:
        return False
    return True


def _depth(candidate: Candidate) -> int:
    first, last = candidate.strata[0].blocks
    return last - first + 1


def _rank(candidate: Candidate) -> int:
    return int(candidate.strata[0].options["r"])


def _within(value: float) -> float:
    return round(min(max(value, 0.3), 0.999), 6)


def _uniform(*what: object) -> float:
    """A number inside (0, 1) that belongs to these words."""
    digest = hashlib.sha256(":".join(map(str, what)).encode()).digest()
    return (int.from_bytes(digest[:7]) + 0.5) / 2**56


def _normal(*what: object) -> float:
    return _NORMAL.inv_cdf(_uniform(*what))
