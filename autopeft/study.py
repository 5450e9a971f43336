"""The Optuna study: open or resume, record, tell. The journal is the single source of truth.

One journal file holds two plain Optuna studies, which ``optuna-dashboard`` opens:

``search``   the trials, one a candidate, told COMPLETE, PRUNED or FAIL with a reason.
``confirm``  baselines and confirmations, one a training, and everything else done once.

Only the driver writes. Each fact is one journal line, appended and flushed before it is acted on,
so that a driver killed between any two lines resumes from what the lines say.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autopeft.candidate import Candidate
from autopeft.entry import Entry, Measured, read_entry
from autopeft.errors import RunError
from autopeft.files import write_bytes
from autopeft.job import Job, Outcome
from autopeft.seals import sealed

__all__ = ["Entry", "Measured", "Study", "repair"]

Direction = Literal["maximize", "minimize"]


class Study:
    """Both studies of a run and their mirror in memory.

    The caller holds the run's lock: a second writer would not be seen here.

    Args:
        folder: the run's folder; ``study.journal`` lies in it.
        directions: ``maximize`` or ``minimize`` for each term of the objective.
        names: the terms' names, for ``frame``.
    """

    def __init__(self, folder: Path, directions: Sequence[str], names: Sequence[str] = ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.directions = cast(tuple[Direction, ...], tuple(directions))
        self.names = tuple(names)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "study.journal"
        torn = repair(path)
        self.repaired = (
            f"the journal ended inside a line (the driver was killed there): {torn} bytes were "
            "cut off and kept beside it; what they began is done again"
            if torn
            else ""
        )
        storage = JournalStorage(JournalFileBackend(str(path)))
        self._search = _open(storage, "search", self.directions)
        self._confirm = _open(storage, "confirm", ("maximize",))
        self._entries = {t.number: read_entry(t) for t in self._search.get_trials(deepcopy=False)}
        self._known = {entry.candidate.fingerprint for entry in self._entries.values()}
        self._facts: dict[str, Any] = dict(self._search.user_attrs)
        self._done = _read_done(self._confirm)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All trials of the search, by number."""
        return tuple(self._entries.values())

    def entry(self, number: int) -> Entry:
        """One trial of the search."""
        return self._entries[number]

    @property
    def count(self) -> int:
        """How many trials the search has; ``entries`` would be a copy of all."""
        return len(self._entries)

    def knows(self, candidate: Candidate) -> bool:
        """Whether a trial of the search has this candidate."""
        return candidate.fingerprint in self._known

    # ---- facts that are set once -------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """A study attribute set earlier (``reference``, ``readout`` ...), or None."""
        return self._facts.get(name)

    def fix(self, name: str, value: Any) -> Any:
        """Sets a study attribute once and for all; setting it again to an equal value is fine.

        Raises:
            RunError: it was set to something else before.
        """
        value = json.loads(json.dumps(value, allow_nan=False))
        if name in self._facts:
            if self._facts[name] != value:
                raise RunError(f"{name} of this run is {self._facts[name]}, not {value}")
            return value
        self._search.set_user_attr(name, value)
        self._facts[name] = value
        return value

    # ---- the search --------------------------------------------------------------------------

    def add(
        self,
        candidate: Candidate,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        system: Mapping[str, Any] | None = None,
        learned: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Adds a candidate as a RUNNING trial: all that is known of it in one journal line.

        Args:
            candidate: what is to be trained.
            params: the parameters that gave it, by name.
            distributions: their ranges.
            system: the sampler's own notes.
            learned: which sampler proposed it, and from which rung's values.
        """
        # What is trained is what is written down, to the last digit.
        plain = json.loads(candidate.to_json())
        candidate = Candidate.from_dict(plain)
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={
                "candidate": plain,
                "fingerprint": candidate.fingerprint,
                "title": candidate.title,
                "proposed": dict(learned or {}),
            },
            system_attrs=dict(system or {}),
        )
        self._search.add_trial(trial)
        number = len(self._entries)
        entry = Entry(
            number, candidate, "running", dict(params), dict(distributions), dict(system or {})
        )
        self._known.add(candidate.fingerprint)
        return self._keep(entry)

    def record_rung(self, number: int, resource: int, measured: Measured) -> Entry:
        """Records what a job gave, and the hash of its file. It is never trained again."""
        entry = self._entries[number]
        measured = replace(measured, outcome=sealed(self._folder, measured.outcome))
        self._trial(number).set_user_attr(f"rung/{resource}", measured.to_dict())
        return self._keep(replace(entry, rungs={**entry.rungs, resource: measured}))

    def record_attempt(self, number: int, target: int, outcome: Outcome) -> Entry:
        """Records that a worker did not reach the resource ``target``."""
        entry = self._entries[number]
        attempts = (*entry.attempts.get(target, ()), outcome)
        self._trial(number).set_user_attr(f"attempts/{target}", [o.to_dict() for o in attempts])
        return self._keep(replace(entry, attempts={**entry.attempts, target: attempts}))

    def complete(self, number: int) -> Entry:
        """Tells a fully trained trial with the values and constraints of its last rung."""
        entry = self._entries[number]
        assert entry.last is not None, f"trial {number} has nothing to tell"
        assert not entry.last.flaw, entry.last.flaw
        trial = self._trial(number)
        # Constraints come before tell: a trial without one would count as feasible. Those that a
        # killed driver already set are kept.
        for name in sorted(entry.last.violations.keys() - trial.constraints.keys()):
            trial.set_constraint(name, float(entry.last.violations[name]))  # type: ignore[arg-type]
        self._search.tell(trial, [float(v) for v in entry.last.values if v is not None])
        return self._keep(replace(entry, state="complete"))

    def prune(self, number: int, reason: str) -> Entry:
        """Tells a trial that stays where it is."""
        trial = self._trial(number)
        trial.set_user_attr("reason", reason)
        self._search.tell(trial, state=TrialState.PRUNED)
        return self._keep(replace(self._entries[number], state="pruned", reason=reason))

    def fail(self, number: int, reason: str) -> Entry:
        """Tells a trial that cannot go on."""
        trial = self._trial(number)
        trial.set_user_attr("reason", reason)
        self._search.tell(trial, state=TrialState.FAIL)
        return self._keep(replace(self._entries[number], state="fail", reason=reason))

    # ---- what is done once: baselines, confirmations, predictions -----------------------------

    def done(self, job: Job) -> Outcome | None:
        """The recorded outcome of a job outside of the search, by (kind, name), or None."""
        return self._done.get(_once(job))

    def record_done(
        self, job: Job, outcome: Outcome, role: str = "", value: float | None = None
    ) -> None:
        """Records a job outside of the search, so that it is never done again.

        A training becomes a trial of the study ``confirm``; any other job an attribute of it.

        Args:
            job: what was asked.
            outcome: what came back.
            role: what for, e.g. ``baseline lora_r8`` or ``confirm``.
            value: the training's rung metric on ``search``.
        """
        outcome = sealed(self._folder, outcome)
        if job.kind == "rung" and job.candidate is not None:
            finite = outcome.status == "ok" and value is not None and math.isfinite(value)
            trial = optuna.trial.create_trial(
                state=TrialState.COMPLETE if finite else TrialState.FAIL,
                values=[float(value)] if finite and value is not None else None,
                user_attrs={
                    "done": _once(job),
                    "role": role,
                    "candidate": json.loads(job.candidate.to_json()),
                    "fingerprint": job.candidate.fingerprint,
                    "repeat": job.repeat,
                    "part": job.part,
                    "outcome": outcome.to_dict(),
                    "reason": outcome.reason,
                },
            )
            self._confirm.add_trial(trial)
        else:
            self._confirm.set_user_attr(f"done/{_once(job)}", outcome.to_dict())
        self._done[_once(job)] = outcome

    # ---- reading -------------------------------------------------------------------------------

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """All that is recorded and went well, of the search and outside of it."""
        rungs = [m.outcome for entry in self.entries for m in entry.rungs.values()]
        return (*rungs, *self._done.values())

    def frame(self) -> pd.DataFrame:
        """One row a trial, for ``trials.csv``: state, values, cost, reason and parameters."""
        rows = []
        for entry in self.entries:
            last = entry.last
            cost = last.outcome.cost if last else None
            names = self.names or tuple(f"value_{i}" for i in range(len(self.directions)))
            values = last.values if last else (None,) * len(names)
            constraints = last.violations if last else {}
            rows.append(
                {
                    "number": entry.number,
                    "state": entry.state,
                    "method": entry.candidate.method,
                    "title": entry.candidate.title,
                    "fingerprint": entry.candidate.fingerprint,
                    "epochs": last.outcome.epoch if last else 0,
                    "rungs": len(entry.rungs),
                    "rung_value": last.value if last else None,
                    **dict(zip(names, values, strict=True)),
                    **{f"violation {k}": v for k, v in constraints.items()},
                    "trainable_params": cost.trainable_params if cost else None,
                    "adapter_bytes": cost.adapter_bytes if cost else None,
                    "train_seconds": entry.seconds,
                    "reason": entry.reason,
                    **entry.params,
                }
            )
        return pd.DataFrame(rows)

    def _trial(self, number: int) -> optuna.trial.Trial:
        """A handle for attributes, constraints and tell (Optuna's ask would sample anew)."""
        search = self._search
        find = search._storage.get_trial_id_from_study_id_trial_number  # no list of all trials
        return optuna.trial.Trial(search, find(search._study_id, number))

    def _keep(self, entry: Entry) -> Entry:
        self._entries[entry.number] = entry
        return entry


def load_search(folder: Path) -> optuna.Study:
    """The trials of a finished run as a plain Optuna study, to look at."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name="search", storage=storage)


def repair(path: Path) -> int:
    """Cuts a torn tail off a journal, back to its last whole line.

    A driver killed inside an append leaves half a line, and Optuna refuses the file from then on.
    The bytes are kept beside it as ``study.journal.torn-<offset>``. A lock that a killed driver
    left behind is removed (the caller holds the run's own lock), or Optuna would wait for it.

    Returns:
        The number of bytes cut off.
    """
    for stale in path.parent.glob(f"{path.name}.lock*"):
        stale.unlink()
    if not path.exists():
        return 0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    while end and not _is_json(line := data[data.rfind(b"\n", 0, end - 1) + 1 : end]):
        end -= len(line)
    if end < len(data):
        write_bytes(path.with_name(f"{path.name}.torn-{end}"), data[end:])
        os.truncate(path, end)
    return len(data) - end


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _open(storage: JournalStorage, name: str, directions: Sequence[Direction]) -> optuna.Study:
    # The journal's studies never sample: that happens in memory (autopeft.sampler).
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=list(directions),
        sampler=optuna.samplers.RandomSampler(),
        load_if_exists=True,
    )
    found = tuple(d.name.lower() for d in study.directions)
    if found != tuple(directions):
        raise RunError(f"the journal's directions are {found}, the objective's {directions}")
    return study


def _read_done(study: optuna.Study) -> dict[str, Outcome]:
    prefix = "done/"
    done = {
        k.removeprefix(prefix): Outcome.from_dict(v)
        for k, v in study.user_attrs.items()
        if k.startswith(prefix)
    }
    for trial in study.get_trials(deepcopy=False):
        done[trial.user_attrs["done"]] = Outcome.from_dict(trial.user_attrs["outcome"])
    return done


def _once(job: Job) -> str:
    return f"{job.kind}/{job.name}"
