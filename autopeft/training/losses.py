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
    rows, counts = row_terms(logits, label, kind, name, smoothing, positive_weight)
    return rows.sum(), counts.sum()


def row_terms(
    logits: Tensor,
    label: Tensor,
    kind: Kind,
    name: str,
    smoothing: float,
    positive_weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """As ``loss_terms``, row by row: each row's sum of losses [B], its labelled entries [B].

    A row counts once for multiclass, else once for each of its labels.
    """
    missing = label.isnan()
    if kind == "multiclass":
        keep = ~missing.any(dim=1)
        target = torch.where(keep[:, None], label, torch.zeros_like(label))
        value = _softmax_rows(logits, target, name, smoothing, positive_weight)
        return torch.where(keep, value, torch.zeros_like(value)), keep.long()
    target = torch.where(missing, torch.zeros_like(label), label)
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
    return (value * ~missing).sum(dim=1), (~missing).sum(dim=1)


def _softmax_rows(
    logits: Tensor, target: Tensor, name: str, smoothing: float, positive_weight: Tensor
) -> Tensor:
    smooth = target * (1 - smoothing) + smoothing / target.shape[1]
    log_p = functional.log_softmax(logits, dim=1)
    if name == "weighted":
        smooth = smooth * (positive_weight / positive_weight.mean())
    if name == "focal":
        smooth = smooth * (1 - log_p.exp()) ** 2
    return -(smooth * log_p).sum(dim=1)
