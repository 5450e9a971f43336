"""Variance of AUROCs without resampling: DeLong's components, summed by patient (Obuchowski).

A cross-check of the bootstrap that shares nothing with it but the pairs, and the covariance from
which a test of several AUROCs at once can be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.evaluation import Floats
from autopeft.metrics.pairs import Pairs


@dataclass(frozen=True)
class Components:
    """What each patient's positives and negatives add to each AUROC.

    Attributes:
        value: the AUROCs [K]; NaN for a cell without pairs.
        positive: [U, K], sum over the patient's positive rows of (placement - AUROC) / M.
        negative: [U, K], the same over negative rows, / N.
        spread: [3, K], the small-sample factors n / (n - 1) of patients with a positive row, with
            a negative row, and with any; infinite where only one patient carries a side.
    """

    value: Floats
    positive: Floats
    negative: Floats
    spread: Floats

    def covariance(self) -> Floats:
        """Covariance [K, K] of the AUROCs over new patients; not finite where it is unknown.

        With s10, s01, s11 of Obuchowski (1997): s10 / M + s01 / N + (s11 + s11') / (M N). With
        one row a patient it is DeLong et al. (1988). Cells on other rows (labels, groups) take
        the geometric mean of their factors.
        """
        rare, common, every = np.sqrt(self.spread)
        p, n = self.positive, self.negative
        with np.errstate(invalid="ignore"):  # 0 * inf: one patient carries a whole side
            a, b = p * rare, n * common
            cross = (p * every).T @ (n * every)
            return a.T @ a + b.T @ b + cross + cross.T  # type: ignore[no-any-return]


def components(cells: Sequence[Pairs], units: int) -> Components:
    """Structural components of some AUROCs, summed by unit.

    With several parts (models of the folds) a row counts as often as its part has rows of the
    other side, as it does in the AUROC itself.

    Args:
        cells: pairs of K labels, or of labels inside groups, over the same units.
        units: U, the number of units (patients).
    """
    k = len(cells)
    value, spread = np.full(k, np.nan), np.full((3, k), np.nan)
    positive, negative = (np.full((units, k), np.nan) for _ in "+-")
    one = np.ones((units, 1))
    for c, cell in enumerate(cells):
        if not cell.segments:
            continue
        value[c] = cell.auroc(one)[0]
        placed = [segment.placements() for segment in cell.segments]
        pairs = sum(len(p) * len(n) for (p, _), (n, _) in placed)
        sides = np.zeros((2, units))
        seen = np.zeros((2, units), dtype=bool)
        for both in placed:
            for side in (0, 1):
                unit, share = both[side]
                others = len(both[1 - side][0])
                sides[side] += np.bincount(unit, (share - value[c]) * others / pairs, units)
                seen[side, unit] = True
        positive[:, c], negative[:, c] = sides
        counts = np.array([seen[0].sum(), seen[1].sum(), seen.any(axis=0).sum()], dtype=float)
        with np.errstate(divide="ignore"):
            spread[:, c] = counts / (counts - 1)
    return Components(value, positive, negative, spread)
