"""Scores of frozen weights, from images or from the weights alone, and what they choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.candidate import Candidate, Train
from autopeft.methods import masks

if TYPE_CHECKING:
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.adapted import Adapted
    from autopeft.methods.method import Scoring
    from autopeft.methods.sparse import Recipe

BATCH = 32
TEMPERATURE = 0.07  # of the contrastive loss, as in GPS


def matrix(network: Network, path: str) -> Tensor:
    """A layer's frozen weight as [outputs, inputs * kernel], detached."""
    weight: Tensor = network.model.get_submodule(path).weight
    return weight.detach().reshape(weight.shape[0], -1)


def scored(
    scoring: Scoring,
    recipe: Recipe,
    method: str,
    paths: Sequence[str],
    strata: Sequence[Stratum],
    readout: Readout,
) -> list[Tensor]:
    """The score of every weight of some layers, each [outputs, inputs * kernel], fp32.

    ``gradient`` and ``delta`` are signed. Those of the network as it is are shared by all
    candidates of a worker that ask for them, whatever their blocks and budgets.
    """
    if recipe.score in ("abs_small", "abs_large"):
        sign = -1 if recipe.score == "abs_small" else 1
        return [matrix(scoring.network, path).abs() * sign for path in paths]
    if recipe.score == "delta":
        key = f"delta {recipe.phase_epochs} {recipe.phase_lr} {','.join(paths)}"
        found = scoring.cached(key, lambda: _delta(scoring, recipe, method, strata, readout))
        return [found[path] for path in paths]
    known: dict[str, Tensor] = scoring.cached(
        f"{recipe.score} {recipe.score_loss} {recipe.score_images} {readout}", dict
    )
    if not known.keys() >= set(paths):
        adapted = dense(scoring, method, strata, readout)
        make = _fisher if recipe.score == "fisher" else _gradient
        known.update(make(scoring, recipe, adapted, method))
    return [known[path] for path in paths]


def dense(scoring: Scoring, method: str, strata: Sequence[Stratum], readout: Readout) -> Adapted:
    """The method's own layers with every entry open, and the probe's head.

    So the gradient of its values is the weights' whole gradient, and its values after training
    are how far the weights moved.
    """
    from autopeft.methods.adapted import build

    network = scoring.network
    every = {
        f"{path}.{method}_index": torch.arange(matrix(network, path).numel(), dtype=torch.int32)
        for path in paths_of(network, strata)
    }
    weight, bias = scoring.head()
    candidate = Candidate(tuple(strata), Train(), readout)
    adapted = build(network, candidate, len(bias), 0, 0, every)
    adapted.set_head(weight, bias)
    return adapted


def paths_of(network: Network, strata: Sequence[Stratum]) -> list[str]:
    """Paths of the layers that strata name, in their order."""
    return [
        network.module_path(block, name)
        for stratum in strata
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1)
        for name in stratum.modules
        if network.facts.modules[name][block]
    ]


