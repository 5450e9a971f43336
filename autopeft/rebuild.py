"""A finished run's answer, made again from its files: no images, no backbone, no training.

The same steps as in a search are gone through (``stages``, ``writing.score``), with a bench that
reads what is recorded and trains nothing. The journal is copied first: opening one adds to it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from autopeft import plugins, protocol
from autopeft import settings as settings_file
from autopeft.answer import Answer
from autopeft.backbones.facts import Facts
from autopeft.bench import Bench
from autopeft.clock import Clock
from autopeft.data.counted import check_groups
from autopeft.data.task import Task
from autopeft.data.written import read
from autopeft.errors import RunError, UserError
from autopeft.job import Job, Outcome
from autopeft.ledger import Look
from autopeft.objective import Objective, load_objective
from autopeft.prepare import Ready, make_audience
from autopeft.progress import Screen
from autopeft.settings import Settings
from autopeft.stages import conclude, first_baselines, rung_value
from autopeft.study import Study
from autopeft.writing import score


@dataclass(frozen=True)
class Files:
    """A finished run's files, read.

    Attributes:
        folder: the run's.
        numbers: ``result.json``.
        settings: as they were saved; the folder may lie elsewhere now.
        declared: ``protocol.yaml``.
        task: from ``splits.csv`` and ``task.json``.
        facts: the backbone's.
        objective: the declared one.
        study: a copy of the journal, opened.
    """

    folder: Path
    numbers: Mapping[str, Any]
    settings: Settings
    declared: Mapping[str, Any]
    task: Task
    facts: Facts
    objective: Objective
    study: Study


def open_files(folder: Path, numbers: Mapping[str, Any], scratch: Path) -> Files:
    """Reads everything that a rebuild needs.

    Args:
        folder: of the run.
        numbers: its ``result.json``.
        scratch: an empty folder, for the journal's copy.

    Raises:
        UserError: a file is missing or damaged, or the objective is not the declared one.
    """
    settings_path = folder / "settings.yaml"
    settings = settings_file.from_mapping(settings_file.load(settings_path), str(settings_path))
    declared = settings_file.load(folder / "protocol.yaml")
    told = _context(folder / "task.json")
    task = read(told["task"], folder / "splits.csv")
    if not (folder / "study.journal").exists():
        raise UserError("is missing", str(folder / "study.journal"))
    source = plugins.find("objectives", settings.objective)
    if source.sha256 != declared.get("objective_sha256"):
        raise UserError(
            "is not the objective that was declared", str(source.path), "Put the file back."
        )
    objective = load_objective(settings.objective)
    shutil.copyfile(folder / "study.journal", scratch / "study.journal")
    study = Study(scratch, objective.directions, [t.name for t in objective.terms])
    facts = Facts.from_dict(told["backbone"])
    return Files(folder, numbers, settings, declared, task, facts, objective, study)


def stored_bench(files: Files) -> tuple[Ready, Bench]:
    """What was asked, and a bench on which everything recorded is found and nothing is done."""
    settings = files.settings
    needed = "groups" in files.objective.needs or bool(settings.group)
    ready = Ready(
        task=files.task,
        objective=files.objective,
        space=cast(Any, None),  # nothing is proposed any more
        network=SimpleNamespace(facts=files.facts),
        images=Path(),
        pixels="",
        counted=check_groups(files.task, settings, needed),
        decode_seconds=0.0,
    )
    audience = replace(make_audience(settings, ready, ""), run_dir=files.folder)
    return ready, Stored(audience, files.study, Nobody(), rung_value(files.objective, audience))


def rebuild(files: Files, scratch: Path) -> Answer:
    """The answer that the files give.

    Args:
        files: of the run.
        scratch: for what the steps write (seconds).

    Raises:
        RunError: a recorded step gives another result than it did, or has no file.
    """
    settings, study, task = files.settings, files.study, files.task
    if study.fact("reference") is None:
        raise RunError("study.journal holds no reference: it is not the journal of a finished run")
    ready, bench = stored_bench(files)
    clock, quiet = Clock(scratch), Screen(quiet=True)
    first = first_baselines(settings, ready, bench, quiet, clock)
    told = (protocol.digest_of(files.folder), "")
    answer = conclude(settings, ready, bench, first, told, clock, quiet)
    score(answer, quiet, lambda: cast(None, task.open_test()))
    answer.look = Look(**files.numbers["looks"])
    answer.external_looks = dict(files.numbers["external_looks"])
    return answer


class Stored(Bench):
    """A bench on which nothing is done: recorded outcomes count whether or not states remain."""

    def is_there(self, outcome: Outcome) -> bool:
        """Whether the scores are there; states are removed at the end of a run."""
        scores = outcome.predictions
        return scores is None or (self.audience.run_dir / "predictions" / scores).exists()


class Nobody:
    """A runner that runs nothing."""

    slots = 1

    def submit(self, job: Job, name: str = "") -> None:
        """Refuses.

        Raises:
            RunError: names what is missing.
        """
        raise RunError(f"predictions/{job.name}.npz or its record in study.journal is missing")

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Nothing was submitted."""
        return []

    def report(self, name: str, tag: str, values: Mapping[str, float]) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """Nothing is open."""


def _context(path: Path) -> dict[str, Any]:
    """``task.json``.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
        return {"task": dict(value["task"]), "backbone": dict(value["backbone"])}
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
    except (ValueError, KeyError, TypeError):
        raise UserError("is damaged", str(path)) from None
