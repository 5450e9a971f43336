"""Hashes of files that a run has written: what is swapped or edited later is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.errors import RunError
from autopeft.job import Outcome

# Files of a finished run whose hashes its last line in the log holds; `result.json` is written
# after that line, and predictions/ has its hashes in the journal.
FILES = (
    "settings.yaml",
    "protocol.yaml",
    "task.json",
    "splits.csv",
    "trials.csv",
    "predictions.csv",
    "report.html",
    "merged.safetensors",
)
FOLDERS = ("best", "baselines")


def sha256(path: Path) -> str:
    """Of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sealed(folder: Path, outcome: Outcome) -> Outcome:
    """The outcome with the hash of its file of predictions, as it lies in the run's folder now.

    The driver calls this when it records the outcome: by then a file from another node is written.
    """
    file = folder / "predictions" / (outcome.predictions or "")
    return replace(outcome, sha256=sha256(file)) if file.is_file() else outcome


def changed(folder: Path, outcomes: Iterable[Outcome]) -> list[str]:
    """Names of files of predictions that are there and are none of those that were recorded.

    A file that was lost, made again and recorded again has two hashes: either is right.
    """
    known: dict[str, set[str]] = {}
    for outcome in outcomes:
        if outcome.predictions and outcome.sha256:
            known.setdefault(outcome.predictions, set()).add(outcome.sha256)
    return [
        name
        for name, hashes in sorted(known.items())
        if (file := folder / "predictions" / name).is_file() and sha256(file) not in hashes
    ]


def refuse_changed(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """A run does not go on from predictions that somebody has changed.

    Raises:
        RunError: names them.
    """
    names = changed(folder, outcomes)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise RunError(
            f"{folder}/predictions: {', '.join(names[:3])}{more} changed since the run recorded "
            "them. Put them back, or take a new --name."
        )


def written(folder: Path) -> dict[str, str]:
    """Path below the run's folder -> hash, of everything that stands there at its end."""
    files = [folder / name for name in FILES if (folder / name).is_file()]
    for name in FOLDERS:
        files += sorted(f for f in (folder / name).rglob("*") if f.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def journal(folder: Path) -> dict[str, Any]:
    """Size and hash of the journal: lines that a dashboard adds later change neither."""
    file = folder / "study.journal"
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def journal_holds(folder: Path, seal: dict[str, Any]) -> bool:
    """Whether the journal begins with what it was."""
    with (folder / "study.journal").open("rb") as stream:
        same: bool = hashlib.sha256(stream.read(seal["bytes"])).hexdigest() == seal["sha256"]
    return same
