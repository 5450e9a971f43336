"""How fast this machine is at each piece of a run: a worker's own jobs on a few images."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from autopeft.backbones.facts import Facts
from autopeft.candidate import Candidate
from autopeft.errors import RunError
from autopeft.job import Job, Outcome, Rows, Setup
from autopeft.methods import canonical

FEW, LEAST = 16, 32  # images of the first try, which says how many more there may be; and of these
_LONG = 4.0  # seconds of one epoch from which nothing else matters in a job
_EPOCH = 1.0  # seconds that an epoch of the deepest candidate should take
_MORE = 4  # epochs of the long stretch
_BUSY = 1.5  # load for each core from which a first, cold job says nothing


@dataclass(frozen=True)
class Line:
    """Seconds of a job on n images: ``fixed + each * n``."""

    fixed: float
    each: float

    def of(self, images: float) -> float:
        """Seconds on so many images."""
        return self.fixed + self.each * images


@dataclass(frozen=True)
class Speed:
    """Seconds, each of one image unless said otherwise.

    A training step of an adapter on a share s of the blocks takes ``step + depth * s`` from
    cached states, and ``pixels + forward * (1 - s)`` more where nothing is cached.

    Attributes:
        decode: from the file, all threads of this machine together.
        pixels: from the decoded image to the first block, augmented.
        forward: all blocks, frozen, in the search's number format.
        step: a step's part that does not depend on the depth.
        depth: a step's part on all blocks.
        full: what ``depth`` is where all weights train.
        job: a training beside its images: building, loading, writing (of a job).
        score: a job that scores in fp32, as finalists and baselines are scored.
        probe: a job that fits a linear probe.
        readouts: the job that compares linear probes at all readouts.
        simple: neighbors, demographics and thumbnails.
        memory: bytes that this process took at most (not per image).
        images: train images that the timing used.
        seconds: that it took.
        busy: other processes that wanted to run, for each core, when the timing began.
        measured: what was measured; the rest follows from it by counting operations.
    """

    decode: float
    pixels: float
    forward: float
    step: float
    depth: float
    full: float
    job: float
    score: Line
    probe: Line
    readouts: Line
    simple: Line
    memory: int
    images: int
    seconds: float
    busy: float
    measured: tuple[str, ...]


def time_worker(setup: Setup, facts: Facts, decode: float, seconds: float) -> Speed:
    """Runs a worker's jobs on the setup's rows, for about ``seconds``.

    Args:
        setup: of a few images, with folders of its own.
        facts: the backbone.
        decode: seconds of decoding one image.
        seconds: when to stop measuring; what is begun is ended.

    Raises:
        RunError: a job failed.
    """
    watch = _Watch(facts, time.monotonic() + seconds)
    few = replace(setup, rows={s: _first(rows, FEW) for s, rows in setup.rows.items()})
    watch.lora(few, 1, 0, 1)  # imports, threads, memory: what a worker does once
    rough = watch.depth(few, facts.depth).step
    small = watch.others(few)
    least = LEAST if rough * LEAST < seconds / 10 else FEW
    count = int(min(len(setup.rows["train"]), max(least, _EPOCH / rough)))
    many = replace(setup, rows={**setup.rows, "train": _first(setup.rows["train"], count)})
    watch.lora(many, 1, 0, 1)
    depths = dict.fromkeys(max(1, facts.depth // part) for part in (4, 2))
    cached = {last: watch.depth(many, last) for last in depths if watch.time_left}
    whole = watch.depth(many, facts.depth)
    full = watch.full(many, whole)
    large = watch.others(many)
    speed = watch.speed(cached, whole, full, _lines(small, large))
    took = round(time.monotonic() - watch.began, 1)
    return replace(speed, decode=decode, images=count, seconds=took)


@dataclass(frozen=True)
class Timed:
    """One job: seconds in all, and of its training without frozen states that were missing."""

    wall: float
    work: float
    outcome: Outcome


@dataclass(frozen=True)
class Depth:
    """One placement.

    Attributes:
        share: of the blocks.
        step: seconds of a step's image.
        job: seconds of a job beside its images.
        prefix: seconds of a frozen image up to it; None = nothing is cached.
    """

    share: float
    step: float
    job: float
    prefix: float | None


Others = dict[str, tuple[int, float]]  # kind of job -> (images, seconds)


class _Watch:
    """Runs jobs and remembers what was measured."""

    def __init__(self, facts: Facts, stop: float) -> None:
        self.facts, self.stop, self.busy = facts, stop, _busy()
        self.began, self.measured = time.monotonic(), list[str]()

    @property
    def time_left(self) -> bool:
        return time.monotonic() < self.stop

    def run(self, setup: Setup, job: Job) -> Timed:
        from autopeft.trial import run

        began = time.perf_counter()
        outcome = run(setup, job)
        wall = time.perf_counter() - began
        if outcome.status != "ok":
            raise RunError(f"a {job.kind} job failed while timing: {outcome.reason}")
        cost = outcome.cost.train_seconds if outcome.cost else wall
        return Timed(wall, max(0.0, cost - outcome.extra.get("prefix_seconds", 0.0)), outcome)

    def lora(
        self, setup: Setup, last: int, start: int, stop: int, state: str | None = None
    ) -> Timed:
        """LoRA r=8 on the last blocks."""
        return self.train(setup, _lora(last, self.facts), start, stop, state)

    def train(
        self, setup: Setup, candidate: Candidate, start: int, stop: int, state: str | None = None
    ) -> Timed:
        job = Job("rung", setup.digest(), candidate, start=start, stop=stop, state=state)
        return self.run(setup, job)

    def depth(self, setup: Setup, last: int) -> Depth:
        """One placement: an epoch that fills the store, one more, and a few more."""
        n, share = len(setup.rows["train"]), last / self.facts.depth
        first = self.lora(setup, last, 0, 1)
        prefix = _missing(first.outcome)
        self.measured.append(f"LoRA on {share:.0%} of the blocks, {n} images")
        if first.work > _LONG and not self.time_left:
            if self.busy > _BUSY:
                load = f"load {self.busy:.1f} for each core"
                raise RunError(f"this machine is too busy to be timed ({load}): ask again later")
            return Depth(share, first.work / n, 0.0, prefix)
        one = self.lora(setup, last, 1, 2, first.outcome.state)
        if one.work > _LONG:
            return Depth(share, one.work / n, 0.0, prefix)
        more = self.lora(setup, last, 2, 2 + _MORE, one.outcome.state)
        step = max(more.work - one.work, 0.2 * more.work) / ((_MORE - 1) * n)
        return Depth(share, step, max(0.0, one.wall - n * step), prefix)

    def full(self, setup: Setup, whole: Depth) -> float | None:
        """Seconds of a step's image where all weights train."""
        if not self.time_left:
            return None
        raw = {"method": "full", "blocks": "all", "lr": 5e-5, "head_init": "random"}
        work = self.train(setup, canonical(raw, self.facts), 0, 1).work
        self.measured.append("full fine-tuning")
        n = len(setup.rows["train"])
        return max(work - whole.job, 0.5 * work) / n

    def others(self, setup: Setup) -> Others:
        """The jobs that train no blocks: scoring, a probe, all readouts, what trains nothing."""
        n, m = len(setup.rows["train"]), len(setup.rows["search"])
        rows, digest = setup.rows["search"].blind(), setup.digest()
        grouped = replace(setup.rows["search"], label=None)  # the groups alone are a baseline
        shallow = _lora(1, self.facts)
        probe = canonical({"method": "linear_probe", "weight_decay": 0.01}, self.facts)
        found: Others = {}
        if self.time_left:
            state = self.train(setup, shallow, 0, 1).outcome.state
            job = Job("predict", digest, shallow, stop=1, state=state, rows=rows)
            found["score"] = m, self.run(setup, job).wall
            found["readouts"] = n, self.run(setup, Job("readouts", digest, split="train")).wall
        if self.time_left:
            found["probe"] = n, self.train(setup, probe, 0, 1).wall
            job = Job("simple", digest, probe, rows=grouped, split="search")
            found["simple"] = n + m, self.run(setup, job).wall
        self.measured += found
        return found

    def speed(
        self, cached: dict[int, Depth], whole: Depth, full: float | None, lines: dict[str, Line]
    ) -> Speed:
        """Straight lines through what was measured; the rest by counting forward passes."""
        shares = [d for d in cached.values() if d.share < 1]
        step, depth = _line({d.share: d.step for d in shares}, whole.step)
        known = {1 - d.share: d.prefix for d in shares if d.prefix is not None}
        pixels, forward = _line(known, whole.step / 2)
        adapter = max(whole.step - step - pixels, depth)
        image = pixels + forward
        return Speed(
            decode=0.0,
            pixels=pixels,
            forward=forward,
            step=step,
            depth=depth,
            full=max((full or 0.0) - step - pixels, 1.2 * adapter),
            job=median([d.job for d in (*shares, whole)]),
            score=lines.get("score", Line(whole.job, 2 * image)),
            probe=lines.get("probe", Line(whole.job, image)),
            readouts=lines.get("readouts", Line(1.0, 2 * image)),
            simple=lines.get("simple", Line(whole.job, image)),
            memory=peak_memory(),
            images=0,
            seconds=0.0,
            busy=self.busy,
            measured=tuple(dict.fromkeys(self.measured)),
        )


