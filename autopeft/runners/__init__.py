"""Who executes jobs: ``serial`` in this process or ``ray`` on many. The study is the same."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from autopeft.errors import RunError, UserError
from autopeft.files import disk_trouble
from autopeft.job import Job, Outcome, Setup

if TYPE_CHECKING:
    from autopeft.runners.early import Early

Function = Callable[[Setup, Job], Outcome]


class Runner(Protocol):
    """Takes jobs and gives outcomes. At most ``slots`` jobs are out at a time."""

    @property
    def slots(self) -> int:
        """Jobs that may be out now; on a cluster it follows the nodes, down to 0."""

    def submit(self, job: Job, name: str = "") -> None:
        """Hands over a job; ``name`` is for people. Never blocks for long."""

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Blocks until a job is done or ``slots`` changed (then the list may be empty).

        A dead worker's job is an ``error`` outcome whose reason begins with ``worker died``.
        """

    def report(self, name: str, tag: str, values: Mapping[str, float]) -> None:
        """Shows numbers on a dashboard: the gauge ``autopeft_<name>{<tag>=...}``."""

    def close(self) -> None:
        """Ends the workers."""


class Resources(Protocol):
    """The settings that a runner reads."""

    @property
    def runner(self) -> str:
        """``serial`` or ``ray``."""

    @property
    def workers(self) -> int:
        """Number of workers; 0 = as many as fit."""

    @property
    def cpus_per_worker(self) -> int:
        """CPU cores of a worker; 0 = decided here."""

    @property
    def gpus_per_worker(self) -> float:
        """GPU share of a worker; 0 = decided here."""

    @property
    def address(self) -> str:
        """Of an existing Ray cluster; empty = one on this machine."""

    @property
    def quiet(self) -> bool:
        """No word on stderr."""


def check_address(settings: Resources) -> None:
    """Asks the settings' cluster, if there is one, before anything else is done for the run.

    Raises:
        UserError: it does not answer within seconds, or it wants a token.
    """
    if settings.runner == "ray" and settings.address:
        from autopeft.runners.cluster import check

        check(settings.address)


def worker_threads(settings: Resources) -> tuple[int, int]:
    """Workers on this machine and the CPU cores of each, as the settings or the machine say."""
    cores = os.cpu_count() or 1
    workers = settings.workers or (max(1, cores // 2) if settings.runner == "ray" else 1)
    return workers, settings.cpus_per_worker or max(1, cores // workers)


def open_runner(
    settings: Resources,
    setup: Setup,
    function: str = "autopeft.trial:run",
    early: Early | None = None,
) -> Runner:
    """Starts the runner that the settings ask for.

    Args:
        settings: ``runner``, ``workers``, ``gpus_per_worker``, ``address``, ``quiet``.
        setup: sent to every worker once; its ``threads`` are a worker's CPU cores.
        function: dotted name of what does the work, ``module:function(setup, job) -> Outcome``.
            Names cross processes, loaded objects do not.
        early: a cluster that may be coming up already.
    """
    if settings.runner == "ray":
        from autopeft.runners.ray import RayRunner

        return RayRunner(settings, setup, function, early)
    from autopeft.runners.serial import SerialRunner

    return SerialRunner(setup, function)


def resolve(function: str) -> Function:
    """The function behind ``module:name``."""
    module, _, name = function.partition(":")
    return cast(Function, getattr(importlib.import_module(module), name))


def guarded(function: Function, setup: Setup, job: Job) -> Outcome:
    """Runs one job; a failure becomes an outcome, the same in every runner.

    Raises:
        UserError: bad input found by a worker: it stops the run.
        RunError: likewise.
    """
    try:
        return function(setup, job)
    except (UserError, RunError):
        raise
    except MemoryError as error:
        return Outcome("oom", _one_line(error), job.start)
    except Exception as error:  # a bug must not take the study down
        stop_on_disk_trouble(error)
        text = traceback.format_exc()
        return Outcome("error", _one_line(error), job.start, extra={"traceback": text})


def stop_on_disk_trouble(error: Exception) -> None:
    """A full disk is no candidate's fault: the run stops, and goes on when there is space.

    Raises:
        RunError: the disk is full or read-only.
    """
    trouble = disk_trouble(error)
    # A file that may not be read is an error like any other.
    if trouble and not isinstance(error, PermissionError):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        raise RunError(f"{where}{trouble}. Make space; the same command goes on.") from error


def _one_line(error: BaseException) -> str:
    where = ""
    if error.__traceback__ is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(frame.filename).name}:{frame.lineno})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] + where
