"""Everything that the end of a run needs, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopeft.backbones.network import Network
from autopeft.baselines import Simple
from autopeft.bench import Audience, Bench, Model
from autopeft.clock import Clock
from autopeft.data.task import Task
from autopeft.evaluation import Evaluation, Predictions
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
    picked: Model
    opponent: Model
    finalists: Sequence[Model]
    baselines: Sequence[Model]
    ablated: Sequence[Model]
    confirm: Scored
    metric: str
    readout: ReadoutChoice
    reference: Mapping[str, float]
    feasible: bool
    front: tuple[int, ...]
    pool: Sequence[tuple[Entry, Evaluation]]
    declared: str
    clock: Clock
    decode_seconds: float
    group_notes: tuple[str, ...]
    look: int = 0
    thresholds: tuple[float | None, ...] = ()
    scored: dict[tuple[str, int, str], Predictions] = field(default_factory=dict)
    simple: dict[str, Simple] = field(default_factory=dict)
    recipes: Mapping[str, list[Attack]] = field(default_factory=dict)

    @property
    def audience(self) -> Audience:
        """Rows and groups."""
        return self.bench.audience

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
        """The fresh seeds."""
        return range(1, self.settings.seeds + 1)
