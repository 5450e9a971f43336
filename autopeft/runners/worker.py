"""The Ray actor: one worker, resident, with what its function keeps warm."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from autopeft.errors import RunError
from autopeft.job import Job, Outcome, Setup
from autopeft.runners import guarded, resolve, stop_on_disk_trouble
from autopeft.runners.transport import Node, Parcel, pack, state_of
from autopeft.version import __version__


@dataclass(frozen=True)
class Home:
    """What a worker is told about its driver.

    Attributes:
        node: id of the Ray node whose disk holds the run.
        files: actor that serves the setup's files to other nodes; None = there are no others.
    """

    node: str
    files: Any = None


@dataclass(frozen=True)
class Place:
    """Where a worker came up.

    Attributes:
        node: Ray node id.
        host: host name.
        pid: process id.
        foreign: it does not see the driver's disk.
    """

    node: str
    host: str
    pid: int
    foreign: bool


@dataclass(frozen=True)
class Answer:
    """What comes back from a job.

    Attributes:
        outcome: for the driver.
        memory: bytes of the worker's own memory after it.
        parcel: files of a worker that does not see the driver's disk.
    """

    outcome: Outcome
    memory: int
    parcel: Parcel | None


def hire(slot: int, function: str, cpus: int, gpus: float, again: int = 1) -> Any:
    """An actor named by its slot; a replacement also by a count: Ray frees names late."""
    name = f"autopeft-slot-{slot}" + (f"-{again}" if again > 1 else "")
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Worker)
    return actor.options(name=name).remote(slot, function, __version__)


class Worker:
    """One slot. Its function keeps what is resident in its own module.

    Args:
        slot: its number, for people.
        function: dotted name of what does the work.
        version: of autopeft, where the driver runs.

    Raises:
        RunError: another version of autopeft is installed here than at the driver.
    """

    def __init__(self, slot: int, function: str, version: str) -> None:
        self._host = os.uname().nodename
        self._name = f"autopeft-slot-{slot}"
        if version != __version__:
            raise RunError(
                f"node {self._host} has autopeft {__version__}, the driver {version}; "
                "install the same version on every node"
            )
        self._function = resolve(function)
        self._meters = Meters(str(slot))

    def __repr__(self) -> str:
        return f"{self._name}@{self._host}"  # what the dashboard shows

    def begin(self, setup: Setup, home: Home, gpus: float) -> Place:
        """Takes the setup; answers once everything is imported and copied.

        Args:
            setup: as the driver made it; on another node its places are replaced.
            home: the driver's node.
            gpus: share of a GPU. Ray only counts shares; here the share of its memory becomes a
                limit of this process (never run on a GPU so far).
        """
        node = ray.get_runtime_context().get_node_id()
        self._place = Place(node, self._host, os.getpid(), node != home.node)
        self._setup = setup
        if 0 < gpus < 1:
            _limit_gpu(gpus)
        if self._place.foreign and home.files is not None:
            listing = ray.get(home.files.listing.remote())
            self._node = Node()  # holds the lock of this worker's folder
            self._setup = self._node.settle(
                setup, listing, lambda name, offset: ray.get(home.files.read.remote(name, offset))
            )
        return self._place

    def run(self, job: Job, state: Mapping[str, bytes] | None = None) -> Answer:
        """Executes one job; ``state`` holds the files that it continues from, on another node."""
        if not self._place.foreign:
            outcome, parcel = guarded(self._function, self._setup, job), None
        else:
            outcome, parcel = self._run_away(job, state)
        memory = own_memory()
        self._meters.show(job, outcome, memory)
        return Answer(outcome, memory, parcel)

    def _run_away(
        self, job: Job, state: Mapping[str, bytes] | None
    ) -> tuple[Outcome, Parcel | None]:
        """A job on a node of its own disk: files come and go with it."""
        try:
            with state_of(self._setup, job, state):
                outcome = guarded(self._function, self._setup, job)
                return outcome, pack(self._setup, job, outcome)
        except RunError as error:
            raise RunError(f"node {self._place.host}: {error}") from error
        except OSError as error:
            stop_on_disk_trouble(error)
            raise


class Meters:
    """Gauges and counters of one worker on the node's metrics endpoint.

    Args:
        slot: tag of the gauges.
    """

    def __init__(self, slot: str) -> None:
        def gauge(name: str, what: str) -> Any:
            made = Gauge(f"autopeft_{name}", what, tag_keys=("slot",))
            made.set_default_tags({"slot": slot})
            return made

        self._speed = gauge("images_per_second", "Training speed of the last job.")
        self._memory = gauge("worker_memory_bytes", "Memory of the worker, file maps left out.")
        self._hits = gauge("prefix_hit_rate", "Share of frozen features that were there already.")
        self._features = (0, 0)  # there already, asked for
        self._jobs = Counter("autopeft_jobs", "Jobs done.", tag_keys=("status", "kind"))

    def show(self, job: Job, outcome: Outcome, memory: int) -> None:
        """Updates everything after a job."""
        self._jobs.inc(1.0, {"status": outcome.status, "kind": job.kind})
        self._memory.set(float(memory))
        cost = outcome.cost
        if cost is not None and cost.train_seconds:
            self._speed.set(cost.images / cost.train_seconds)
        hits, asks = outcome.extra.get("prefix") or (0, 0)
        self._features = (self._features[0] + hits, self._features[1] + asks)
        if self._features[1]:
            self._hits.set(self._features[0] / self._features[1])


def own_memory() -> int:
    """Bytes of this process without file maps: images are mapped and would count as growth."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next((line.split()[1] for line in lines if line.startswith("RssAnon")), "0")
    return int(kilobytes) * 1024


def _limit_gpu(share: float) -> None:
    torch = sys.modules.get("torch")  # a function that has not loaded it uses no GPU
    if torch is not None and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(math.floor(share * 100) / 100)
