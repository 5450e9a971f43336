"""Time, disk and memory of a run, as ranges: what was timed, times what there is to do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np

from autopeft import baselines
from autopeft.bench import Audience
from autopeft.candidate import Candidate
from autopeft.evaluation import Predictions
from autopeft.forecast import Costs, Foreseen, foresee
from autopeft.job import Setup
from autopeft.metrics.intervals import bootstrap
from autopeft.prepare import Ready, make_audience
from autopeft.readouts import READOUT_ROWS
from autopeft.reserve import Due, after_search, before_search, kept_back, seconds_for
from autopeft.runners import worker_threads
from autopeft.sample import Sample
from autopeft.settings import Settings
from autopeft.timing import Speed

RANGE = (0.75, 1.4)  # of what was estimated; see docs/plan.md for how it was met
CROWDED = 1.3  # several workers share this machine's memory; not measured
SEEDS = 3  # of the search that is played through
DRIVER = 0.05  # seconds of the driver for each job: proposal, metrics, journal
RAY = 8.0  # seconds until Ray's processes and the workers are there
REPORT = 2.0  # seconds of writing


@dataclass(frozen=True)
class Scene:
    """What the parts of an estimate have in common."""

    settings: Settings
    ready: Ready
    setup: Setup
    speed: Speed
    audience: Audience
    slots: int
    due: tuple[Due, ...]

    @property
    def images(self) -> dict[str, int]:
        """Images of each split."""
        splits = (*self.ready.task.inner, "confirm", "test")
        return {s: int(self.ready.task.counts(s)["images"].iloc[0]) for s in splits}

    @property
    def models(self) -> dict[str, Candidate]:
        """The baselines, the probe's readout taken for timm's own."""
        facts, settings = self.ready.network.facts, self.settings
        wanted = baselines.names(settings.baselines, "groups" in self.ready.objective.needs)
        found = {}
        for name in wanted:
            made = baselines.make([name], facts, (facts.depth, facts.own_pool), 0.01)
            found[name] = made[0].candidate
        return found

    def costs(self) -> Costs:
        """A worker's costs, nothing filled."""
        images = self.images
        return Costs(
            self.speed,
            self.ready.network.facts,
            images["train"],
            images["search"] + 2 * images.get("probe", 0),
            self.settings.epochs,
            self.settings.views,
            4 if self.setup.precision == "fp32" else 2,
            self.setup.cache_bytes,
        )


def estimate(
    settings: Settings, ready: Ready, setup: Setup, sample: Sample, speed: Speed, start: float
) -> dict[str, Any]:
    """``seconds``, ``search``, ``budget``, ``disk`` and ``memory`` of a plan.

    Args:
        settings: of the run.
        ready: of the run, its images aside.
        setup: of the run, its images aside.
        sample: the few images.
        speed: of this machine.
        start: seconds until a run of it begins to work.
    """
    scene = Scene(
        settings, ready, setup, speed, make_audience(settings, ready, setup.digest()),
        _slots(settings), after_search(settings, ready.objective.needs, ready.task, ready.folds),
    )  # fmt: skip
    decode = 0.0 if sample.decoded else sample.each * len(ready.task.paths)
    before = _before(scene, start, decode)
    searches = [_search(scene, seed) for seed in range(SEEDS)]
    after = _after(scene, [c for found, _ in searches for c in found.finished])
    parts = {**before, "search": median(f.seconds for f, _ in searches), **after}
    high = RANGE[1] * (CROWDED if scene.slots > 1 else 1.0)
    ranges = {name: (RANGE[0] * s, high * s) for name, s in parts.items()}
    spread = [f.seconds for f, _ in searches]
    ranges["search"] = (RANGE[0] * min(spread), high * max(spread))
    total = sum(parts.values())
    return {
        "seconds": {
            "parts": {n: {"value": parts[n], "low": a, "high": b} for n, (a, b) in ranges.items()},
            "total": {
                "value": total,
                "low": sum(a for a, _ in ranges.values()),
                "high": sum(b for _, b in ranges.values()),
            },
            "confirm_share": (parts["confirm"] + parts["test"]) / total if total else 0.0,
            "workers": scene.slots,
            "unknown_workers": bool(settings.address) and not settings.workers,
        },
        "search": _mix([found for found, _ in searches]),
        "budget": _budget(scene, sum(before.values())),
        "disk": _disk(scene, sample, searches),
        "memory": {"worker": speed.memory, "images": min(speed.images, settings.batch_size)},
    }


def _slots(settings: Settings) -> int:
    """Workers that are counted on."""
    return 1 if settings.runner == "serial" else worker_threads(settings)[0]


