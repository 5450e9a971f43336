"""Model Stock: how far to go from the frozen weights to the mean of a few trained ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autopeft.backbones.network import Network
from autopeft.posthoc.folders import Head, Source, State, open_all


def stock_share(changes: Sequence[Tensor]) -> float:
    """t = k c / (1 + (k - 1) c), c the mean cosine of pairs of the k changes; in [0, 1].

    0 where a change is zero: a frozen tensor stays frozen.
    """
    flat = torch.stack([c.double().reshape(-1) for c in changes])
    norms = flat.norm(dim=1)
    if not bool(norms.all()):
        return 0.0
    k = len(changes)
    cosines = (flat @ flat.t()) / norms[:, None] / norms
    mean = float((cosines.sum() - cosines.diagonal().sum()) / (k * (k - 1)))
    if mean <= 0:
        return 0.0
    return min(1.0, k * mean / (1 + (k - 1) * mean))


def stocked(base: Mapping[str, Tensor], trained: Sequence[Mapping[str, Tensor]]) -> State:
    """w = t mean(w_i) + (1 - t) w0 for each tensor, t its ``stock_share``."""
    state = {}
    for name, first in base.items():
        if not first.is_floating_point():
            state[name] = first.clone()
            continue
        w0 = first.double()
        changes = [one[name].double() - w0 for one in trained]
        mean = torch.stack(changes).mean(0)
        state[name] = (w0 + stock_share(changes) * mean).to(first.dtype)
    return state


def model_stock(
    sources: Sequence[Source],
    head: Source | Head | None = None,
    weights: str | None = None,
    network: Network | None = None,
) -> State:
    """A few trainings of one candidate (other seeds), joined without data.

    Paper: Jang et al. 2024, arXiv:2403.19522 (k = 2 or 3).

    Args:
        sources: two or more adapters, e.g. the repeats of one candidate.
        head: the head that training started from (the linear probe's), which is then treated like
            any tensor; None gives the mean of the heads.
        weights: as in ``load_adapter``.
        network: as in ``load_adapter``.

    Raises:
        UserError: one adapter only, other classes or weights, a method that cannot be merged.
    """
    found = open_all(sources, head, 2, "model_stock", weights, network)
    state = stocked(found.base, found.trained)
    if not found.head:
        state |= {name: value for name, value in found.base.items() if found.is_head(name)}
    return state
