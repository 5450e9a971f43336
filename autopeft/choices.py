"""``autopeft choose``: what another objective would have picked, from a run's stored predictions.

Nothing is trained and no test patient is touched. But it is known by then how the run ended, so
whatever is chosen here is marked post hoc and gets no verdict.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft import plugins
from autopeft.baselines import REFERENCE
from autopeft.bench import Audience, Bench
from autopeft.candidate import Candidate
from autopeft.choice_numbers import replay_numbers
from autopeft.choice_words import picked_lines
from autopeft.clock import Clock
from autopeft.errors import UserError, nearest
from autopeft.files import write_json
from autopeft.objective import Objective, load_objective
from autopeft.progress import Screen
from autopeft.rebuild import Files, open_files, stored_bench
from autopeft.replay import replay
from autopeft.result import load_result
from autopeft.selection import evaluations, finalists, reference_evaluations, reference_values
from autopeft.stages import first_baselines

POST_HOC = (
    "post hoc: chosen by this rule after the run was finished and its test patients were opened; "
    "no verdict follows. For one, search again with this objective under another --name."
)


@dataclass(frozen=True)
class Choice:
    """What another objective picks among a run's fully trained trials.

    Attributes:
        file: where it was written, below the run's folder.
        numbers: its content: ``post_hoc``, ``objective``, ``candidate``, ``search`` (metric ->
            value), ``feasible``, ``front`` and ``replay``.
    """

    file: Path
    numbers: Mapping[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The picked candidate as plain data."""
        return dict(self.numbers["candidate"]["config"])

    @property
    def lines(self) -> list[str]:
        """What it says, for people."""
        return picked_lines(self.numbers)


def choose(
    name: str, objective: str, group: Sequence[str] = (), runs_dir: str | Path = "runs"
) -> Choice:
    """Applies another objective to a finished run, in seconds (``autopeft choose``).

    Args:
        name: of the run, below ``runs_dir``.
        objective: a built-in objective's name, or a file.
        group: of the run's attributes those that are compared, as they were declared (``sex``,
            ``age:60``); empty = all.
        runs_dir: folder of all runs.

    Returns:
        The choice, also written to ``choices/`` in the run's folder.

    Raises:
        UserError: no such run, objective or group, or the run did not measure what the objective
            asks for.
    """
    folder = Path(runs_dir) / name
    result = load_result(folder)
    wanted = load_objective(objective)
    with tempfile.TemporaryDirectory() as scratch:
        files = open_files(folder, result.numbers, Path(scratch))
        ready, bench = stored_bench(files)
        quiet = Screen(quiet=True)
        _, models = first_baselines(files.settings, ready, bench, quiet, Clock(Path(scratch)))
        bench.audience = _compared(bench.audience, files, group)
        _check(wanted, bench.audience, objective)
        references = [m for m in models if m.name in REFERENCE]
        repeats = range(1, files.settings.final_seeds + 1)
        numbers = _chosen(wanted, bench, files, references, repeats)
    stem = Path(objective).stem
    source = plugins.find("objectives", objective)
    numbers = {
        "post_hoc": POST_HOC,
        "run": result.numbers["run"],
        "objective": stem,
        "objective_sha256": source.sha256,
        "groups": {a: list(g) for a, g in bench.audience.counted.items()},
        **numbers,
        "winner": result.numbers["best"]["fingerprint"],
    }
    file = folder / "choices" / f"{'-'.join([stem, *map(_plain, group)])}.json"
    write_json(file, numbers)
    return Choice(file, numbers)


def _chosen(
    objective: Objective,
    bench: Bench,
    files: Files,
    references: Sequence[Any],
    repeats: Sequence[int],
) -> dict[str, Any]:
    """The pick, its values on search, the front, and how sure all of it is."""
    reference = reference_values(bench, references, repeats, objective)
    pool = evaluations(files.study, bench.audience, reference)
    chosen, front, feasible = finalists(pool, objective, 1)
    if not chosen:
        raise UserError(
            "none of the trials has a value for each of its terms on these search patients",
            f"--objective {objective.name}",
            "Take another objective.",
        )
    floor = [[e.search for e in own] for own in reference_evaluations(bench, references, repeats)]
    found = replay([e for _, e in pool], objective, floor, seed=files.settings.seed)
    (entry,) = chosen
    candidate: Candidate = entry.candidate
    values = {e.number: evaluation for e, evaluation in pool}
    names = [t.name for t in objective.terms]
    return {
        "candidate": {
            "number": entry.number,
            "title": candidate.title,
            "fingerprint": candidate.fingerprint,
            "config": candidate.to_dict(),
        },
        "search": objective.metrics(values[entry.number]),
        "reference": reference,
        "feasible": feasible,
        "front": [
            {
                "number": e.number,
                "title": e.candidate.title,
                "values": dict(zip(names, objective.values(values[e.number]), strict=True)),
            }
            for e in front
        ],
        "replay": {} if found is None else replay_numbers(found, pool, objective, candidate),
    }


def _compared(audience: Audience, files: Files, group: Sequence[str]) -> Audience:
    """The audience with some of its attributes.

    Raises:
        UserError: the run declared no such attribute, or it has no groups that count.
    """
    for name in group:
        if name not in files.task.attributes:
            raise UserError(
                f"the run has no group {name!r}",
                "--group",
                nearest(name, files.task.attributes) if files.task.attributes else "It has none.",
            )
        if name not in audience.counted:
            raise UserError(
                f"fewer than two groups of {name!r} count in this run",
                "--group",
                "They were counted before its first trial.",
            )
    if not group:
        return audience
    labels = {a: v for a, v in (audience.labels or {}).items() if a in group}
    return replace(audience, counted={a: audience.counted[a] for a in group}, labels=labels)


def _check(objective: Objective, audience: Audience, named: str) -> None:
    """Refuses what the run did not measure.

    Raises:
        UserError: it has no groups, or no scores of members and probe patients.
    """
    where = f"--objective {named}"
    if "groups" in objective.needs and not audience.counted:
        raise UserError(
            f"{objective.name} compares groups, and none counts in this run",
            where,
            "Search again with --group.",
        )
    if "memorization" in objective.needs and audience.null is None:
        raise UserError(
            f"{objective.name} asks who was trained on, and this run cut no probe patients",
            where,
            "Search again with this objective.",
        )


def _plain(group: str) -> str:
    """A group's name for a file."""
    return "".join(c for c in group if c.isalnum() or c in "_.")
