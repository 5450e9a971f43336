"""Wall time of a run over all its starts."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from autopeft.files import write_json

_EVERY = 5.0  # seconds between two writes: no more than these are lost by a kill


class Clock:
    """Wall time of a run over all its starts, by part. The machine's own clock plays no role.

    Args:
        folder: the run's folder; earlier starts are read from its ``clock.json``.
        start: when this start began (``time.monotonic``); None = now.
    """

    def __init__(self, folder: Path, start: float | None = None) -> None:
        self._file = folder / "clock.json"
        self._start = time.monotonic() if start is None else start
        saved = _read(self._file)
        self._parts: dict[str, float] = saved["parts"]
        self._before: float = saved["total"]
        self._lock, self._over = threading.Lock(), threading.Event()
        self._open: dict[str, float] = {}  # parts that are running now, and since when
        self._written = self._start

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part, those that are running now included."""
        now = time.monotonic()
        running = {name: now - since for name, since in self._open.items()}
        names = dict.fromkeys([*self._parts, *running])
        return {n: self._parts.get(n, 0.0) + running.get(n, 0.0) for n in names}

    def total(self) -> float:
        """Seconds of all starts so far."""
        return self._before + time.monotonic() - self._start

    def tick(self, now: bool = False) -> None:
        """Writes the time down, at most every few seconds: a killed driver has spent it too."""
        with self._lock:
            if now or time.monotonic() - self._written > _EVERY:
                self._written = time.monotonic()
                write_json(self._file, {"total": self.total(), "parts": self.parts})

    def __enter__(self) -> Clock:
        """From here on the time is written every few seconds, whatever the driver waits for."""
        threading.Thread(target=self._beat, daemon=True, name="autopeft-clock").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(_EVERY):
            with contextlib.suppress(OSError):  # a full disk is said by what must be written
                self.tick()

    def part(self, name: str) -> Part:
        """A context whose time counts under ``name``, also when it ends in an exception."""
        return Part(self, name)

    def begin(self, name: str) -> None:
        """A part starts."""
        self._open[name] = time.monotonic()

    def end(self, name: str) -> None:
        """A part ends."""
        self._parts[name] = self._parts.get(name, 0.0) + time.monotonic() - self._open.pop(name)
        self.tick(now=True)


def _read(file: Path) -> dict[str, Any]:
    """What earlier starts wrote; a file that somebody damaged counts as none."""
    try:
        saved = json.loads(file.read_text())
        parts = {str(k): float(v) for k, v in saved["parts"].items()}
        return {"total": float(saved["total"]), "parts": parts}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {"total": 0.0, "parts": {}}


class Part:
    """See ``Clock.part``."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._clock.begin(self._name)

    def __exit__(self, *_: object) -> None:
        self._clock.end(self._name)
