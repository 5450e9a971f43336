"""How large a gap looks where there is none: group names permuted over patients.

The highest minus the lowest of several noisy AUROCs is above 0 even if the true ones are equal
(four groups of 50 + 150 patients at AUROC .85: about .06), so that a gap is shown beside this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.groups import Scored
from autopeft.metrics.pairs import Indices, defined, pair

_FEW = 10  # label patterns of fewer patients are permuted together


@dataclass(frozen=True)
class NullGap:
    """Mean gap over permutations.

    Attributes:
        of_means: highest minus lowest of the groups' mean AUROCs.
        of_labels: highest minus lowest per label, mean over labels.
    """

    of_means: float | None
    of_labels: float | None


def null_gap(p: Predictions, scored: Scored, n: int = 200, seed: int = 0) -> NullGap:
    """The gap on average when group names say nothing.

    Patients trade their group with patients of the same labels (for several images: positive in
    any of them, else known negative, else unknown, for each label of the label set), so that
    every group keeps its size and, up to patterns that fewer than ten patients have, its
    positives of each label. Rare patterns trade among those with as many positive labels.

    Args:
        p: predictions.
        scored: the groups and columns.
        n: permutations.
        seed: their seed.
    """
    block, member, pattern = _blocks(p, scored)
    pairs = [
        pair(p.rank_score[rows, c], p.target[rows, c], block, p.part[rows])
        for rows in [np.flatnonzero(np.isin(p.groups[scored.attribute], scored.groups))]
        for c in scored.columns
    ]
    stratum, rng, groups = _strata(pattern), np.random.default_rng(seed), len(scored.groups)
    base = np.argsort(stratum, kind="stable")
    at_once = int(np.clip(400_000 // max(len(block) * groups, 1), 1, n))
    means, labels = [], []
    for start in range(0, n, at_once):
        drawn = min(at_once, n - start)
        permuted = np.empty((len(member), drawn), dtype=np.intp)
        for b in range(drawn):
            order = np.lexsort((rng.random(len(member)), stratum))
            permuted[base, b] = member[order]
        weight = (permuted[:, :, None] == np.arange(groups)).astype(np.float64)
        every = np.stack([cell.auroc(weight.reshape(len(member), -1)) for cell in pairs])
        every = every.reshape(len(pairs), drawn, groups)
        means.append(np.ptp(every.mean(axis=0), axis=1))
        labels.append(np.ptp(every, axis=2).mean(axis=0))
    return NullGap(_mean(means), _mean(labels))


def _blocks(p: Predictions, scored: Scored) -> tuple[Indices, Indices, Indices]:
    """Block of each used row, group of each block, label pattern of each block [blocks, labels].

    A block is a patient's rows in one group: nearly always all of the patient's rows.
    """
    names = p.groups[scored.attribute]
    rows = np.flatnonzero(np.isin(names, scored.groups))
    group = np.array([scored.groups.index(name) for name in names[rows]], dtype=np.intp)
    _, patient = np.unique(p.patient[rows], return_inverse=True)
    keys, block = np.unique(patient * len(scored.groups) + group, return_inverse=True)
    pattern = np.zeros((len(keys), len(scored.columns)), dtype=np.intp)
    for k, c in enumerate(scored.columns):
        known = np.where(np.isnan(p.target[rows, c]), 0, 1 + p.target[rows, c]).astype(np.intp)
        np.maximum.at(pattern[:, k], block, known)  # 0 unknown, 1 negative, 2 positive
    return block, (keys % len(scored.groups)).astype(np.intp), pattern


def _strata(pattern: Indices) -> Indices:
    _, stratum, size = np.unique(pattern, axis=0, return_inverse=True, return_counts=True)
    rare = size[stratum] < _FEW
    if pattern.shape[1] > 1:
        stratum = np.where(rare, -1 - (pattern == 2).sum(axis=1), stratum)
    return stratum.astype(np.intp)


def _mean(parts: list[Floats]) -> float | None:
    every = np.concatenate(parts)
    every = every[np.isfinite(every)]
    return defined(every.mean()) if len(every) else None
