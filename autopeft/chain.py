"""Lines that hold the hash of the line before them: what was changed later is found.

Each line is JSON and begins with its number (``seq``) and the sha256 of the line before it
(``prev``). A process killed inside a line leaves half of it: the next line closes it, holds the
hash of the last whole line and the half one together, and says how many such there are (``torn``).
Whoever can rewrite every line and all that repeats the last one's hash is not found; for that,
keep the head somewhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START = "0" * 64  # what the first line holds in place of a hash


@dataclass(frozen=True)
class Chain:
    """What a look at all lines gave.

    Attributes:
        lines: how many there are, torn ones included.
        head: sha256 of the last one.
        faults: what was changed, in words; empty where nothing was.
        torn: lines that a killed process left and the next one closed.
        unfinished: whether the file ends inside a line.
    """

    lines: int
    head: str
    faults: tuple[str, ...] = ()
    torn: int = 0
    unfinished: bool = False


def append(path: Path, facts: Mapping[str, Any]) -> None:
    """Appends one line and flushes it to the disk. One process at a time may do so."""
    data = path.read_bytes() if path.exists() else b""
    lines = _lines(data)
    tail = _tail(lines)
    value: dict[str, Any] = {"seq": len(lines) + 1, "prev": _hash(tail)}
    if torn := sum(_parsed(line) is None for line in tail):
        value["torn"] = torn
    text = json.dumps({**value, **facts}, allow_nan=False) + "\n"
    if data and not data.endswith(b"\n"):
        text = "\n" + text
    with path.open("ab") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines in order, checked or not."""
    lines = _lines(path.read_bytes()) if path.exists() else []
    return [value for line in lines if (value := _parsed(line)) is not None]


def check(path: Path) -> Chain:
    """Whether every line follows the one before it.

    Raises:
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    lines = _lines(data)
    faults: list[str] = []
    tail: list[bytes] = []  # the last whole line, and the torn ones behind it
    torn, number = 0, 0
    for place, line in enumerate(lines, 1):
        value = _parsed(line)
        if value is not None:
            halves = sum(_parsed(t) is None for t in tail)
            if halves != value.get("torn", 0):
                faults.append(f"line {place - max(1, halves)}: is damaged, or one was removed")
            else:
                torn += halves
                faults += _misplaced(place, value, number + halves, _hash(tail))
            number, tail = value["seq"] if isinstance(value.get("seq"), int) else place, []
        tail.append(line)
    halves = sum(_parsed(t) is None for t in tail)
    unfinished = halves == 1 and not data.endswith(b"\n")
    if halves and not unfinished:
        faults.append(f"line {len(lines)}: is damaged")
    return Chain(len(lines), _hash(tail), tuple(faults), torn, unfinished)


def _misplaced(place: int, value: Mapping[str, Any], number: int, before: str) -> list[str]:
    """What is wrong with a line behind line ``number``; ``before`` is the hash it should hold."""
    seq = value.get("seq")
    if not isinstance(seq, int):
        return [f"line {place}: has no number; it was not written by a run"]
    if seq != number + 1:
        missing = seq - number - 1
        if missing > 0:
            return [f"line {place}: {missing} line(s) before it were removed or moved"]
        return [f"line {place}: it is number {seq} and was moved, or lines were inserted before"]
    if value.get("prev") != before:
        if place == 1:
            return ["line 1: was changed, or was not the first"]
        return [f"line {place}: does not hold the hash of line {place - 1}; one was changed"]
    return []


def _tail(lines: Sequence[bytes]) -> list[bytes]:
    """The last whole line and all behind it."""
    whole = next((i for i in reversed(range(len(lines))) if _parsed(lines[i]) is not None), 0)
    return list(lines[whole:])


def _lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        return None
    return value if isinstance(value, dict) else None


def _hash(tail: Sequence[bytes]) -> str:
    """Of a line, and of the torn ones behind it: so these break no link."""
    return hashlib.sha256(b"\n".join(tail)).hexdigest() if tail else START
