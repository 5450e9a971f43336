"""One trial as the journal has it: what was measured at its rungs, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from autopeft.candidate import Candidate
from autopeft.job import Outcome, total_cost

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

State = Literal["running", "complete", "pruned", "fail"]


@dataclass(frozen=True)
class Measured:
    """What one rung gave.

    Attributes:
        outcome: the worker's answer.
        value: the objective's rung metric, by which trials are promoted.
        values: the objective's terms, None where undefined.
        violations: constraint -> violation, feasible when <= 0; None where undefined.
    """

    outcome: Outcome
    value: float
    values: tuple[float | None, ...]
    violations: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def flaw(self) -> str:
        """Why this cannot be told as COMPLETE; empty when it can."""
        named = {f"objective term {i}": v for i, v in enumerate(self.values)}
        named |= {f"constraint {name}": v for name, v in self.violations.items()}
        for name, value in named.items():
            if value is None or not math.isfinite(value):
                return f"{name} is undefined ({value})"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the journal."""
        return {
            "outcome": self.outcome.to_dict(),
            "value": self.value,
            "values": list(self.values),
            "violations": dict(self.violations),
        }

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Measured:
        """Reads back ``to_dict``."""
        return Measured(
            Outcome.from_dict(value["outcome"]),
            value["value"],
            tuple(value["values"]),
            dict(value["violations"]),
        )


@dataclass(frozen=True)
class Entry:
    """One trial of the search as the journal has it.

    Attributes:
        number: Optuna's trial number.
        candidate: what is trained.
        state: ``running`` covers queued, training and paused: not yet told.
        params: the sampled parameters by name, e.g. ``lora.r``.
        distributions: their ranges.
        system: the sampler's own notes (nsga2 keeps its generation there).
        rungs: resource -> what was measured there; epochs trained, or folds finished.
        attempts: resource -> failed attempts to reach it, oldest first.
        reason: why it failed or was stopped.
    """

    number: int
    candidate: Candidate
    state: State = "running"
    params: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)
    rungs: Mapping[int, Measured] = field(default_factory=dict)
    attempts: Mapping[int, tuple[Outcome, ...]] = field(default_factory=dict)
    reason: str = ""

    @property
    def done(self) -> int:
        """The resource that is recorded, epochs or folds; 0 at the start."""
        return max(self.rungs, default=0)

    @property
    def last(self) -> Measured | None:
        """What was measured with the largest resource."""
        return self.rungs[self.done] if self.rungs else None

    @property
    def trained(self) -> Outcome:
        """The adapter that is kept: trained on all of train, with the cost of its stretches.

        With folds as rungs it is the first one; the others are trained to be measured only.
        """
        outcomes = [o for o in self.outcomes if o.part == "all"]
        return replace(outcomes[-1], cost=total_cost(outcomes))

    @property
    def outcomes(self) -> list[Outcome]:
        """What was measured, in the order of the resource: stretches of a training, or folds."""
        return [measured.outcome for measured in self.rungs.values()]

    @property
    def seconds(self) -> float:
        """Seconds of training, over all rungs."""
        costs = [measured.outcome.cost for measured in self.rungs.values()]
        return sum(cost.train_seconds for cost in costs if cost)


_STATE: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "fail"}


def read_entry(trial: FrozenTrial) -> Entry:
    """A trial of the journal as an entry."""
    attrs = trial.user_attrs
    rungs = {int(k[5:]): Measured.from_dict(v) for k, v in attrs.items() if k.startswith("rung/")}
    attempts = {
        int(k[9:]): tuple(Outcome.from_dict(o) for o in v)
        for k, v in attrs.items()
        if k.startswith("attempts/")
    }
    return Entry(
        trial.number,
        Candidate.from_dict(attrs["candidate"]),
        _STATE.get(trial.state.name, "running"),
        trial.params,
        trial.distributions,
        {k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints")},
        dict(sorted(rungs.items())),
        attempts,
        attrs.get("reason", ""),
    )
