"""A Ray cluster on this machine that comes up while the driver still opens its data.

Ray takes about as long to start as a driver takes to import torch and to open a task, and its
workers import the same things once more. Nobody has to wait for these one after the other.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from autopeft.errors import RunError
from autopeft.runners import Resources, worker_threads


class Early:
    """Begins a local cluster and its workers in the background; nothing for any other runner.

    Args:
        settings: ``runner``, ``workers``, ``cpus_per_worker``, ``gpus_per_worker``, ``address``.
        function: dotted name of what workers will do: they import it at once.
    """

    def __init__(self, settings: Resources, function: str = "autopeft.trial:run") -> None:
        self._settings, self._function = settings, function
        self._thread: threading.Thread | None = None
        self._up, self._over = threading.Event(), threading.Event()
        self._failure: RunError | None = None
        self._cpus = 0
        self.dashboard = ""
        self.actors: dict[int, Any] = {}

    def begin(self) -> None:
        """Called once nothing cheap can be wrong any more; returns at once."""
        there = "ray" in sys.modules and sys.modules["ray"].is_initialized()
        if self._settings.runner == "ray" and not self._settings.address and not there:
            self._thread = threading.Thread(target=self._live, name="autopeft-ray", daemon=True)
            self._thread.start()

    def ready(self, cpus: int) -> bool:
        """Waits for the cluster.

        Args:
            cpus: cores of a worker, as the run has it.

        Returns:
            Whether a cluster for such workers is up; one for others has been ended.

        Raises:
            RunError: Ray does not start.
        """
        if self._thread is None:
            return False
        self._up.wait()
        if self._failure is not None:
            raise self._failure
        if self._cpus != cpus:  # a run that goes on keeps the threads of its first start
            self.close()
        return self._cpus == cpus

    def close(self) -> None:
        """Ends the cluster. May be called again."""
        if self._thread is None:
            return
        self._up.wait()
        sys.modules["ray"].shutdown()
        self._over.set()
        self._thread.join()
        self._thread = None

    def _live(self) -> None:
        """The thread stays as long as the cluster: Ray's processes die with who started them."""
        try:
            self._start()
        except RunError as error:
            self._failure = error
        except Exception as error:  # whoever waits must hear of it
            self._failure = RunError(f"Ray did not start: {type(error).__name__}: {error}"[:300])
        self._up.set()
        self._over.wait()

    def _start(self) -> None:
        from autopeft.runners import cluster
        from autopeft.runners.worker import hire

        workers, self._cpus = worker_threads(self._settings)
        self.dashboard = cluster.start(cluster.cores(workers, self._cpus))
        gpus = cluster.share(self._settings.gpus_per_worker, self._settings.workers)
        for slot in range(min(workers, cluster.room(self._cpus, gpus))):
            self.actors[slot] = hire(slot, self._function, self._cpus, gpus)
