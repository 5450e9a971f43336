"""k nearest neighbors on frozen features: nothing is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.errors import UserError
from autopeft.evaluation import Kind
from autopeft.training.probe import FOLDS, log_loss

Floats = npt.NDArray[np.floating[Any]]
K, TEMPERATURE = 20, 0.07  # Wu et al. 2018, arXiv:1805.01978; k as in DINO, arXiv:2104.14294
CHOICES = (5, 10, 20, 50, 100, 200)  # of k, for a choice inside train
_CHUNK = 1024
_EDGE = 1e-4  # a vote of all neighbors is not certainty


def knn_scores(
    train_features: Floats,
    labels: Floats,
    features: Floats,
    k: int = K,
    temperature: float = TEMPERATURE,
    kind: Kind = "binary",
) -> npt.NDArray[np.float32]:
    """Votes of the k most similar training images, weighted by exp(cosine / temperature).

    Args:
        train_features: [n, d].
        labels: 0, 1 or NaN = has no vote, [n, C]; one-hot for multiclass.
        features: [N, d], of the images to score.
        k: neighbors; all training images when there are fewer.
        temperature: small = the nearest decide.
        kind: what a logit means: log-odds of each class, for multiclass log-probabilities.

    Returns:
        Logits [N, C]; where no neighbor has a label, those of the training images' prevalence.

    Raises:
        UserError: k or the temperature is out of range.
    """
    if k < 1:
        raise UserError(f"k = {k} is not possible", "knn", "It must be a whole number from 1.")
    if not temperature > 0:
        what = f"temperature = {temperature!r} is not possible"
        raise UserError(what, "knn", "It must be above 0.")
    known = ~np.isnan(labels)
    votes = np.where(known, labels, 0.0)
    prior = votes.sum(0) / np.maximum(known.sum(0), 1)
    base, parts = _unit(train_features), []
    for start in range(0, len(features), _CHUNK):
        similar = _unit(features[start : start + _CHUNK]) @ base.T
        near = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        close = np.take_along_axis(similar, near, 1)
        weight = np.exp((close - close[:, :1]) / temperature)[..., None]
        total = (weight * known[near]).sum(1)
        share = (weight * votes[near]).sum(1) / np.where(total > 0, total, 1)
        parts.append(np.where(total > 0, share, prior))
    p = np.concatenate(parts) if parts else np.zeros((0, labels.shape[1]))
    p = p.clip(_EDGE, 1 - _EDGE)
    return (np.log(p) if kind == "multiclass" else np.log(p / (1 - p))).astype(np.float32)


def best_k(
    features: Floats, labels: Floats, kind: Kind, patient: npt.NDArray[Any], limit: int = 4000
) -> int:
    """The k with the lowest log-loss, cross-validated by patient inside train; ties: the larger.

    Args:
        features: [n, d].
        labels: as in `knn_scores`.
        kind: the task's kind.
        patient: patient ids [n]: no patient votes on themselves.
        limit: training images that are used, spread evenly.
    """
    rows = np.arange(len(features))[:: max(1, -(-len(features) // limit))]
    x, y, ids = features[rows], labels[rows], patient[rows]
    names = np.unique(ids)
    rng = np.random.default_rng(0)
    fold = (rng.permutation(len(names)) % min(FOLDS, len(names)))[np.searchsorted(names, ids)]
    loss = dict.fromkeys(CHOICES, 0.0)
    for part in np.unique(fold):
        out, base = fold == part, fold != part
        if np.isnan(y[out]).all() or not base.any():
            continue
        for k in CHOICES:
            scores = knn_scores(x[base], y[base], x[out], k, kind=kind)
            loss[k] += log_loss(scores, y[out], kind) * int(out.sum())
    return min(CHOICES, key=lambda k: (loss[k], -k))


def _unit(features: Floats) -> npt.NDArray[np.float64]:
    """Rows of length 1 (a row of zeros stays)."""
    x = features.astype(np.float64)
    length: npt.NDArray[np.float64] = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(length, 1e-12)
