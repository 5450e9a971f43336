"""A bench without torch: a runner that answers with made-up scores of a chosen quality."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autopeft.bench import Audience, Bench
from autopeft.candidate import Candidate, Readout, Stratum, Train
from autopeft.evaluation import Cost
from autopeft.job import Outcome, Rows
from autopeft.parts import fold_of, fold_rows
from autopeft.study import Study

SIZES = {"train": 60, "search": 200, "confirm": 200, "test": 200}


def lora(r, params=100, **train):
    """A candidate; ``params`` becomes its cost."""
    stratum = Stratum((0, 5), ("qkv",), "lora", {"r": r, "params": params})
    return Candidate((stratum,), Train(**train), Readout(6, "avg"))


def make_rows(split, classes=1):
    rng = np.random.default_rng(list(SIZES).index(split))
    n = SIZES[split]
    index = np.arange(n) + 1000 * list(SIZES).index(split)
    return Rows(
        np.array([f"{i}.png" for i in index]),
        index,
        np.array([f"p{i // 2}" for i in index]),
        rng.integers(0, 2, (n, classes)).astype(np.float32),
        {"sex": np.array(["sex=F", "sex=M"])[rng.integers(0, 2, n)]},
    )


class FakeRunner:
    """Answers each job with scores ``quality(job) * label + noise(job)``.

    Attributes:
        asked: all jobs that came in, in order.
        bad: outcomes to give first, by job name.
    """

    def __init__(self, audience, quality=lambda job: 1.0, slots=1):
        self.audience, self.quality, self.slots = audience, quality, slots
        self.asked, self.bad, self._out = [], {}, []

    def submit(self, job, name=""):
        assert len(self._out) < self.slots
        self.asked.append(job)
        self._out.append(job)

    def wait(self):
        done, self._out = self._out, []
        return [(job, self._answer(job)) for job in reversed(done)]

    def close(self):
        pass

    def _answer(self, job):
        if self.bad.get(job.name):
            return self.bad[job.name].pop(0)
        rows = self.audience.rows["search" if job.rows is None else job.split]
        if self.audience.folds and job.kind == "rung":
            rows = self.audience.folds[fold_of(job.part)]
        seed = int(job.candidate.fingerprint, 16) % 2**32 + job.repeat
        fold = [fold_of(job.part)] if fold_of(job.part) else []
        noise = np.random.default_rng([seed, len(job.split), *fold]).normal(size=rows.label.shape)
        score = self.quality(job) * rows.label + noise
        folder = self.audience.run_dir / "predictions"
        folder.mkdir(exist_ok=True)
        np.savez(folder / f"{job.name}.npz", score=score.astype(np.float32))
        (folder.parent / "states" / job.name).mkdir(parents=True, exist_ok=True)
        options = job.candidate.strata[0].options if job.candidate.strata else {}
        cost = Cost(options.get("params", 10), 400) if job.kind == "rung" else None
        return Outcome("ok", "", job.stop, f"{job.name}.npz", cost, job.name, 0.1, part=job.part)


def make_bench(folder, quality=lambda job: 1.0, slots=1, groups=False, classes=1, folds=False):
    counted = {"sex": ("sex=F", "sex=M")} if groups else {}
    audience = Audience(
        folder,
        tuple(f"c{i}" for i in range(classes)),
        "binary" if classes == 1 else "multilabel",
        {s: make_rows(s, classes) for s in ("train", "search", "confirm")},
        counted,
        0.01,
        "setup",
        9,
    )
    if folds:
        audience = replace(audience, folds=fold_rows(audience.rows))
    runner = FakeRunner(audience, quality, slots)
    return Bench(audience, Study(folder, ("maximize",)), runner, lambda outcome: 0.5)


def silent(done, total):
    """A bar that nobody looks at."""
