"""Metrics by name: what an objective, a plot or a report may call for.

Each metric is a function of an `Evaluation` and answers None where it is undefined. Its direction
lives here; signs are never flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from autopeft.evaluation import Evaluation
from autopeft.metrics import classification, cost, fairness

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Metric:
    """A named metric.

    Attributes:
        function: Evaluation -> value, None where undefined.
        direction: which way is better.
        meaning: one line in plain words.
        needs: what the evaluation must hold: ``groups``, ``thresholds``, ``train``, ``probe``.
        every_fidelity: whether a half-trained model's value ranks it fairly. Gap and
            memorization do not: an untrained model is "fair" and "private" (TRAPS A4).
    """

    function: Callable[[Evaluation], float | None]
    direction: Direction
    meaning: str
    needs: tuple[str, ...] = ()
    every_fidelity: bool = True

    def __call__(self, evaluation: Evaluation) -> float | None:
        """The metric's value."""
        return self.function(evaluation)


METRICS: Mapping[str, Metric] = {
    "auroc": Metric(
        lambda e: classification.auroc(e.search),
        "maximize",
        "area under the ROC curve, mean over classes",
    ),
    "average_precision": Metric(
        lambda e: classification.average_precision(e.search),
        "maximize",
        "area under the precision-recall curve, mean over classes",
    ),
    "accuracy": Metric(
        lambda e: classification.accuracy(e.search),
        "maximize",
        "share of right decisions (likeliest class, or probability >= .5)",
    ),
    "brier": Metric(
        lambda e: classification.brier(e.search),
        "minimize",
        "mean squared error of the probability, mean over classes",
    ),
    "log_loss": Metric(
        lambda e: classification.log_loss(e.search),
        "minimize",
        "mean negative log-likelihood",
    ),
    "worst_group_auroc": Metric(
        fairness.worst_group_auroc,
        "maximize",
        "lowest AUROC over all counted groups of patients",
        needs=("groups",),
    ),
    "auroc_gap": Metric(
        fairness.auroc_gap,
        "minimize",
        "highest minus lowest group AUROC, largest over attributes (biased upwards)",
        needs=("groups",),
        every_fidelity=False,
    ),
    "equalized_odds_difference": Metric(
        fairness.equalized_odds_difference,
        "minimize",
        "largest difference between groups in sensitivity or false alarms at the frozen threshold",
        needs=("groups", "thresholds"),
        every_fidelity=False,
    ),
    "trainable_params": Metric(
        cost.trainable_params, "minimize", "parameters that are trained, head included"
    ),
    "adapter_bytes": Metric(cost.adapter_bytes, "minimize", "size of the saved adapter"),
    "train_seconds": Metric(
        cost.train_seconds, "minimize", "measured training time in seconds", every_fidelity=False
    ),
}