def _before(scene: Scene, start: float, decode: float) -> dict[str, float]:
    """Until trial 1."""
    speed, settings, images = scene.speed, scene.settings, scene.images
    costs, models = scene.costs(), scene.models
    rows = images["train"] / -(-images["train"] // READOUT_ROWS)
    due = before_search(settings, scene.ready.objective.needs, scene.ready.folds)
    for candidate in models.values():  # what only the first of them computes
        costs.rung(candidate, 1)
    first = (speed.pixels + speed.forward) * (costs.train + costs.scored)
    return {
        "start": start + (RAY if settings.runner == "ray" else 0.0),
        "decode": decode,
        "prefix": speed.readouts.of(rows),
        "baselines": first
        + seconds_for(due, lambda d: costs.rung(models[d.what], settings.epochs), scene.slots),
    }


def _search(scene: Scene, seed: int, until: float | None = None) -> tuple[Foreseen, Costs]:
    """One possible search."""
    costs = scene.costs()
    found = foresee(scene.settings, scene.ready, scene.audience, costs, scene.slots, seed, until)
    return replace(found, seconds=found.seconds + DRIVER * found.rungs), costs


def _after(scene: Scene, finished: Sequence[Candidate]) -> dict[str, float]:
    """From the last trial to the answer."""
    speed, settings, images = scene.speed, scene.settings, scene.images
    costs, models = scene.costs(), scene.models
    epochs, final = settings.epochs, settings.final_seeds
    for candidate in (*models.values(), *finished):
        costs.rung(candidate, 1)
    each = fmean(costs.rung(c, epochs) for c in finished) if finished else 0.0

    def seconds(due: Due) -> float:
        if due.what in models:
            return costs.rung(models[due.what], epochs)
        if due.kind == "full" and "full" in models:
            return costs.rung(models["full"], epochs, due.share)
        if due.kind == "probe":
            return costs.rung(models["linear_probe"], epochs)
        return each * due.share

    trainings = [d for d in scene.due if d.what != "scoring"]
    entrants = (settings.confirm + 1 + len(models)) * (final + 1)
    tested = (1 + len(models)) * (final + 1) + 2 * final
    on_confirm = entrants * speed.score.of(images["confirm"])
    on_test = tested * speed.score.of(images["test"])
    on_search = (1 + len(models)) * speed.score.of(images["search"])
    judged = ("search", "confirm", "test")
    simple = sum(speed.simple.of(images["train"] + images[s]) for s in judged)
    return {
        "confirm": seconds_for(trainings, seconds, scene.slots) + on_confirm / scene.slots,
        "test": (on_test + on_search) / scene.slots + simple,
        "answer": _intervals(scene) + REPORT,
    }


def _intervals(scene: Scene) -> float:
    """Seconds of all bootstraps, from one of test's size."""
    images, classes = scene.images["test"], len(scene.ready.task.classes)
    drawn = np.random.default_rng(0)
    target = (drawn.random((images, classes)) < 0.5).astype(np.float32)
    p = Predictions(
        score=drawn.normal(size=(images, classes)).astype(np.float32),
        target=target,
        patient=np.arange(images).astype(str),
        part=np.zeros(images, np.int64),
        groups={},
        classes=scene.ready.task.classes,
        kind=scene.ready.task.kind,
        split="test",
    )
    began = time.perf_counter()
    bootstrap(p)
    each = time.perf_counter() - began
    models, groups = 1 + len(scene.models), sum(map(len, scene.ready.counted.groups.values()))
    return each * (models * 11 + 3 * models + groups * classes + 12)


def _mix(searches: Sequence[Foreseen]) -> dict[str, Any]:
    """What the candidates are like, over all played searches."""
    shapes = [s for found in searches for s in found.shapes]
    whole = [len(f.finished) for f in searches]
    return {
        "trials": round(fmean(f.trials for f in searches)),
        "rungs": [min(f.rungs for f in searches), max(f.rungs for f in searches)],
        "finished": [min(whole), max(whole)],
        "probes": fmean(s.kind == "probe" for s in shapes),
        "cached": fmean(s.cached for s in shapes),
        "whole": fmean(s.first == 0 and s.kind != "probe" for s in shapes),
        "trained": fmean(s.trained for s in shapes),
    }


def _budget(scene: Scene, before: float) -> dict[str, Any] | None:
    """How much of the search fits into ``--budget``."""
    settings = scene.settings
    if settings.budget is None:
        return None
    costs = scene.costs()
    longest = max(costs.rung(c, settings.epochs) for c in scene.models.values())
    kept = kept_back(scene.due, longest, scene.slots)
    fits = []
    for factor in (RANGE[1], RANGE[0]):
        until = settings.budget / factor - before - kept
        found, _ = _search(scene, 0, max(0.0, until))
        fits.append({"trials": found.trials, "finished": len(found.finished), "left": until})
    return {
        "seconds": settings.budget,
        "before": before,
        "kept_back": kept,
        "slow": fits[0],
        "fast": fits[1],
        "asked": settings.trials,
    }


def _disk(
    scene: Scene, sample: Sample, searches: Sequence[tuple[Foreseen, Costs]]
) -> dict[str, int]:
    """Bytes on disk; states are gone at the end of a run."""
    images, classes = scene.images, len(scene.ready.task.classes)
    side = scene.ready.network.facts.image_size
    rungs = max(found.rungs for found, _ in searches)
    return {
        "images": len(scene.ready.task.paths) * side * side * sample.channels,
        "prefix": max(costs.bytes for _, costs in searches),
        "prefix_limit": scene.setup.cache_bytes,
        "states": 12 * max(found.changed for found, _ in searches),
        "predictions": 2 * classes * rungs * images["search"],
    }
