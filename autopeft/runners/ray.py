"""The Ray runner: resident actors, one a slot, each with its backbone and its images warm.

A trial is a method call on an actor, not a process of its own: 12 trivial trials took 4.6 s this
way and 51.9 s as Ray Tune functions. The number of slots follows the cluster: a lost node takes
its workers with it, a new one gets some, and nothing here waits for a worker that is starting.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.runners import cluster  # sets what Ray reads when it is imported

import ray  # isort: skip
from ray import exceptions as ray_errors  # isort: skip
from ray.util.metrics import Gauge  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

from autopeft.errors import RunError, UserError
from autopeft.job import Job, Outcome, Setup
from autopeft.runners import Resources
from autopeft.runners.early import Early
from autopeft.runners.transport import FileServer, state_files, unpack
from autopeft.runners.worker import Answer, Home, Place, hire

_START_SECONDS = 300.0  # a worker imports torch and, on a cold disk, that can take a minute
_PATIENCE_SECONDS = 30.0  # before it is said that workers have not started
_LOOK_SECONDS = 1.0  # between two looks at the cluster's nodes
_REST_SECONDS = 60.0  # at most, before a slot whose worker did not start is tried again
_GROWTH = 1.2  # a worker this much larger than after its first job is replaced ...
_GROWTH_BYTES = 300 * 2**20  # ... if that is at least so much
# Ray keeps metric series for each name of a task, about 25 kB in the driver and in the worker:
# after so many jobs the trial's number is left out of the names, and few of them are left.
_NAMED = 500

_ALONE = "no worker is left: waiting for nodes to join (Ctrl-C stops the run)"

_DEATHS = (
    ray_errors.RayActorError,
    ray_errors.OutOfMemoryError,
    ray_errors.ObjectLostError,  # the answer lay on a node that is gone
    ray_errors.NodeDiedError,
)


@dataclass
class Slot:
    """A worker, starting or live.

    Attributes:
        number: of the slot.
        actor: Ray's handle.
        starting: reference of its first answer.
        since: when it was asked for (monotonic seconds).
        place: where it came up, from then on.
        job: what it is doing, after the reference of its answer.
        level: bytes of memory after its first job.
    """

    number: int
    actor: Any
    starting: Any
    since: float
    place: Place | None = None
    job: tuple[Any, Job] | None = None
    level: int = 0


class RayRunner:
    """Runs jobs on resident actors of a Ray cluster, started here unless there is one.

    Args:
        settings: ``workers``, ``gpus_per_worker``, ``address``, ``quiet``.
        setup: sent to the cluster once; ``threads`` are the CPU cores of an actor.
        function: dotted name of what does the work.
        early: a cluster that may be coming up already.

    Raises:
        UserError: no cluster answers at the address.
        RunError: the workers cannot start.
    """

    def __init__(
        self, settings: Resources, setup: Setup, function: str, early: Early | None = None
    ) -> None:
        self._cpus, self._wanted = max(1, setup.threads), settings.workers
        self._quiet, self._run_dir = settings.quiet, setup.run_dir
        self._said: set[str] = set()
        begun = early is not None and early.ready(self._cpus)
        self._ours = not ray.is_initialized()
        self._local = begun or (self._ours and not settings.address)
        dashboard = early.dashboard if early is not None and begun else ""
        if self._local and not begun:
            dashboard = cluster.start(cluster.cores(settings.workers, self._cpus))
        elif self._ours:
            dashboard = cluster.connect(settings.address)
        if dashboard:
            self._say(f"Ray dashboard: http://{dashboard}  (token: run `ray get-auth-token`)")
        self._gpus = cluster.share(settings.gpus_per_worker, self._wanted)
        self._node = ray.get_runtime_context().get_node_id()
        self._server = None if self._local else self._serve(setup)
        self._function, self._hired = function, early.actors if early is not None and begun else {}
        self._begin = (ray.put(setup), Home(self._node, self._server), self._gpus)
        self._slots: dict[int, Slot] = {}
        self._uses: dict[int, int] = {}  # how many workers a slot has had
        self._rest: dict[int, tuple[int, float]] = {}  # failed starts in a row, not before
        self._submitted = 0
        self._looked, self._target = -math.inf, 0
        self._gauges: dict[str, Any] = {}
        self._first_start()

    @property
    def slots(self) -> int:
        """Live workers."""
        return sum(slot.place is not None for slot in self._slots.values())

    def submit(self, job: Job, name: str = "") -> None:
        """Hands the job to a free worker; ``name`` is what the dashboard shows."""
        free = (s for s in self._slots.values() if s.place is not None and s.job is None)
        slot = min(free, key=lambda slot: slot.number)
        assert slot.place is not None
        state = state_files(self._run_dir, job.state) if slot.place.foreign else None
        self._submitted += 1
        plain = name.partition("-")[2] if self._submitted > _NAMED else name
        call = slot.actor.run.options(name=plain or job.kind)
        slot.job = (call.remote(job, state), job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Blocks until a job is done or ``slots`` changed; gives the jobs that are done.

        With no job out it comes back every second, so that the caller can stop or run out of
        budget while there are no nodes.
        """
        before = self.slots
        while True:
            self._look()
            jobs = [slot.job[0] for slot in self._slots.values() if slot.job is not None]
            starting = [slot.starting for slot in self._slots.values() if slot.place is None]
            if jobs or starting:
                both = jobs + starting
                ray.wait(both, num_returns=1, timeout=_LOOK_SECONDS, fetch_local=False)
            else:
                time.sleep(_LOOK_SECONDS / 4)
            done = self._collect_all()
            self._meet_all()
            if done or self.slots != before:
                return done
            if not self.slots and not starting:
                self._say(_ALONE)
            if not jobs:
                return []

    def report(self, name: str, tag: str, values: Mapping[str, float]) -> None:
        """Sets gauge ``autopeft_<name>``, one value for each value of ``tag``."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"autopeft_{name}", name, tag_keys=(tag,))
        for key, value in values.items():
            self._gauges[name].set(float(value), {tag: key})

    def close(self) -> None:
        """Ends our actors, and what was started or joined here. May be called again."""
        actors = [slot.actor for slot in self._slots.values()]
        for actor in [*actors, *([self._server] if self._server is not None else [])]:
            ray.kill(actor)
        self._slots.clear()
        self._server = None
        if self._ours:
            self._ours = False
            ray.shutdown()

    # ---- what comes back -----------------------------------------------------------------------

    def _collect_all(self) -> list[tuple[Job, Outcome]]:
        busy = {slot.job[0]: slot for slot in self._slots.values() if slot.job is not None}
        if not busy:
            return []
        done, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0, fetch_local=False)
        return [self._collect(busy[reference]) for reference in done]

    def _collect(self, slot: Slot) -> tuple[Job, Outcome]:
        assert slot.job is not None
        (reference, job), slot.job = slot.job, None
        try:
            answer: Answer = ray.get(reference)
        except (UserError, RunError) as error:
            # Ray's copy of it prints a remote traceback; its cause is what the worker raised.
            raise getattr(error, "cause", error) from None
        except _DEATHS as error:
            self._drop(slot)
            return job, Outcome("error", f"worker died: {_ending(error)}"[:300], job.start)
        except ray_errors.RayError as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            return job, Outcome("error", reason, job.start)
        if answer.parcel is not None:  # written before anybody hears of the outcome
            unpack(self._run_dir, answer.parcel)
        slot.level = slot.level or answer.memory
        if answer.memory > max(_GROWTH * slot.level, slot.level + _GROWTH_BYTES):
            grown = f"{slot.level / 2**20:.0f} to {answer.memory / 2**20:.0f} MB"
            self._say(f"the worker of slot {slot.number} grew from {grown}: replaced")
            self._drop(slot)
        return job, answer.outcome

    # ---- workers that come and go --------------------------------------------------------------

    def _first_start(self) -> None:
        """Waits for the first worker; one that cannot start now ends the run."""
        if self._local and not cluster.room(self._cpus, self._gpus):
            free = self._free()
            self.close()
            raise RunError(f"a worker needs {self._needs()}; {free}")
        deadline = time.monotonic() + _START_SECONDS
        while not self.slots:
            self._look()
            starting = [slot.starting for slot in self._slots.values()]
            if starting:
                ray.wait(starting, num_returns=1, timeout=_LOOK_SECONDS)
            else:
                time.sleep(_LOOK_SECONDS / 4)
            if (reason := self._meet_all()) and not self.slots:
                self.close()
                raise RunError(f"a worker cannot start: {reason}")
            if self._local and time.monotonic() > deadline:
                free = self._free()
                self.close()
                raise RunError(f"the workers did not start within {_START_SECONDS:.0f} s; {free}")

    def _meet_all(self) -> str:
        """Takes note of the workers that have started, or failed to; the last failure's reason."""
        new = {slot.starting: slot for slot in self._slots.values() if slot.place is None}
        if not new:
            return ""
        done, _ = ray.wait(list(new), num_returns=len(new), timeout=0)
        reason = ""
        for reference in done:
            slot = new[reference]
            try:
                slot.place = ray.get(reference)
                self._rest.pop(slot.number, None)
                self._said.discard(_ALONE)
            except ray_errors.RayError as error:
                self._drop(slot)
                reason = cluster.last_line(error)
                failures = self._rest.get(slot.number, (0, 0.0))[0] + 1
                pause = min(_REST_SECONDS, 2.0**failures)
                self._rest[slot.number] = (failures, time.monotonic() + pause)
                if self.slots or self._uses[slot.number] > 1:
                    self._say(f"a worker cannot start: {reason}; tried again later")
        return reason

    def _look(self) -> None:
        """Follows the nodes: forgets idle workers of lost ones, starts and gives up others."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            nodes = ray.nodes()
            alive = {node["NodeID"] for node in nodes if node["Alive"]}
            for slot in list(self._slots.values()):
                if slot.place is not None and slot.place.node not in alive and slot.job is None:
                    self._drop(slot)
            self._target = self._wanted or cluster.capacity(nodes, self._cpus, self._gpus)
        now = time.monotonic()
        if any(
            s.place is None and now - s.since > _PATIENCE_SECONDS for s in self._slots.values()
        ):
            what = f"{self.slots} of {self._target} workers have started"
            self._say(f"{what}; the others wait for a place: each needs {self._needs()}")
        surplus = len(self._slots) - self._target
        for slot in [s for s in self._slots.values() if s.place is None][: max(0, surplus)]:
            self._drop(slot)
        resting = {n for n, (_, until) in self._rest.items() if until > now and n < self._target}
        free = (n for n in range(self._target) if n not in self._slots and n not in resting)
        for number in list(free)[: max(0, -surplus - len(resting))]:
            self._start(number)

    def _start(self, number: int) -> None:
        self._uses[number] = self._uses.get(number, 0) + 1
        actor = self._hired.pop(number, None) or hire(
            number, self._function, self._cpus, self._gpus, self._uses[number]
        )
        starting = actor.begin.remote(*self._begin)
        self._slots[number] = Slot(number, actor, starting, time.monotonic())

    def _drop(self, slot: Slot) -> None:
        del self._slots[slot.number]
        ray.kill(slot.actor)

    # ---- what workers need ---------------------------------------------------------------------

    def _serve(self, setup: Setup) -> Any:
        """The actor on this node that other nodes ask for images and weights."""
        here = NodeAffinitySchedulingStrategy(self._node, soft=False)
        options = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here}
        return ray.remote(FileServer).options(**options).remote(setup)

    def _needs(self) -> str:
        return f"{self._cpus} CPU" + (f" and {self._gpus:g} GPU" if self._gpus else "")

    def _free(self) -> str:
        free = ray.available_resources()
        return f"Ray has {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free"

    def _say(self, line: str) -> None:
        """Once each."""
        if line not in self._said:
            self._said.add(line)
            if not self._quiet:
                print(line, file=sys.stderr)


def _ending(error: Exception) -> str:
    """How a worker ended, in one line: Ray's text begins with ids."""
    text = " ".join(str(error).split())
    for mark in ("Worker exit", "its node has died", "The actor is temporarily unavailable"):
        _, found, end = text.partition(mark)
        if found:
            return f"{type(error).__name__} {found}{end}".rstrip()
    return f"{type(error).__name__} {text}"
