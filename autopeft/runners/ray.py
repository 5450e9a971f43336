"""The Ray runner: resident actors, one a slot, each with its backbone and its images warm.

A trial is a method call on an actor, not a process of its own: 12 trivial trials took 4.6 s this
way and 51.9 s as Ray Tune functions.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

# Read by Ray when it is imported: nothing about a run leaves the machine.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives its workers nice 15: beside any other program they would get a few percent of a core.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray import exceptions as ray_errors

from autopeft.errors import RunError, UserError
from autopeft.job import Job, Outcome, Setup
from autopeft.runners import Resources, guarded, resolve

_STORE_BYTES = 200 * 2**20  # jobs and outcomes are a few kB; the setup is the largest object
_START_SECONDS = 300.0  # a worker imports torch and, on a cold disk, that can take a minute


class Worker:
    """One slot. Its function keeps what is resident in its own module."""

    def __init__(self, setup: Setup, function: str) -> None:
        self._setup, self._function = setup, resolve(function)

    def ready(self) -> int:
        """Answers once everything is imported."""
        return os.getpid()

    def run(self, job: Job) -> Outcome:
        """Executes one job."""
        return guarded(self._function, self._setup, job)


class RayRunner:
    """Runs jobs on resident actors of a Ray cluster, started here if there is none yet.

    Args:
        settings: ``workers``, ``gpus_per_worker``, ``quiet``.
        setup: sent to the cluster once; ``threads`` are the CPU cores of an actor.
        function: dotted name of what does the work.

    Raises:
        RunError: the workers cannot start.
    """

    def __init__(self, settings: Resources, setup: Setup, function: str) -> None:
        cpus = max(1, setup.threads)
        self._ours = not ray.is_initialized()
        if self._ours:
            _start(settings.workers, cpus, settings.quiet)
        gpus = float(ray.cluster_resources().get("GPU", 0))
        self.slots = settings.workers or _slots(cpus, gpus, settings.gpus_per_worker)
        share = settings.gpus_per_worker or (min(1.0, gpus / self.slots) if gpus else 0.0)
        self._actor = ray.remote(num_cpus=cpus, num_gpus=share, max_restarts=0)(Worker)
        self._setup, self._function = ray.put(setup), function
        self._started = 0
        self._workers: list[Any] = [self._new_worker(slot) for slot in range(self.slots)]
        self._out: dict[Any, tuple[int, Job]] = {}  # reference -> slot, job
        self._check(self._workers)

    def submit(self, job: Job, name: str = "") -> None:
        """Hands the job to a free slot; ``name`` is what the dashboard shows."""
        busy = {slot for slot, _ in self._out.values()}
        slot = next(s for s in range(self.slots) if s not in busy)
        call = self._workers[slot].run.options(name=name or job.name)
        self._out[call.remote(job)] = (slot, job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Blocks until at least one job is done; gives all that are."""
        references = list(self._out)
        ray.wait(references, num_returns=1)
        done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [self._collect(reference) for reference in done]

    def close(self) -> None:
        """Ends our actors, and the cluster if it was started here. May be called again."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers.clear()
        self._out.clear()
        if self._ours:
            self._ours = False
            ray.shutdown()

    def _collect(self, reference: Any) -> tuple[Job, Outcome]:
        slot, job = self._out.pop(reference)
        try:
            return job, ray.get(reference)
        except (UserError, RunError) as error:
            # Ray's copy of it prints a remote traceback; its cause is what the worker raised.
            raise getattr(error, "cause", error) from None
        except (ray_errors.RayActorError, ray_errors.OutOfMemoryError) as error:
            self._replace(slot)
            # Ray's text begins with ids; how the process ended stands behind "Worker exit".
            _, mark, end = " ".join(str(error).split()).partition("Worker exit")
            reason = f"worker died: {type(error).__name__} {mark}{end}"[:300].rstrip()
            return job, Outcome("error", reason, job.start)
        except ray_errors.RayError as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            return job, Outcome("error", reason, job.start)

    def _new_worker(self, slot: int) -> Any:
        """An actor named by its slot; a replacement also by a count: Ray frees names late."""
        self._started += 1
        again = f"-{self._started}" if self._started > self.slots else ""
        name = f"autopeft-slot-{slot}{again}"
        return self._actor.options(name=name).remote(self._setup, self._function)

    def _replace(self, slot: int) -> None:
        ray.kill(self._workers[slot])
        self._workers[slot] = self._new_worker(slot)
        self._check([self._workers[slot]])

    def _check(self, workers: list[Any]) -> None:
        """Waits until the workers have imported everything."""
        try:
            ray.get([worker.ready.remote() for worker in workers], timeout=_START_SECONDS)
        except ray_errors.GetTimeoutError:
            free = ray.available_resources()
            self.close()
            raise RunError(
                f"the workers did not start within {_START_SECONDS:.0f} s; Ray has "
                f"{free.get('CPU', 0):g} free CPUs and {free.get('GPU', 0):g} free GPUs"
            ) from None
        except ray_errors.RayError as error:
            self.close()
            raise RunError(f"a worker cannot start: {_last_line(error)}") from None


def _start(workers: int, cpus: int, quiet: bool) -> None:
    """A cluster on this machine, with its dashboard on the loopback interface."""
    count = workers or _slots(cpus, 0, 0)
    # Workers find the same packages as the driver, from whatever folder it was started in.
    paths = [str(Path(path).resolve()) for path in sys.path]
    try:
        context = ray.init(
            address="local",
            num_cpus=max(count * cpus, os.cpu_count() or 1),
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            object_store_memory=_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}},
        )
    except Exception as error:  # Ray raises plain exceptions, e.g. on a machine that is too busy
        ray.shutdown()
        raise RunError(f"Ray did not start: {_last_line(error)}") from error
    if not quiet and context.dashboard_url:
        print(
            f"Ray dashboard: http://{context.dashboard_url}  (token: run `ray get-auth-token`)",
            file=sys.stderr,
        )


def _slots(cpus: int, gpus: float, share: float) -> int:
    """As many workers as there are GPU shares, or else as CPUs allow."""
    if gpus:
        return max(1, math.floor(gpus / (share or 1.0)))
    return max(1, len(os.sched_getaffinity(0)) // cpus)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
