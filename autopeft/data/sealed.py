"""Labels of test patients and external checks: locked away when the splits are made, opened once.

Python hides nothing from someone who wants to see it. What this keeps out is the accident: every
attribute, copy and message that a `Task` gives before the opening holds no sealed label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class Hash(Protocol):
    """What ``hashlib`` gives."""

    def update(self, data: bytes, /) -> None:
        """Takes bytes in."""


class Sealed:
    """Labels of some rows, and which of them the source calls uncertain.

    They live in the functions made here and in no attribute, so that nothing that lists, copies,
    prints or sends a task's attributes takes them along.

    Attributes:
        open: opens it, for good.
        opened: whether it is open.
        read: (labels [S, C], uncertain [S, C]); RuntimeError before the opening.
        feed: takes the labels of a whole task into a hash, which tells none of them:
            ``feed(hash, labels [N, C] with any values at the sealed rows, sealed rows [N])``.
    """

    __slots__ = ("feed", "open", "opened", "read")

    open: Callable[[], None]
    opened: Callable[[], bool]
    read: Callable[[], tuple[Labels, Bools]]
    feed: Callable[[Hash, Labels, Bools], None]

    def __init__(self, label: Labels, unsure: Bools) -> None:
        is_open = False

        def open_it() -> None:
            nonlocal is_open
            is_open = True

        def read() -> tuple[Labels, Bools]:
            if not is_open:
                raise RuntimeError("sealed: only open_test() hands it out, at the end")
            return label, unsure

        def feed(h: Hash, known: Labels, at: Bools) -> None:
            whole = known.copy()
            whole[at] = label
            h.update(whole.tobytes())
            if unsure.any():
                h.update(unsure.tobytes())

        self.open, self.opened, self.read, self.feed = open_it, lambda: is_open, read, feed

    def __reduce__(self) -> Any:
        raise RuntimeError("sealed labels are neither copied nor sent anywhere")
