"""Wall time of a run over all its starts."""

from __future__ import annotations

import time
from pathlib import Path

from autopeft import protocol


class Clock:
    """Wall time of a run over all its starts, by part.

    Args:
        folder: the run's folder; earlier starts are read from its log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._start = folder, time.monotonic()
        self.parts: dict[str, float] = {}
        for event in protocol.read_lines(folder / "log.jsonl"):
            if event["event"] == "time":
                self.parts[event["part"]] = self.parts.get(event["part"], 0) + event["seconds"]
        self._before = sum(self.parts.values())

    def total(self) -> float:
        """Seconds of all starts so far."""
        return self._before + time.monotonic() - self._start

    def part(self, name: str) -> Part:
        """A context whose time is logged under ``name``, also when it ends in an exception."""
        return Part(self, name)

    def add(self, name: str, seconds: float) -> None:
        """Enters seconds of one part."""
        self.parts[name] = self.parts.get(name, 0.0) + seconds
        protocol.log(self._folder, "time", part=name, seconds=round(seconds, 2))


class Part:
    """See ``Clock.part``."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name, self._start = clock, name, 0.0

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._name, time.monotonic() - self._start)
