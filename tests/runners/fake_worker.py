"""A worker function without torch: its values depend on the candidate alone. For tests."""

import math
import os
import time

from autopeft.candidate import Candidate, Readout, Stratum, Train
from autopeft.errors import UserError
from autopeft.evaluation import Cost
from autopeft.job import Job, Outcome, Setup

_LEAKED: list[bytes] = []


def make_setup(**changes):
    plain = dict.fromkeys(Setup.__dataclass_fields__)
    return Setup(**{**plain, "threads": 1, "rows": {}, **changes})


def make_candidate(lr=1e-3, r=8, method="lora"):
    strata = (Stratum((0, 5), ("qkv",), method, {"r": r}),) if method != "linear_probe" else ()
    return Candidate(strata, Train(lr=lr), Readout(6, "token"))


def utility(job: Job) -> float:
    """Best at lr 1e-3; grows with epochs and, more slowly, with rank."""
    assert job.candidate is not None
    off = abs(math.log10(job.candidate.train.lr) + 3)
    rank = job.candidate.strata[0].options["r"] if job.candidate.strata else 0
    return round(0.6 + 0.1 * math.log10(1 + job.stop) - 0.1 * off + 0.001 * rank, 6)


def run(setup: Setup, job: Job) -> Outcome:
    """What ``autopeft.trial:run`` is for real; ``setup.precision`` may ask for trouble."""
    if setup.precision == "die" or (setup.precision == "die once" and not job.start):
        os._exit(7)
    if setup.precision == "leak":
        _LEAKED.append(b"x" * (400 << 20) if _LEAKED else b"")
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
        return Outcome("ok", epoch=job.stop, extra={"pid": os.getpid(), "gpu": gpu})
    if setup.precision == "raise":
        raise ValueError("two\nlines")
    if setup.precision == "memory":
        raise MemoryError
    if setup.precision == "user":
        raise UserError("image cannot be read", "a.png", "Remove it.")
    value = utility(job)
    return Outcome(
        "ok",
        epoch=job.stop,
        predictions=f"{job.name}.npz",
        cost=Cost(100, 400, 0.0, 10),
        state=job.name,
        train_loss=1 - value,
        extra={"value": value},
    )


class SlowWorker:
    """An actor that takes its time to start."""

    def __init__(self, *args):
        time.sleep(100)

    def begin(self, *args):
        """Never in time."""


class BrokenWorker:
    """An actor that cannot start."""

    def __init__(self, *args):
        raise RuntimeError("no memory\non this node")

    def begin(self, *args):
        """Never."""