def chosen(scores: Sequence[Tensor], recipe: Recipe, count: int) -> list[Tensor]:
    """Flat places of the entries that a recipe chooses in each matrix, ascending.

    Args:
        scores: what ``scored`` gave for the layers that are ranked together.
        recipe: granularity, ranking and share.
        count: entries in all, when the layers are ranked together.
    """
    signed = recipe.score in ("gradient", "delta")
    if recipe.granularity == "block":
        # Tiles of |W| count by their size, so the smallest are those with the largest -size.
        sign = -1 if recipe.score == "abs_small" else 1
        sizes = [sign * masks.tile_scores(s, recipe.tile, recipe.tile_score) for s in scores]
    else:
        sizes = [score.abs() if signed else score for score in scores]
    if recipe.granularity == "row":
        return [masks.largest_in_rows(size, recipe.per_row) for size in sizes]
    if recipe.ranking == "layer":
        picked = [masks.largest([s], recipe.units(s.numel()))[0] for s in sizes]
    else:
        picked = masks.largest(sizes, count // recipe.unit)
    if recipe.granularity == "element":
        return picked
    widths = [score.shape[1] for score in scores]
    return [masks.tile_places(p, recipe.tile, w) for p, w in zip(picked, widths, strict=True)]


def _gradient(
    scoring: Scoring, recipe: Recipe, adapted: Adapted, method: str
) -> dict[str, Tensor]:
    """Sum over images of dLoss/dW."""
    with torch.enable_grad():
        for x, label in scoring.batches(BATCH, recipe.score_images):
            if recipe.score_loss == "supcon":
                loss = contrastive(adapted.pooled(x), label)
            else:
                loss = scoring.loss(adapted.logits(x), label)
            (loss * len(label)).backward()  # type: ignore[no-untyped-call]
    values = _values(adapted, method)
    none = {path: torch.zeros_like(v) for path, v in values.items() if v.grad is None}
    return _shaped(scoring, {path: none.get(path, v.grad) for path, v in values.items()})


def _fisher(scoring: Scoring, recipe: Recipe, adapted: Adapted, method: str) -> dict[str, Tensor]:
    """Mean over images of (dLoss/dW)², one image at a time: the empirical Fisher's diagonal."""
    values = _values(adapted, method)
    total = {path: torch.zeros_like(value) for path, value in values.items()}
    images = 0
    with torch.enable_grad():
        for x, label in scoring.batches(1, recipe.score_images):
            loss = scoring.loss(adapted.logits(x), label)
            got = torch.autograd.grad(loss, list(values.values()))
            for square, gradient in zip(total.values(), got, strict=True):
                square.addcmul_(gradient, gradient)
            images += 1
    return _shaped(scoring, {path: square / max(images, 1) for path, square in total.items()})


def _delta(
    scoring: Scoring, recipe: Recipe, method: str, strata: Sequence[Stratum], readout: Readout
) -> dict[str, Tensor]:
    """How far full fine-tuning of the layers moves each weight; then they are as before."""
    adapted = dense(scoring, method, strata, readout)
    with torch.enable_grad():
        scoring.fine_tune(adapted, recipe.phase_epochs, recipe.phase_lr)
    return _shaped(scoring, _values(adapted, method))


def _values(adapted: Adapted, method: str) -> dict[str, Tensor]:
    """Path of a layer -> its values that train."""
    ends = f".{method}_value"
    return {n.removesuffix(ends): p for n, p in adapted.trainable.items() if n.endswith(ends)}


def _shaped(scoring: Scoring, flat: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Flat values of whole layers as matrices, not attached to a graph."""
    return {
        path: values.detach().cpu().reshape(matrix(scoring.network, path).shape)
        for path, values in flat.items()
        if values is not None
    }


def grown(
    scoring: Scoring,
    recipe: Recipe,
    method: str,
    strata: Sequence[Stratum],
    readout: Readout,
    counts: Sequence[int],
) -> list[Tensor]:
    """Places after some rounds of: fine-tune everything, take what moved most, rewind the rest.

    Args:
        counts: entries taken in each round.
    """
    adapted = dense(scoring, method, strata, readout)
    values = list(_values(adapted, method).values())
    taken = [torch.empty(0, dtype=torch.int64) for _ in values]
    for count in counts:
        with torch.enable_grad():
            scoring.fine_tune(adapted, recipe.phase_epochs, recipe.phase_lr)
        taken = masks.growing([v.detach().abs().cpu() for v in values], taken, count)
        with torch.no_grad():
            for value, places in zip(values, taken, strict=True):
                keep = torch.zeros(len(value), dtype=torch.bool)
                keep[places] = True
                value.mul_(keep.to(value.device))
    return taken


def contrastive(features: Tensor, label: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362), one view an image.

    Args:
        features: [B, d], any length.
        label: [B, C] or [B]; images with equal rows attract, rows with a missing label are left
            out, and so are images without a partner.
    """
    label = label.reshape(len(label), -1).float()
    keep = ~label.isnan().any(1)
    z, label = functional.normalize(features.float()[keep], dim=1), label[keep]
    own = torch.eye(len(z), dtype=torch.bool)
    alike = (label[:, None] == label[None]).all(2) & ~own
    similar = (z @ z.t() / TEMPERATURE).masked_fill(own, -torch.inf)
    log_p = similar.log_softmax(1).masked_fill(own, 0.0)
    paired = alike.any(1)
    mean = (log_p * alike).sum(1)[paired] / alike.sum(1)[paired]
    return -mean.mean() if len(mean) else features.sum() * 0.0
