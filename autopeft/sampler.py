"""What to try next: the space sampled on an in-memory study made from the journal.

A trial that stopped early has no final value, so the journal's study is not what a sampler should
learn from. At each ask a study is built in memory from every candidate's values at one rung, the
highest with at least ten results (BOHB's rule); candidates without a value there are left out,
untold ones are RUNNING, which Optuna's samplers avoid (constant liar). Candidates that diverged
are PRUNED, which TPE ranks below everything that has a value. What a proposal was learned from is
written into the journal with it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from autopeft.candidate import Candidate
from autopeft.errors import UserError, nearest
from autopeft.schedule import Ladder, informative_rung
from autopeft.study import Entry, Study

AGAIN = 20  # asks of the sampler before a random one, when every answer is already known
RANDOM = 100  # random asks before the space counts as exhausted


@dataclass(frozen=True)
class Proposal:
    """A candidate that is not in the study yet.

    Attributes:
        candidate: what is to be trained.
        params: the parameters that gave it, by name.
        distributions: their ranges.
        system: the sampler's own notes.
        learned: ``by`` whom it was proposed (``warm start`` or a sampler), from which ``rung``'s
            values (epochs or folds) and how many ``results``.
    """

    candidate: Candidate
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    system: Mapping[str, Any]
    learned: Mapping[str, Any] = field(default_factory=dict)


def stable_seed(seed: int, asked: int) -> int:
    """A seed for the ask number ``asked``, so that a resumed study does not replay itself."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{asked}".encode()).digest()[:4])


def make_sampler(name: str, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """An Optuna sampler by the name that ``--sampler`` has for it.

    Args:
        name: ``tpe``, ``random``, ``nsga2`` or ``gp``.
        seed: seed of this ask.
        trials: length of the study, for the size of nsga2's generations.

    Raises:
        UserError: no such sampler.
    """
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    if name == "nsga2":
        # Optuna's 50 would leave a study of 32 trials in its random first generation.
        size = min(50, max(8, trials // 4))
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=size)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    known = ("tpe", "random", "nsga2", "gp")
    raise UserError(f"{name!r} is no sampler", "--sampler", nearest(name, known))


@dataclass(frozen=True)
class Proposer:
    """Asks for candidates, each of them new.

    Attributes:
        study: the journal.
        suggest: draws one raw candidate (``Space.ask``) and makes it canonical.
        defaults: warm starts, as parameters by name; at most a third of ``trials`` are used.
        ladder: the rungs.
        sampler: name of the sampler.
        seed: the settings' ``--seed``.
        trials: the settings' ``--trials``.
    """

    study: Study
    suggest: Callable[[optuna.trial.Trial], Candidate]
    defaults: Sequence[Mapping[str, Any]]
    ladder: Ladder
    sampler: str = "tpe"
    seed: int = 0
    trials: int = 32
    _lessons: dict[int, tuple[Entry, int, Lesson | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def ask(self) -> Proposal | None:
        """A candidate that is not in the study: sampled, else drawn at random.

        Returns:
            None where the space seems to be exhausted.
        """
        asked = self.study.count
        seed = stable_seed(self.seed, asked)
        for name, tries in ((self.sampler, AGAIN), ("random", RANDOM)):
            study, learned = self._memory(name, seed)
            warm = name == self.sampler and asked < min(self.trials // 3, len(self.defaults))
            if warm:
                study.enqueue_trial(dict(self.defaults[asked]))
            for attempt in range(tries):
                trial = study.ask()
                try:
                    candidate = self.suggest(trial)
                except UserError:  # values that are possible one by one, but not together
                    continue
                if not self.study.knows(candidate):
                    found = study.get_trials(deepcopy=False)[trial.number]
                    if warm and attempt == 0:
                        learned = {"by": "warm start"}
                    return Proposal(
                        candidate, found.params, found.distributions, _system(found), learned
                    )
                # Left as it is: RUNNING, so the next ask avoids it; never told.
        return None

    def _memory(self, name: str, seed: int) -> tuple[optuna.Study, dict[str, Any]]:
        """The study that the sampler sees, and what the journal says about it."""
        study = optuna.create_study(
            directions=list(self.study.directions),
            sampler=make_sampler(name, seed, self.trials),
        )
        if name == "random":
            return study, {"by": "random"}
        resource = self._resource()
        lessons = [t for e in self.study.entries if (t := self._lesson(e, resource)) is not None]
        study.add_trials(lessons)
        results = sum(lesson.state.is_finished() for lesson in lessons)
        return study, {"by": name, "rung": resource, "results": results}

    def _lesson(self, entry: Entry, resource: int) -> Lesson | None:
        """The entry's lesson, the one of the last ask if nothing has changed since."""
        last = self._lessons.get(entry.number)
        if last is None or last[0] is not entry or last[1] != resource:
            last = self._lessons[entry.number] = (entry, resource, _lesson(entry, resource))
        return last[2]

    def _resource(self) -> int:
        """The rung to learn from, as epochs or folds."""
        rung = self.ladder.rung
        rungs = [
            {index: m.value for done, m in e.rungs.items() if (index := rung(done)) is not None}
            for e in self.study.entries
        ]
        return self.ladder.stops[informative_rung(rungs, self.ladder.top)]


class Lesson(FrozenTrial):
    """A trial of the sampler's study. It never changes, so that studies may share its parts."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Lesson:
        """What Optuna makes of it on adding: half of an ask's time if all of it were copied."""
        return copy.copy(self)


def _lesson(entry: Entry, resource: int) -> Lesson | None:
    """What a sampler learns from one candidate, from its values with this resource."""
    # What never pauses has no value at a lower rung: its final one counts there too.
    enough = [r for r in entry.rungs if r >= resource]
    measured = entry.rungs[min(enough)] if enough else None
    values: list[float] | None = None
    constraints: dict[str, float] = {}
    if measured is not None and not measured.flaw:
        state = TrialState.COMPLETE
        values = [float(v) for v in measured.values if v is not None]
        constraints = {k: float(v) for k, v in measured.violations.items() if v is not None}
    elif entry.state == "running":
        state = TrialState.RUNNING
    elif entry.state == "fail" and entry.reason.startswith("nan"):
        state = TrialState.PRUNED
    else:
        return None
    now = datetime.now()
    lesson = Lesson(
        number=-1,  # it gets one when it is added
        trial_id=-1,
        state=state,
        value=None,
        values=values,
        datetime_start=now,
        datetime_complete=now if state.is_finished() else None,
        params=dict(entry.params),
        distributions=dict(entry.distributions),
        user_attrs={},
        system_attrs=dict(entry.system),
        intermediate_values={},
    )
    for name, violation in constraints.items():
        lesson.set_constraint(name, violation)
    return lesson


def _system(trial: FrozenTrial) -> dict[str, Any]:
    """The sampler's own notes on a trial (nsga2's generation); not the enqueued parameters."""
    return {k: v for k, v in trial.system_attrs.items() if k.startswith("NSGA")}
