"""Training losses over logits with missing labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.evaluation import Kind


def loss_terms(
    logits: Tensor,
    label: Tensor,
    kind: Kind,
    name: str,
    smoothing: float,
    positive_weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of a batch and the number of labelled entries.

    Sum and count are kept apart so that gradient accumulation gives exactly the batch's loss.

    Args:
        logits: [B, C].
        label: 0, 1 or NaN = ignore, [B, C]; one-hot for multiclass.
        kind: softmax for multiclass, else C independent sigmoids.
        name: ``bce``; ``weighted``; ``focal`` (Lin et al. 2017, gamma 2); ``asl`` (asymmetric
            loss, Ridnik et al. 2021, gamma- 4, margin .05; not for multiclass).
        smoothing: label smoothing in [0, 1).
        positive_weight: weight of a positive per class [C], read by ``weighted``.

    Returns:
        Two scalars.
    """
    if kind == "multiclass":
        keep = ~label.isnan().any(dim=1)
        return _softmax_terms(logits[keep], label[keep], name, smoothing, positive_weight)
    keep = ~label.isnan()
    target = torch.where(keep, label, torch.zeros_like(label))
    smooth = target * (1 - smoothing) + smoothing / 2
    if name == "asl":
        p = logits.sigmoid()
        shifted = (p - 0.05).clamp(min=0)
        positive = smooth * functional.logsigmoid(logits)
        negative = (1 - smooth) * shifted**4 * torch.log1p(-shifted.clamp(max=1 - 1e-6))
        value = -(positive + negative)
    else:
        weight = positive_weight if name == "weighted" else None
        value = functional.binary_cross_entropy_with_logits(
            logits, smooth, reduction="none", pos_weight=weight
        )
        if name == "focal":
            p = logits.sigmoid()
            value = value * (target * (1 - p) + (1 - target) * p) ** 2
    return (value * keep).sum(), keep.sum()


def _softmax_terms(
    logits: Tensor, label: Tensor, name: str, smoothing: float, positive_weight: Tensor
) -> tuple[Tensor, Tensor]:
    smooth = label * (1 - smoothing) + smoothing / label.shape[1]
    log_p = functional.log_softmax(logits, dim=1)
    if name == "weighted":
        smooth = smooth * (positive_weight / positive_weight.mean())
    if name == "focal":
        smooth = smooth * (1 - log_p.exp()) ** 2
    return -(smooth * log_p).sum(), torch.tensor(len(label))
