"""What a candidate costs: exact numbers, and measured seconds."""

from __future__ import annotations

from autopeft.evaluation import Evaluation


def trainable_params(evaluation: Evaluation) -> float:
    """Parameters that were trained, head included."""
    return float(evaluation.cost.trainable_params)


def adapter_bytes(evaluation: Evaluation) -> float:
    """Size of the saved adapter and head in bytes."""
    return float(evaluation.cost.adapter_bytes)


def train_seconds(evaluation: Evaluation) -> float:
    """Measured training seconds; never equal between two runs, so never use it to promote."""
    return evaluation.cost.train_seconds
