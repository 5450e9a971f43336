"""The gap as it would be if all groups had the same views, age bands and prevalence.

A group may be harder only because its films are taken lying down or its patients are older. Both
are shown, the raw gap and this one; neither is "the" gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.classification import auroc_binary
from autopeft.metrics.groups import LEAST, scored_groups
from autopeft.metrics.pairs import Indices

_LEAST_ROWS = 5  # fewer rows of a class cannot stand for a stratum


@dataclass(frozen=True)
class Standardized:
    """An attribute's gap before and after standardization.

    Attributes:
        attribute: e.g. ``sex``.
        by: the attributes that are held equal, e.g. ``("view", "age")``.
        groups: the groups compared.
        raw: their AUROCs as they are (mean over the label set).
        aurocs: their AUROCs under the common mix; None when no stratum is shared.
        kept: share of the groups' labelled rows in strata that all groups have.
        strata: strata used, mean over the labels.
    """

    attribute: str
    by: tuple[str, ...]
    groups: tuple[str, ...]
    raw: tuple[float, ...]
    aurocs: tuple[float, ...] | None
    kept: float
    strata: float

    @property
    def raw_gap(self) -> float:
        """Highest minus lowest AUROC as they are."""
        return float(np.ptp(self.raw))

    @property
    def gap(self) -> float | None:
        """Highest minus lowest AUROC under the common mix."""
        return None if self.aurocs is None else float(np.ptp(self.aurocs))


def standardized_gap(
    p: Predictions,
    attribute: str,
    groups: Sequence[str],
    by: Sequence[str],
    labels: Sequence[str] | None = None,
    least: int = LEAST,
) -> Standardized | None:
    """Direct standardization of group AUROCs, label by label.

    The standard is the pooled mix of all compared groups. A row weighs as much as makes its
    group's mix over strata (``by`` x label) the standard's; the label is a stratum, so that
    prevalence is equal too and positives and negatives each have the standard's mix. Strata that
    some group lacks are left out for all, and ``kept`` says how much that leaves.

    Args:
        p: predictions.
        attribute: whose groups are compared.
        groups: the groups that count.
        by: attributes (in ``p.groups``) that are held equal; ``unknown`` is a value like others.
        labels: labels that count, fixed before trial 1; None = all.
        least: positive and negative patients needed.

    Returns:
        None without two scored groups.
    """
    fixed = None if labels is None else {attribute: labels}
    for scored in scored_groups(p, {attribute: groups}, fixed, least):
        if len(scored.groups) < 2:
            continue
        names, score = p.groups[attribute], p.rank_score
        raw = np.zeros((len(scored.groups), len(scored.columns)))
        even, kept, strata = raw.copy(), [], []
        for k, c in enumerate(scored.columns):
            weight = common_weights(p, attribute, scored.groups, by, c)
            used = np.isin(names, scored.groups) & ~np.isnan(p.target[:, c])
            kept.append(float((weight[used] > 0).mean()))
            strata.append(len(np.unique(stratum_of(p, by)[weight > 0])))
            for g, group in enumerate(scored.groups):
                own = (score[names == group, c], p.target[names == group, c])
                part = p.part[names == group]
                raw[g, k] = _number(auroc_binary(*own, part))
                even[g, k] = _number(auroc_binary(*own, part, weight[names == group]))
        whole = even.mean(axis=1)
        aurocs = tuple(whole.tolist()) if np.isfinite(whole).all() else None
        return Standardized(
            attribute,
            tuple(by),
            scored.groups,
            tuple(raw.mean(axis=1).tolist()),
            aurocs,
            float(np.mean(kept)),
            float(np.mean(strata)),
        )
    return None


def common_weights(
    p: Predictions, attribute: str, groups: Sequence[str], by: Sequence[str], column: int
) -> Floats:
    """Row weights [N] under which all groups have the pooled mix of strata x label.

    0 for rows of other groups, without a label, and in strata that some group lacks (fewer than
    five positive or negative rows there). The weights of each group sum to the same.
    """
    names, target, stratum = p.groups[attribute], p.target[:, column], stratum_of(p, by)
    weight = np.zeros(len(names))
    for label in (0.0, 1.0):
        rows = np.isin(names, list(groups)) & (target == label)
        counts = np.stack(
            [
                np.bincount(stratum[rows & (names == g)], minlength=stratum.max(initial=0) + 1)
                for g in groups
            ]
        )
        shared = (counts >= _LEAST_ROWS).all(axis=0)
        standard = np.where(shared, counts.sum(axis=0), 0)
        for g, group in enumerate(groups):
            mine = rows & (names == group)
            ratio = np.divide(standard, counts[g], out=np.zeros(len(standard)), where=shared)
            weight[mine] = ratio[stratum[mine]]
    return weight


def stratum_of(p: Predictions, by: Sequence[str]) -> Indices:
    """Index [N] of each row's combination of values."""
    stratum = np.zeros(len(p.patient), dtype=np.intp)
    for attribute in by:
        values, index = np.unique(p.groups[attribute].astype(str), return_inverse=True)
        stratum = stratum * len(values) + index
    return np.unique(stratum, return_inverse=True)[1]


def _number(value: float | None) -> float:
    return np.nan if value is None else value
