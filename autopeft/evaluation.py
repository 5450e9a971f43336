"""What a metric may look at: predictions, cost, reference. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Kind = Literal["binary", "multiclass", "multilabel"]
# One operating point a class: of one model, or part -> those of the model that scored it.
Points = Sequence[float | None] | Mapping[int, Sequence[float | None]]


@dataclass(frozen=True)
class Predictions:
    """Scores of one model (or of one model a part) on the rows of one split.

    Attributes:
        score: logits [N, C]; already rounded to fp16 where the split is ``search``.
        target: 0, 1 or NaN (ignore), [N, C]; one-hot for multiclass.
        patient: patient ids [N], any hashable dtype; the unit of every interval.
        part: id [N] of the model that scored the row; AUROC pairs only within a part.
        groups: attribute -> group names [N]; ``"unknown"`` is never scored.
        classes: names of the C columns.
        kind: how logits become probabilities (sigmoid, or softmax for multiclass).
        split: which split the rows are from.
        repeat: which repeat trained the model.
    """

    score: Floats
    target: Floats
    patient: npt.NDArray[Any]
    part: npt.NDArray[Any]
    groups: Mapping[str, npt.NDArray[Any]]
    classes: tuple[str, ...]
    kind: Kind
    split: str
    repeat: int = 0

    def __post_init__(self) -> None:
        n, c = self.score.shape
        assert self.target.shape == (n, c), (self.target.shape, (n, c))
        assert len(self.classes) == c, (self.classes, c)
        assert len(self.patient) == n, (len(self.patient), n)
        assert len(self.part) == n, (len(self.part), n)
        assert all(len(v) == n for v in self.groups.values())

    @property
    def probability(self) -> Floats:
        """Probabilities [N, C] in float64: softmax for multiclass, else sigmoid."""
        z = self.score.astype(np.float64)
        if self.kind == "multiclass":
            e = np.exp(z - z.max(axis=1, keepdims=True))
            return e / e.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
        return 1 / (1 + np.exp(-z))

    @property
    def rank_score(self) -> Floats:
        """What a class's rows are ranked by, [N, C] in float64: log-softmax, or the logits.

        Softmax logits hold an arbitrary constant for each image: one column of them orders
        nothing until the constant is gone. Binary and multilabel logits hold none.
        """
        z = self.score.astype(np.float64)
        if self.kind != "multiclass":
            return z
        z = z - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]

    def take(self, rows: npt.NDArray[Any]) -> Predictions:
        """The same predictions for some rows (index or boolean mask [N])."""
        return replace(
            self,
            score=self.score[rows],
            target=self.target[rows],
            patient=self.patient[rows],
            part=self.part[rows],
            groups={k: v[rows] for k, v in self.groups.items()},
        )


def concatenated(folds: Mapping[int, Predictions]) -> Predictions:
    """Predictions of several models, each on rows of its own: ``part`` says whose a row is.

    Args:
        folds: number of the fold -> predictions of the model that did not see it.
    """
    every = list(folds.values())
    first = every[0]
    return replace(
        first,
        score=np.concatenate([p.score for p in every]),
        target=np.concatenate([p.target for p in every]),
        patient=np.concatenate([p.patient for p in every]),
        part=np.repeat(np.array(list(folds), np.int64), [len(p.part) for p in every]),
        groups={k: np.concatenate([p.groups[k] for p in every]) for k in first.groups},
    )


@dataclass(frozen=True)
class Cost:
    """What a training cost. Seconds are measured and never equal; the rest is exact."""

    trainable_params: int
    adapter_bytes: int
    train_seconds: float = 0.0
    images: int = 0


@dataclass(frozen=True)
class Evaluation:
    """All that an objective may look at for one trial.

    Attributes:
        search: predictions on the search patients.
        cost: what the training cost.
        counted: attribute -> the group values that count, fixed before trial 1 (PROTOCOL 3).
        reference: metric -> value of the strongest baseline on search, frozen before trial 1.
        thresholds: operating point per class (probability), fitted on search, or None; for
            scores of several models those of each (`Points`).
        train: predictions on a subsample of the training rows, when asked for.
        probe: predictions on the probe rows (non-members), when asked for.
        margin: the settings' ``--margin``.
        labels: attribute -> the labels that its groups are scored on, fixed before trial 1.
        null: scores of ``train`` and ``probe`` by something that has seen neither.
    """

    search: Predictions
    cost: Cost
    counted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    thresholds: Points = ()
    train: Predictions | None = None
    probe: Predictions | None = None
    margin: float = 0.01
    labels: Mapping[str, tuple[str, ...]] | None = None
    null: tuple[Predictions, Predictions] | None = None
