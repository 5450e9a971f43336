"""Sparse task vectors: breadcrumbs takes out outliers and dust, TIES settles signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from autopeft.adapter import Model
from autopeft.backbones.network import Network
from autopeft.errors import UserError
from autopeft.posthoc.folders import Head, Opened, Source, State, open_all, share


def kept_counts(width: int, beta: float, gamma: float) -> tuple[int, int]:
    """How many of a row's entries go because they are largest, and how many of the rest stay."""
    dropped = int(gamma * width + 0.5)
    return dropped, int(beta * (width - dropped) + 0.5)


def breadcrumb(change: Tensor, beta: float, gamma: float) -> Tensor:
    """A change without its largest and smallest entries, row by row.

    Args:
        change: of any shape; rows are its last dimension, of a kernel all inputs of one output.
        beta: share of the rest that stays, the largest of it.
        gamma: share of the largest entries that goes.
    """
    rows = change.flatten(1) if change.ndim > 1 else change.reshape(1, -1)
    dropped, kept = kept_counts(rows.shape[1], beta, gamma)
    order = rows.abs().argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask.scatter_(1, order[:, dropped : dropped + kept], True)
    return torch.where(mask, rows, torch.zeros_like(rows)).view(change.shape)


def trimmed(change: Mapping[str, Tensor], density: float) -> State:
    """The largest share of a change, all tensors together; the others are zero."""
    flat = torch.cat([c.reshape(-1) for c in change.values()])
    count = int(density * len(flat) + 0.5)
    kept = torch.zeros_like(flat)
    order = flat.abs().argsort(descending=True, stable=True)[:count]
    kept[order] = flat[order]
    sizes = [c.numel() for c in change.values()]
    parts = torch.split(kept, sizes)
    return {name: p.view(c.shape) for (name, c), p in zip(change.items(), parts, strict=True)}


def elected(changes: Sequence[Tensor]) -> Tensor:
    """Mean over those entries that have the sign of the sum; zero where none has."""
    stack = torch.stack(list(changes))
    agree = stack.sign() == stack.sum(0).sign()
    total = torch.where(agree, stack, torch.zeros_like(stack)).sum(0)
    return total / agree.sum(0).clamp(min=1)


def breadcrumbs(
    sources: Source | Sequence[Source],
    alpha: float = 0.4,
    beta: float = 0.2,
    gamma: float = 0.1,
    head: Source | Head | None = None,
    weights: str | None = None,
    network: Network | None = None,
) -> State:
    """W0 + alpha sum_i breadcrumb(W_i - W0): one adapter without its noise, or several joined.

    Paper: Davari and Belilovsky 2023, arXiv:2312.06795 (defaults: its code; searched there: alpha
    0.01 to 1, beta 0.05 to 0.2, gamma 0.001 to 0.01).

    Args:
        sources: one adapter or several.
        alpha: strength, 0 to 4.
        beta: share that stays of what is left in each row, 0 to 1.
        gamma: share of each row's largest entries that goes, 0 to 1.
        head: the head of the result; None gives the mean of the heads.
        weights: as in ``load_adapter``.
        network: as in ``load_adapter``.

    Raises:
        UserError: a value out of range, other classes or weights, a method that cannot be merged.
    """
    step = "breadcrumbs"
    alpha = share(alpha, "alpha", step, high=4.0)
    beta, gamma = share(beta, "beta", step), share(gamma, "gamma", step)
    many = [sources] if isinstance(sources, (str, Path, Model)) else sources
    found = open_all(many, head, 1, step, weights, network)
    total: State = {}
    for changes in _changes(found, step):
        for name, change in changes.items():
            crumb = breadcrumb(change, beta, gamma)
            total[name] = total[name] + crumb if name in total else crumb
    return _added(found.base, total, alpha)


def ties(
    sources: Sequence[Source],
    density: float = 0.2,
    scale: float = 1.0,
    head: Source | Head | None = None,
    weights: str | None = None,
    network: Network | None = None,
) -> State:
    """Trim, elect signs, merge: W0 + scale times the mean of the changes that agree in sign.

    Each change keeps its largest ``density`` share of entries, all tensors together that any of
    the adapters changes (the paper: of the model, whose every tensor changes there); an entry's
    sign is that of the sum over adapters; those of this sign are averaged.

    Paper: Yadav et al. 2023, arXiv:2306.01708.

    Args:
        sources: two or more adapters.
        density: share of entries that stays, 0 to 1.
        scale: strength, 0 to 4 (1 and density 0.2 in the paper where nothing can be validated).
        head: the head of the result; None gives the mean of the heads.
        weights: as in ``load_adapter``.
        network: as in ``load_adapter``.

    Raises:
        UserError: as in ``breadcrumbs``.
    """
    density = share(density, "density", "ties")
    scale = share(scale, "scale", "ties", high=4.0)
    found = open_all(sources, head, 2, "ties", weights, network)
    changes = [trimmed(change, density) for change in _changes(found, "ties")]
    merged = {name: elected([c[name] for c in changes]) for name in changes[0]}
    return _added(found.base, merged, scale)


def _changes(found: Opened, step: str) -> list[State]:
    """W_i - W0 in fp64 of each adapter: the tensors that any of them changes, but the head."""
    names = [
        name
        for name, base in found.base.items()
        if base.is_floating_point()
        and not found.is_head(name)
        and any(not torch.equal(one[name], base) for one in found.trained)
    ]
    if not names:
        raise UserError("the adapters change no weight but the head", step, "Name others.")
    return [{n: one[n].double() - found.base[n].double() for n in names} for one in found.trained]


def _added(base: Mapping[str, Tensor], change: Mapping[str, Tensor], scale: float) -> State:
    state = {}
    for name, value in base.items():
        moved = value.double() + scale * change[name] if name in change else value
        state[name] = moved.to(value.dtype)
    return state
