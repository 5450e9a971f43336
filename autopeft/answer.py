"""Everything that the end of a run needs, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopeft.backbones.network import Network
from autopeft.baselines import Simple
from autopeft.bench import Audience, Bench, Model
from autopeft.clock import Clock
from autopeft.confirmation import Confirmed, Entrants
from autopeft.data.task import Task
from autopeft.evaluation import Evaluation, Predictions
from autopeft.ledger import Look
from autopeft.metrics.generalization import Fitted
from autopeft.metrics.memorization import Attack
from autopeft.objective import Objective
from autopeft.selection import ReadoutChoice, Scored
from autopeft.settings import Settings
from autopeft.study import Entry


@dataclass
class Answer:
    """Everything that the end of a run needs."""

    settings: Settings
    task: Task
    objective: Objective
    network: Network
    bench: Bench
    won: Confirmed
    entrants: Entrants
    baselines: Sequence[Model]
    ablated: Sequence[Model]
    readout: ReadoutChoice
    reference: Mapping[str, float]
    pool: Sequence[tuple[Entry, Evaluation]]
    declared: str
    clock: Clock
    decode_seconds: float
    group_notes: tuple[str, ...]
    look: Look = field(default_factory=Look)
    external_looks: dict[str, int] = field(default_factory=dict)
    thresholds: tuple[float | None, ...] = ()
    scored: dict[tuple[str, int, str], Predictions] = field(default_factory=dict)
    simple: dict[str, Simple] = field(default_factory=dict)
    recipes: Mapping[str, list[Attack]] = field(default_factory=dict)
    planted: Mapping[str, Fitted | None] = field(default_factory=dict)

    @property
    def audience(self) -> Audience:
        """Rows and groups."""
        return self.bench.audience

    @property
    def picked(self) -> Model:
        """The chosen finalist."""
        return self.won.picked

    @property
    def opponent(self) -> Model:
        """The baseline strongest on ``confirm``."""
        return self.won.opponent

    @property
    def metric(self) -> str:
        """What ranked on ``confirm``."""
        return self.won.metric

    @property
    def confirm(self) -> Scored:
        """(name, repeat) -> predictions on ``confirm``."""
        return self.won.scored

    @property
    def feasible(self) -> bool:
        """Whether any trial met the constraints on ``search``."""
        return self.entrants.feasible

    @property
    def winner(self) -> Model:
        """The chosen finalist under the name ``winner``."""
        return Model("winner", self.picked.candidate)

    @property
    def models(self) -> list[Model]:
        """Winner and baselines, as the files name them."""
        return [self.winner, *self.baselines]

    @property
    def repeats(self) -> range:
        """The fresh seeds of winner, baselines and all that is reported."""
        return range(1, self.settings.final_seeds + 1)
