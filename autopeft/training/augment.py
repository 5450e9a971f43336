"""Deterministic views: which augmented version of an image an epoch sees, and how it is made.

A view is a pure function of (image, view number), so everything frozen above it can be cached.
View 0 is the plain image. No flip: the heart is on the left, and films carry markers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

Ints = npt.NDArray[np.uint64]

ROTATION = 10.0  # degrees, either way
ZOOM = 0.7  # smallest share of the area that is kept
TONE = 0.1  # brightness and contrast, either way


def mix(*values: Any) -> Ints:
    """Hashes integers (scalars or arrays, broadcast) to uint64 (splitmix64, chained)."""
    h = np.asarray(0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for value in values:
            h = np.asarray(h ^ np.asarray(value).astype(np.uint64), np.uint64)
            h = h + np.uint64(0x9E3779B97F4A7C15)
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(31))
    return h


def uniform(*values: Any) -> npt.NDArray[np.float64]:
    """Hashes integers to numbers in [0, 1)."""
    return (mix(*values) >> np.uint64(11)).astype(np.float64) / 2.0**53


def choose_view(
    views: int, seed: int, repeat: int, epoch: int, image: Any, occurrence: Any
) -> npt.NDArray[np.int64]:
    """The view [B] that an image [B] shows in an epoch.

    Args:
        views: 1 = always plain; V > 1 = one of V fixed views; 0 = a new one at each epoch.
        seed: the settings' seed.
        repeat: repeat of the training.
        epoch: epoch number.
        image: row numbers [B] in the image store.
        occurrence: how often the image was drawn before in this epoch [B].
    """
    h = mix(seed, repeat, epoch, image, occurrence)
    if views == 0:
        return (h >> np.uint64(2)).astype(np.int64) + 1
    return (h % np.uint64(views)).astype(np.int64)


def augment(
    pixels: torch.Tensor, image: npt.NDArray[np.int64], view: npt.NDArray[np.int64]
) -> torch.Tensor:
    """Makes views of a batch.

    Args:
        pixels: float [B, C, H, W] in 0..255.
        image: row numbers [B].
        view: view numbers [B]; rows with view 0 come back unchanged.

    Returns:
        float [B, C, H, W] in 0..255.
    """
    rows = np.flatnonzero(view)
    if len(rows) == 0:
        return pixels
    u = np.stack([uniform(image[rows], view[rows], k) for k in range(6)])
    theta = _affine(u[:4])
    part = pixels[torch.from_numpy(rows)]
    grid = functional.affine_grid(theta, list(part.shape), align_corners=False)
    moved = functional.grid_sample(part, grid, mode="bilinear", align_corners=False)
    tone = torch.from_numpy(1 + TONE * (2 * u[4:] - 1)).float().view(2, -1, 1, 1, 1)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    out = pixels.clone()
    out[torch.from_numpy(rows)] = ((moved - mean) * tone[0] + mean * tone[1]).clamp_(0, 255)
    return out


def _affine(u: npt.NDArray[np.float64]) -> torch.Tensor:
    """Rotation, zoom and shift inside the kept area: [B, 2, 3] for ``affine_grid``."""
    angle = np.deg2rad(ROTATION) * (2 * u[0] - 1)
    scale = np.sqrt(ZOOM + (1 - ZOOM) * u[1])
    room = 1 - scale
    shift = room * (2 * u[2] - 1), room * (2 * u[3] - 1)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    rows = [np.stack([cos, -sin, shift[0]], -1), np.stack([sin, cos, shift[1]], -1)]
    return torch.from_numpy(np.stack(rows, 1)).float()
