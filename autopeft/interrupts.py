"""Ctrl-C: once finishes what is running and selects, twice stops now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupts:
    """A context in which the first Ctrl-C only asks; the second one is a ``KeyboardInterrupt``.

    Args:
        say: told in one line what the first Ctrl-C did.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self.asked = say, False
        self._old: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._old = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say(
            "Ctrl-C: no new trial; what is running is finished, then the winner is confirmed. "
            "Again: stop now; the same command goes on later."
        )
