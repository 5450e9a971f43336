"""Linear probes on frozen features: convex, solved to the end by scikit-learn's L-BFGS.

A probe that is stopped early would make every adapter look better than it is, so the probe's
strength (L2) is its only size and its solution does not depend on a seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from autopeft.candidate import Pool
from autopeft.evaluation import Kind

Floats = npt.NDArray[np.floating[Any]]
STRENGTHS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)  # L2 on standardized features, mean loss
FOLDS = 5
SCAN_STRENGTHS = (0.1, 0.01, 1.0)  # when features are compared: the first for all of them,
SCAN_CLOSER = 3  # the others for so many
Where = tuple[int, Pool]


@dataclass(frozen=True)
class Probe:
    """A linear head. weight [C, d] and bias [C] act on raw (not standardized) features."""

    weight: Floats
    bias: Floats

    def logits(self, features: Floats) -> Floats:
        """[N, d] -> [N, C]."""
        return features @ self.weight.T + self.bias


def fit_probe(
    features: Floats,
    label: Floats,
    kind: Kind,
    strength: float,
    weight: Floats | None = None,
    iterations: int = 300,
) -> Probe:
    """Fits logistic regression: mean log-loss + strength / 2 * |w|^2 on standardized features.

    Args:
        features: [N, d].
        label: 0, 1 or NaN = ignore, [N, C]; one-hot for multiclass.
        kind: binary and multilabel fit C independent logits, multiclass a softmax.
        strength: L2 strength.
        weight: sample weights [N, C]; None = equal. Multiclass reads the true class's.
        iterations: L-BFGS iterations.

    Returns:
        The probe; a class without both labels gets weight 0 and its (clipped) log-odds as bias.
    """
    scaler = StandardScaler().fit(features)
    x = scaler.transform(features)
    n_classes = label.shape[1]
    w, b = np.zeros((n_classes, x.shape[1])), np.zeros(n_classes)
    if kind == "multiclass":
        keep = ~np.isnan(label).any(axis=1)
        target = label[keep].argmax(axis=1)
        present = np.unique(target)
        if len(present) > 1:
            sample = None if weight is None else weight[keep][np.arange(len(target)), target]
            coef, bias = _solve(x[keep], target, strength, sample, iterations)
            if len(present) == 2:  # scikit-learn gives one row for two classes
                coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
            w[present], b[present] = coef, bias
            b[np.setdiff1d(np.arange(n_classes), present)] = bias.min() - 5
    else:
        for c in range(n_classes):
            keep = ~np.isnan(label[:, c])
            target = label[keep, c].astype(int)
            if len(np.unique(target)) < 2:
                share = target.mean() if len(target) else 0.5
                b[c] = np.clip(np.log((share + 1e-3) / (1 - share + 1e-3)), -5, 5)
                continue
            sample = None if weight is None else weight[keep, c]
            coef, bias = _solve(x[keep], target, strength, sample, iterations)
            w[c], b[c] = coef[0], bias[0]
    w = w / scaler.scale_
    return Probe(w, b - w @ scaler.mean_)


def _solve(
    x: Floats, y: npt.NDArray[Any], strength: float, weight: Floats | None, iterations: int
) -> tuple[Floats, Floats]:
    total = len(x) if weight is None else float(weight.sum())
    model = LogisticRegression(C=1 / (strength * total), max_iter=iterations, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y, sample_weight=weight)
    return model.coef_, model.intercept_


def out_of_fold(
    features: Floats,
    label: Floats,
    kind: Kind,
    patient: npt.NDArray[Any],
    strengths: Sequence[float],
    iterations: int = 300,
) -> tuple[dict[float, Floats], npt.NDArray[np.int64]]:
    """Scores every patient by a probe that did not see the patient.

    Args:
        features: [N, d].
        label: [N, C].
        kind: the task's kind.
        patient: patient ids [N]; folds are disjoint by patient.
        strengths: L2 strengths to try.
        iterations: L-BFGS iterations.

    Returns:
        strength -> logits [N, C], and the fold number of each row [N].
    """
    fold = np.zeros(len(features), np.int64)
    folds = min(FOLDS, len(np.unique(patient)))
    splitter = GroupKFold(folds, shuffle=True, random_state=0)
    scores: dict[float, Floats] = {s: np.zeros(label.shape) for s in strengths}
    for k, (inside, outside) in enumerate(splitter.split(features, groups=patient)):
        fold[outside] = k
        for strength in strengths:
            probe = fit_probe(
                features[inside], label[inside], kind, strength, iterations=iterations
            )
            scores[strength][outside] = probe.logits(features[outside])
    return scores, fold


def scan(
    features: Mapping[Where, Floats], label: Floats, kind: Kind, patient: npt.NDArray[Any]
) -> tuple[dict[tuple[Where, float], Floats], npt.NDArray[np.int64]]:
    """Out-of-fold scores of a probe on several features of the same images.

    All features are tried with the middle strength, the few with the lowest log-loss with the
    others too: where a probe reads matters more than how strongly it is held.

    Args:
        features: place -> [N, d].
        label: [N, C].
        kind: the task's kind.
        patient: patient ids [N].

    Returns:
        (place, strength) -> logits [N, C], and the fold of each row [N].
    """
    found: dict[tuple[Where, float], Floats] = {}
    fold = np.zeros(len(label), np.int64)

    def add(where: Where, strengths: Sequence[float]) -> None:
        nonlocal fold
        scores, fold = out_of_fold(features[where], label, kind, patient, strengths, 100)
        found.update({(where, strength): score for strength, score in scores.items()})

    for where in features:
        add(where, SCAN_STRENGTHS[:1])
    loss = {where: log_loss(score, label, kind) for (where, _), score in found.items()}
    for where in sorted(loss, key=loss.__getitem__)[:SCAN_CLOSER]:
        add(where, SCAN_STRENGTHS[1:])
    return found, fold


def log_loss(logits: Floats, label: Floats, kind: Kind) -> float:
    """Mean log-loss over labelled entries; used to choose a strength inside train."""
    z = logits.astype(np.float64)
    if kind == "multiclass":
        keep = ~np.isnan(label).any(axis=1)
        z = z[keep] - z[keep].max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return float(-(log_p * label[keep]).sum(axis=1).mean())
    keep = ~np.isnan(label)
    z, y = z[keep], label[keep]
    return float((np.logaddexp(0, z) - y * z).mean())


def best_strength(
    features: Floats, label: Floats, kind: Kind, patient: npt.NDArray[Any], limit: int = 4000
) -> float:
    """The L2 strength with the lowest cross-validated log-loss inside train."""
    rows = np.arange(len(features))[:: max(1, -(-len(features) // limit))]
    scores, _ = out_of_fold(features[rows], label[rows], kind, patient[rows], STRENGTHS)
    return min(STRENGTHS, key=lambda s: log_loss(scores[s], label[rows], kind))
