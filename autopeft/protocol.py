"""What a run will be judged by, written before it starts; its log; and the test ledger."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from autopeft.errors import RunError
from autopeft.files import lock, write_text


def write_protocol(run_dir: Path, content: Mapping[str, Any]) -> str:
    """Writes ``protocol.yaml`` once; a later start must agree with it.

    Returns:
        sha256 of the file, first 16 hex digits.

    Raises:
        RunError: the file there says something else (it was edited, or the code changed).
    """
    text = "# Declared before the first trial. The verdict follows it mechanically.\n"
    text += yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False)
    path = run_dir / "protocol.yaml"
    if path.exists():
        if path.read_text() != text:
            raise RunError(f"{path} differs from what this run would declare; take a new --name")
    else:
        write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def log(run_dir: Path, event: str, **facts: Any) -> None:
    """Appends one event to ``log.jsonl`` and flushes it to the disk. No patient ids, no paths."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(run_dir / "log.jsonl", {"time": now, "event": event, **facts})


def log_start(run_dir: Path, **facts: Any) -> None:
    """Logs that a driver starts, and where: a copied folder is known by it."""
    log(run_dir, "started", place=place(run_dir), **facts)


def place(run_dir: Path) -> str:
    """Names this copy of a run: its journal's own file, which moves along but is not copied."""
    return hashlib.sha256(str((run_dir / "study.journal").stat().st_ino).encode()).hexdigest()[:8]


def since_last_start(run_dir: Path) -> list[str]:
    """What a user should know that happened to the folder since its last start, in lines."""
    events, lines = read_lines(run_dir / "log.jsonl"), list[str]()
    if times := [e["time"] for e in events if "time" in e]:
        last = datetime.fromisoformat(max(times))
        back = (last - datetime.now(UTC)).total_seconds()
        if back > 60:
            lines.append(
                f"this machine's clock is {back:.0f} s before the last entry of log.jsonl; times "
                "in it are out of order, and nothing depends on them"
            )
    started = [e["place"] for e in events if e.get("event") == "started" and "place" in e]
    if started and started[-1] != place(run_dir):
        lines.append(
            "this folder is a copy of a run: it goes on from here by itself, and what another "
            "copy does is not known to it; each of them looks at the test patients on its own"
        )
    return lines


def test_opened(run_dir: Path) -> bool:
    """Whether this run has looked at its test patients: from then on nothing may be chosen."""
    return any(e.get("event") == "test_opened" for e in read_lines(run_dir / "log.jsonl"))


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Appends one JSON line; a torn last line of a killed process is closed first."""
    torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    with path.open("a") as stream:
        stream.write(("\n" if torn else "") + json.dumps(value) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; a torn line is left out."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def look(runs_dir: Path, patients: Sequence[str], run: str, identity: str) -> int:
    """Enters a look at test patients in the ledger of all runs.

    Args:
        runs_dir: folder of all runs; the ledger is ``test_ledger.jsonl`` in it.
        patients: the test patients; only their hash is written.
        run: the run's name, to be read by people.
        identity: made once for each journal: the same run looks once, however often it is
            resumed, and a deleted run that is started again looks again.

    Returns:
        Which look at these patients this is: 1 for the first run.
    """
    key = hashlib.sha256("\0".join(sorted(set(map(str, patients)))).encode()).hexdigest()[:32]
    ledger = runs_dir / "test_ledger.jsonl"
    with lock(runs_dir / ".test_ledger.lock", wait=True):
        seen = [e["identity"] for e in read_lines(ledger) if e.get("patients") == key]
        if identity not in seen:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            line = {"time": now, "patients": key, "run": run, "identity": identity}
            append_line(ledger, line)
            seen.append(identity)
    return seen.index(identity) + 1
