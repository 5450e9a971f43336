"""Predictors that need no fine-tuning: what any model has to beat to have learnt anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Kind
from autopeft.training.images import ImageStore
from autopeft.training.probe import best_strength, fit_probe

Floats = npt.NDArray[np.floating[Any]]
Groups = Mapping[str, npt.NDArray[Any]]
SIDE = 8  # pixels of a thumbnail: brightness, exposure, position, hardly any anatomy
UNKNOWN = "unknown"
_CHUNK = 256


def logistic_scores(
    train: Floats, label: Floats, kind: Kind, patient: npt.NDArray[Any], features: Floats
) -> npt.NDArray[np.float32]:
    """Logistic regression, its L2 strength chosen by cross-validation by patient inside train.

    Args:
        train: features of the training rows [n, d].
        label: [n, C], NaN = ignore; one-hot for multiclass.
        kind: the task's kind.
        patient: patient ids of the training rows [n].
        features: of the rows to score [N, d].

    Returns:
        Logits [N, C].
    """
    strength = best_strength(train, label, kind, patient)
    probe = fit_probe(train, label, kind, strength)
    return probe.logits(features).astype(np.float32)


def group_columns(groups: Groups) -> tuple[tuple[str, str], ...]:
    """(attribute, group) of each known group of some rows, sorted; an attribute with one has none.

    Args:
        groups: attribute -> group names [n].
    """
    found = []
    for attribute in sorted(groups):
        names = sorted(set(map(str, groups[attribute])) - {UNKNOWN})
        found += [(attribute, name) for name in names] if len(names) > 1 else []
    return tuple(found)


def one_hot(
    groups: Groups, columns: tuple[tuple[str, str], ...], missing: float = 0.0
) -> npt.NDArray[np.float32]:
    """Which groups each row is in [N, G]: 1, 0, or ``missing`` where the attribute is unknown.

    Args:
        groups: attribute -> group names [N].
        columns: as ``group_columns`` of the training rows gives them; another group is all 0.
        missing: of every group of an attribute that is unknown for the row.
    """
    n = len(next(iter(groups.values()))) if groups else 0
    table = np.zeros((n, len(columns)), np.float32)
    for column, (attribute, name) in enumerate(columns):
        value = groups[attribute]
        table[:, column] = np.where(value == UNKNOWN, missing, value == name)
    return table


def thumbnails(store: ImageStore, index: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Gray pictures of 8 x 8 pixels as rows of numbers in 0..1: means over the areas, [N, 64].

    Args:
        store: decoded images.
        index: rows of the store [N].
    """
    parts = [np.zeros((0, SIDE * SIDE), np.float32)]
    for start in range(0, len(index), _CHUNK):
        gray = store.batch(index[start : start + _CHUNK]).mean(axis=3, dtype=np.float32)
        for axis in (1, 2):
            size = gray.shape[axis]
            edges = np.arange(SIDE) * size // SIDE
            width = np.diff(np.r_[edges, size]).astype(np.float32)
            shape = [1, 1, 1]
            shape[axis] = SIDE
            gray = np.add.reduceat(gray, edges, axis=axis) / width.reshape(shape)
        parts.append(gray.reshape(len(gray), -1) / 255)
    return np.concatenate(parts)
