"""Metrics by name: what an objective, a plot or a report may call for.

Each metric is a function of an `Evaluation` and answers None where it is undefined. Its direction
lives here; signs are never flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from autopeft.evaluation import Evaluation
from autopeft.metrics import (
    calibration,
    classification,
    cost,
    fairness,
    generalization,
    memorization,
    odds,
)

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Metric:
    """A named metric.

    Attributes:
        function: Evaluation -> value, None where undefined.
        direction: which way is better.
        meaning: one line in plain words.
        needs: what the evaluation must hold: ``groups``, ``thresholds``, ``memorization``
            (scores of members and non-members).
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


def _macro(by_class: Mapping[str, float | None]) -> float | None:
    values = [value for value in by_class.values() if value is not None]
    return sum(values) / len(values) if values else None


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
    "tpr_at_specificity": Metric(
        lambda e: classification.tpr_at_specificity(e.search),
        "maximize",
        "sensitivity where the ROC curve reaches specificity .90, mean over classes",
    ),
    "f1": Metric(
        lambda e: _macro(classification.f1(e.search, e.thresholds)) if e.thresholds else None,
        "maximize",
        "F1 at the frozen threshold, mean over classes",
        needs=("thresholds",),
    ),
    "specificity": Metric(
        lambda e: (
            _macro(classification.specificity(e.search, e.thresholds)) if e.thresholds else None
        ),
        "maximize",
        "share of negatives cleared at the frozen threshold, mean over classes",
        needs=("thresholds",),
    ),
    "ece": Metric(
        lambda e: calibration.ece(e.search),
        "minimize",
        "debiased calibration error of the probability, mean over classes (200 patients or more)",
        every_fidelity=False,
    ),
    "calibration_slope_error": Metric(
        lambda e: calibration.slope_error(e.search),
        "minimize",
        "distance of the calibration slope from 1, mean over classes",
        every_fidelity=False,
    ),
    "calibration_intercept_error": Metric(
        lambda e: calibration.intercept_error(e.search),
        "minimize",
        "distance of the calibration intercept from 0, mean over classes",
        every_fidelity=False,
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
        odds.equalized_odds_difference,
        "minimize",
        "largest difference between groups in sensitivity or false alarms at the frozen threshold",
        needs=("groups", "thresholds"),
        every_fidelity=False,
    ),
    "equalized_odds_ratio": Metric(
        odds.equalized_odds_ratio,
        "maximize",
        "smallest ratio between groups of sensitivities or of false-alarm rates; 1 is equal",
        needs=("groups", "thresholds"),
        every_fidelity=False,
    ),
    "demographic_parity_difference": Metric(
        odds.demographic_parity_difference,
        "minimize",
        "largest difference between groups in the share called positive, whatever the truth",
        needs=("groups", "thresholds"),
        every_fidelity=False,
    ),
    "demographic_parity_ratio": Metric(
        odds.demographic_parity_ratio,
        "maximize",
        "smallest ratio between groups of the shares called positive; 1 is equal",
        needs=("groups", "thresholds"),
        every_fidelity=False,
    ),
    "memorization": Metric(
        memorization.memorization,
        "minimize",
        "how well an attack tells training patients from others: its AUC minus that of the null",
        needs=("memorization",),
        every_fidelity=False,
    ),
    "generalization_gap": Metric(
        generalization.generalization_gap,
        "minimize",
        "AUROC on training patients minus AUROC on patients cut from the same split",
        needs=("memorization",),
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
