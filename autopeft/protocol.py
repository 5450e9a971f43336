"""What a run will be judged by, written before it starts; and its log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from autopeft import chain
from autopeft.errors import RunError
from autopeft.files import write_text

LOG = "log.jsonl"


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
    return digest_of(run_dir)


def digest_of(run_dir: Path) -> str:
    """sha256 of ``protocol.yaml``, first 16 hex digits."""
    return hashlib.sha256((run_dir / "protocol.yaml").read_bytes()).hexdigest()[:16]


def group_rules(needs: Sequence[str], primary: str) -> dict[str, str]:
    """What else the words depend on where groups are compared."""
    if "groups" not in needs:
        return {}
    found = {
        "levelled_down": "a counted group whose paired interval on test lies below -margin",
        "gaps": "shown: one test an attribute, Holm over attributes, or of single labels, Holm "
        "over all of them, below .05; below X: the interval's end X at most .05; else cannot tell",
    }
    if primary == "worst_group_auroc":
        found["worst_group"] = (
            "better, not worse: every counted group of the winner is held against the baseline's "
            "worst group, which confirm names (search, where confirm has too few patients); all "
            "of them must pass"
        )
    return found


def log(run_dir: Path, event: str, **facts: Any) -> None:
    """Appends one event to ``log.jsonl``, behind the hash of the line before it (``chain``).

    It is on the disk when this returns. No patient ids, no paths.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    chain.append(run_dir / LOG, {"time": now, "event": event, **facts})


def events(run_dir: Path) -> list[dict[str, Any]]:
    """What the log says, oldest first; a torn line is left out."""
    return chain.read(run_dir / LOG)


def log_start(run_dir: Path, **facts: Any) -> None:
    """Logs that a driver starts, and where: a copied folder is known by it."""
    log(run_dir, "started", place=place(run_dir), **facts)


def place(run_dir: Path) -> str:
    """Names this copy of a run: its journal's own file, which moves along but is not copied."""
    return hashlib.sha256(str((run_dir / "study.journal").stat().st_ino).encode()).hexdigest()[:8]


def since_last_start(run_dir: Path) -> list[str]:
    """What a user should know that happened to the folder since its last start, in lines."""
    known, lines = events(run_dir), list[str]()
    if (run_dir / LOG).exists() and (faults := chain.check(run_dir / LOG).faults):
        lines.append(
            f"{LOG} was changed since it was written ({faults[0]}); the run goes on, and "
            "`autopeft verify` will say so of its result"
        )
    if times := [e["time"] for e in known if "time" in e]:
        last = datetime.fromisoformat(max(times))
        back = (last - datetime.now(UTC)).total_seconds()
        if back > 60:
            lines.append(
                f"this machine's clock is {back:.0f} s before the last entry of log.jsonl; times "
                "in it are out of order, and nothing depends on them"
            )
    started = [e["place"] for e in known if e.get("event") == "started" and "place" in e]
    if started and started[-1] != place(run_dir):
        lines.append(
            "this folder is a copy of a run: it goes on from here by itself, and what another "
            "copy does is not known to it; each of them looks at the test patients on its own"
        )
    return lines


def test_opened(run_dir: Path) -> bool:
    """Whether this run has looked at its test patients: from then on nothing may be chosen."""
    return any(e.get("event") == "test_opened" for e in events(run_dir))
