"""Steps after training, on finished adapters: no step of gradient descent, no data.

Each takes adapter folders (or loaded models) and gives a loaded adapter where that is exact, else
the state dict of a plain timm model. ``docs/posthoc.md`` shows them.
"""

from __future__ import annotations

from autopeft.posthoc.averaging import model_stock
from autopeft.posthoc.compression import delta_come, delta_come_restored
from autopeft.posthoc.folders import as_adapter, save, weights_of
from autopeft.posthoc.interpolation import slerp, wise_ft, wise_ft_weights
from autopeft.posthoc.patch import portable_patch
from autopeft.posthoc.stack import lora_stack
from autopeft.posthoc.task_vectors import breadcrumbs, ties

__all__ = [
    "as_adapter",
    "breadcrumbs",
    "delta_come",
    "delta_come_restored",
    "lora_stack",
    "model_stock",
    "portable_patch",
    "save",
    "slerp",
    "ties",
    "weights_of",
    "wise_ft",
    "wise_ft_weights",
]
