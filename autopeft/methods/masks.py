"""Which entries of some matrices have the largest scores: pure functions, ties by place.

An entry's place is its flat index in the matrix [outputs, inputs]; of equal scores the earlier
tensor wins, and in it the lower place. So a choice depends on the scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def largest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Places of the ``count`` largest scores over all tensors together.

    Args:
        scores: tensors of any shape.
        count: how many in all; at most all of them.

    Returns:
        For each tensor the flat places that it got, ascending (int64, may be empty).
    """
    flat = torch.cat([s.reshape(-1) for s in scores])
    chosen = _largest(flat, min(count, len(flat)))
    ends = torch.tensor([s.numel() for s in scores]).cumsum(0)
    found = []
    for end, score in zip(ends.tolist(), scores, strict=True):
        start = end - score.numel()
        found.append(chosen[(chosen >= start) & (chosen < end)] - start)
    return found


def largest_in_rows(score: Tensor, count: int) -> Tensor:
    """Places of the ``count`` largest scores of each row of [outputs, inputs], ascending."""
    width = score.shape[1]
    count = min(count, width)
    last = score.topk(count, dim=1).values[:, -1:]
    above = score > last
    equal = score == last
    missing = count - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= missing))
    return chosen.reshape(-1).nonzero().reshape(-1)


def tile_scores(score: Tensor, tile: int, how: str) -> Tensor:
    """Scores of the tile x tile blocks of a matrix: [outputs / tile, inputs / tile].

    Args:
        score: [outputs, inputs], both divisible by ``tile``; may be signed.
        tile: side of a tile.
        how: ``mean_abs`` (L1 up to a factor), ``abs_mean`` or ``l2``.
    """
    outputs, inputs = score.shape
    tiles = score.reshape(outputs // tile, tile, inputs // tile, tile)
    if how == "abs_mean":
        return tiles.mean((1, 3)).abs()
    if how == "l2":
        return tiles.square().sum((1, 3)).sqrt()
    return tiles.abs().mean((1, 3))


def tile_places(tiles: Tensor, tile: int, inputs: int) -> Tensor:
    """Flat places of all entries of some tiles, ascending.

    Args:
        tiles: flat places in the grid of tiles.
        tile: side of a tile.
        inputs: columns of the matrix.
    """
    across = inputs // tile
    row, column = tiles // across * tile, tiles % across * tile
    side = torch.arange(tile)
    entries = (row[:, None, None] + side[:, None]) * inputs + column[:, None, None] + side
    return entries.reshape(-1).sort().values


def growing(deltas: Sequence[Tensor], taken: Sequence[Tensor], count: int) -> list[Tensor]:
    """``taken`` and the ``count`` largest of what is left: masks that only grow."""
    left = [delta.reshape(-1).clone() for delta in deltas]
    for delta, places in zip(left, taken, strict=True):
        delta[places] = -torch.inf
    fresh = largest(left, count)
    return [torch.cat(pair).sort().values for pair in zip(taken, fresh, strict=True)]


def _largest(flat: Tensor, count: int) -> Tensor:
    """Places of the largest values of a vector, ascending; of equal ones the first."""
    if count <= 0:
        return torch.empty(0, dtype=torch.int64)
    last = flat.topk(count).values[-1]
    above = (flat > last).nonzero().reshape(-1)
    equal = (flat == last).nonzero().reshape(-1)[: count - len(above)]
    return torch.cat((above, equal)).sort().values
