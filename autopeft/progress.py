"""Progress on stderr: one live bar a stage, or nothing with ``--quiet``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar(Protocol):
    """Tells a stage's progress."""

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` units are finished."""
        ...


class Screen:
    """Where a run tells what it is doing.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        """Prints one line to stderr."""
        if not self._quiet:
            self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str) -> Iterator[Bar]:
        """A live bar for one stage; on a pipe it prints one line at the end instead."""
        if self._quiet:
            yield lambda done, total: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