def _lines(small: Others, large: Others) -> dict[str, Line]:
    """A line for each kind of job: through both sizes, or what one size says alone."""
    found = {}
    for kind, (n, seconds) in (small | large).items():
        few, less = small.get(kind, (n, seconds))
        if n > few and seconds > less:
            each = (seconds - less) / (n - few)
            found[kind] = Line(max(0.0, seconds - n * each), each)
        else:  # as if half of it were fixed
            found[kind] = Line(seconds / 2, seconds / 2 / n)
    return found


def _busy() -> float:
    """The load of the last minute for each core; 0 where a system does not say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return 0.0


def _lora(last: int, facts: Facts) -> Candidate:
    raw: dict[str, Any] = {"method": "lora", "blocks": last, "r": 8, "lora_alpha": 16}
    return canonical({**raw, "lr": 1e-3, "head_init": "random"}, facts)


def _missing(outcome: Outcome) -> float | None:
    """Seconds of a frozen state that was not in the store, or None where none was asked for."""
    hits, asks = outcome.extra.get("prefix", (0, 0))
    if asks == hits:
        return None
    return float(outcome.extra["prefix_seconds"]) / int(asks - hits)


def _line(points: dict[float, float], whole: float) -> tuple[float, float]:
    """Intercept and slope, neither below 0, through one or two points (x, y) with 0 < x < 1.

    Args:
        points: measured.
        whole: the slope where there is no point.
    """
    if not points:
        return 0.0, whole
    if len(points) == 1:
        ((x, y),) = points.items()
        return 0.0, y / x
    (a, low), (b, high) = sorted(points.items())
    slope = max(0.0, (high - low) / (b - a))
    start = low - slope * a
    return (start, slope) if start >= 0 else (0.0, high / b)


def _first(rows: Rows, count: int) -> Rows:
    return rows.take(_range(min(count, len(rows))))


def _range(count: int) -> Any:
    import numpy as np

    return np.arange(count)


def peak_memory() -> int:
    """Bytes that this process held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def folders(setup: Setup, folder: Path, images: str, rows: dict[str, Rows]) -> Setup:
    """The setup with rows of a small store, and folders that are thrown away."""
    long_enough = max(setup.epochs, 2 + _MORE)
    return replace(
        setup, images=images, rows=rows, cache=str(folder / "cache"),
        run_dir=str(folder / "run"), epochs=long_enough,
    )  # fmt: skip
