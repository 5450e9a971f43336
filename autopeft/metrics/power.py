"""What patients can show, before anything is trained: smallest detectable differences and gaps.

Everything rests on counts of positive and negative patients and on three assumptions that are
printed with the answer: how high the AUROCs are, how alike the two models rank (`CORRELATION`),
and how much the labels share (`SHARED`). Patients are counted, never images: several images of
one patient are taken to say the same, the largest design effect that Obuchowski (1997) allows.

A verdict on the worst group is not a paired comparison: each of the winner's groups is held
against the opponent's worst group, which is other patients, and all of them have to pass
(``metrics.worst``). `smallest_difference` of a group says nothing about it;
`worst_group_difference` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autopeft.metrics.gap_interval import detectable
from autopeft.metrics.groups import LEAST

Sides = tuple[int, int]  # positive and negative patients of one label

AUROC = 0.85  # assumed of both models
CORRELATION = 0.8  # of two models' AUROCs over the same patients; seen: .6 to .9 (docs/plan.md)
CORRELATIONS = (0.9, 0.6)  # from the most alike to the least
SHARED = 0.3  # of two labels' AUROCs over the same patients
ALPHA, POWER = 0.05, 0.8


def auroc_error(positives: int, negatives: int, auroc: float = AUROC) -> float:
    """Standard error of an AUROC (Hanley & McNeil, Radiology 143, 1982, 29-36).

    sqrt((A(1-A) + (m-1)(Q1-A^2) + (n-1)(Q2-A^2)) / (m n)), Q1 = A / (2-A), Q2 = 2A^2 / (1+A):
    exact for negative exponential scores, near the truth for normal ones.

    Args:
        positives: m.
        negatives: n.
        auroc: A.
    """
    a = auroc
    first, second = a / (2 - a), 2 * a * a / (1 + a)
    m, n = positives, negatives
    total = a * (1 - a) + (m - 1) * (first - a * a) + (n - 1) * (second - a * a)
    return float(np.sqrt(total / (m * n)))


def mean_error(labels: Sequence[Sides], auroc: float = AUROC, shared: float = SHARED) -> float:
    """Standard error of the mean AUROC over labels whose errors correlate by ``shared``."""
    each = np.array([auroc_error(*sides, auroc) for sides in labels])
    k = len(each)
    variance = (1 - shared) * (each**2).sum() + shared * each.sum() ** 2
    return float(np.sqrt(variance) / k)


def smallest_difference(
    labels: Sequence[Sides],
    correlation: float = CORRELATION,
    auroc: float = AUROC,
    alpha: float = ALPHA,
    power: float = POWER,
) -> float | None:
    """The smallest true difference of two models that a paired test finds with this power.

    (z(1 - alpha/2) + z(power)) * SE, SE^2 = 2 (1 - r) SE(A)^2: two AUROCs of equal error whose
    errors correlate by r (Hanley & McNeil, Radiology 148, 1983, 839-843). The same number is the
    smallest margin of which two equal models show "not worse" with this power, since the verdict
    asks for a lower bound of the same two-sided interval.

    Args:
        labels: positive and negative patients of each label; the mean AUROC is compared.
        correlation: r, above all what the two models share.
        auroc: A, of both models.
        alpha: two-sided level.
        power: probability that the difference is found.

    Returns:
        None where no interval is given: some label has fewer than `LEAST` patients on a side.
    """
    from scipy.special import ndtri

    if not labels or min(min(sides) for sides in labels) < LEAST:
        return None
    factor = float(ndtri(1 - alpha / 2) + ndtri(power))
    return factor * float(np.sqrt(2 * (1 - correlation))) * mean_error(labels, auroc)


def worst_group_difference(
    groups: Sequence[Sequence[Sides]],
    auroc: float = AUROC,
    alpha: float = ALPHA,
    power: float = POWER,
) -> tuple[float, float] | None:
    """Between which two differences the test of ``metrics.worst`` reaches this power.

    Of groups that are equally good in both models: each of the winner's groups has to lie above
    the opponent's worst one, whichever that is. Below the first number the two
    groups that are compared worst are not told apart with this power (nothing is paired, r = 0).
    At the second each of K comparisons fails with at most (1 - power) / K, so all of them pass
    with this power (Bonferroni). As in `smallest_difference` it is the smallest margin, too.

    Args:
        groups: for each group the sides of each label.
        auroc: in all groups of both models.
        alpha: two-sided level of each comparison.
        power: probability that all pass.

    Returns:
        At least and at most; one group alone is paired. None where a group cannot be scored.
    """
    from scipy.special import ndtri

    if not groups or any(smallest_difference(labels) is None for labels in groups):
        return None
    if len(groups) == 1:
        alone = smallest_difference(groups[0], CORRELATION, auroc, alpha, power)
        return None if alone is None else (alone, alone)
    one, two = sorted(mean_error(labels, auroc) for labels in groups)[-2:]
    widest = float(np.hypot(one, two))
    all_pass = 1 - (1 - power) / len(groups)
    low, high = (float(ndtri(1 - alpha / 2) + ndtri(p)) * widest for p in (power, all_pass))
    return low, high


def times_more(found: float, wanted: float) -> float:
    """How many times the patients a difference ``wanted`` takes, if ``found`` is the smallest."""
    return (found / wanted) ** 2


def smallest_gap(
    groups: Sequence[Sequence[Sides]],
    attributes: int = 1,
    auroc: float = AUROC,
    alpha: float = ALPHA,
    power: float = POWER,
) -> float | None:
    """The smallest gap between groups that the test of equal AUROCs finds, whichever two it is.

    As ``metrics.gaps`` says after a run (`detectable`), with Hanley and McNeil's errors in the
    place of measured ones. Groups are different patients, so nothing is paired.

    Args:
        groups: for each group the sides of each label.
        attributes: tests of which the first has to pass Holm's correction.
        auroc: in all groups.
        alpha: level before the correction.
        power: as above.

    Returns:
        None for fewer than two groups, or where one cannot be scored.
    """
    if len(groups) < 2 or any(min(s) < LEAST for labels in groups for s in labels):
        return None
    variance = np.diag([mean_error(labels, auroc) ** 2 for labels in groups])
    return detectable(variance, alpha / max(1, attributes), power)
