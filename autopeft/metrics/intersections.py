"""Groups made of two attributes, such as women under 60: named, counted and shown like others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from autopeft.evaluation import Predictions
from autopeft.metrics.groups import UNKNOWN, patient_counts

Names = Mapping[str, tuple[str, ...]]


def intersected(
    p: Predictions, counted: Mapping[str, Sequence[str]], pairs: Sequence[tuple[str, str]] = ()
) -> Predictions:
    """The same predictions with attributes such as ``sex x age`` added.

    Args:
        p: predictions.
        counted: attribute -> groups that count. Rows in other groups are ``unknown``.
        pairs: which attributes to join; none = every two of ``counted``.

    Returns:
        Groups are named ``sex=F x age>=60``.
    """
    groups = dict(p.groups)
    for first, second in pairs or combinations(counted, 2):
        a, b = p.groups[first], p.groups[second]
        both = np.isin(a, _known(counted[first])) & np.isin(b, _known(counted[second]))
        joined = [f"{x} x {y}" for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        groups[f"{first} x {second}"] = np.where(both, np.array(joined, dtype=object), UNKNOWN)
    return replace(p, groups=groups)


def counted_in(
    p: Predictions, attributes: Sequence[str], min_group: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The rule that decides which groups count, for attributes that were made afterwards.

    A label can be scored in a group from ``min_group`` positive and as many negative patients
    on; a group counts when at least half of the labels can be scored in it. The same rule as for
    declared groups (`autopeft.data.counted.counted_groups`), on ``search`` as well.

    Returns:
        attribute -> groups that count, and attribute -> labels that all of these can score.
    """
    groups: dict[str, tuple[str, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for attribute in attributes:
        names = sorted(set(p.groups[attribute].tolist()) - {UNKNOWN})
        positive, negative = patient_counts(p, attribute, names)
        enough = (positive >= max(min_group, 1)) & (negative >= max(min_group, 1))
        kept = 2 * enough.sum(axis=1) >= len(p.classes)
        groups[attribute] = tuple(n for n, k in zip(names, kept, strict=True) if k)
        shared = enough[kept].all(axis=0) & kept.any()
        labels[attribute] = tuple(c for c, k in zip(p.classes, shared, strict=True) if k)
    return groups, labels


def _known(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != UNKNOWN]
