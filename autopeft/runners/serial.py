"""The serial runner: one slot, in this process. For debugging, tests and small machines."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from autopeft.job import Job, Outcome, Setup
from autopeft.runners import guarded, resolve


class SerialRunner:
    """Runs a job when its outcome is waited for.

    What is resident (backbone, images) is kept by the function's own module.
    """

    slots = 1

    def __init__(self, setup: Setup, function: str) -> None:
        self._setup = setup
        self._function = resolve(function)
        self._queue: deque[Job] = deque()

    def submit(self, job: Job, name: str = "") -> None:
        """Puts the job in the queue."""
        self._queue.append(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Runs the oldest job of the queue."""
        job = self._queue.popleft()
        return [(job, guarded(self._function, self._setup, job))]

    def report(self, name: str, tag: str, values: Mapping[str, float]) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """Drops what was not started."""
        self._queue.clear()
