"""Is there a gap between groups, how large is it, and could these patients have shown it?

Three questions, three answers: one test of equal group AUROCs for each attribute; the highest
minus the lowest AUROC beside its value without any bias and an interval that may hold 0; and the
smallest gap that would have been found. Nothing is shrunk (PROTOCOL 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.delong import components
from autopeft.metrics.fairness import Counted, group_cells
from autopeft.metrics.gap_interval import detectable, range_interval, wald
from autopeft.metrics.gap_null import NullGap, null_gap
from autopeft.metrics.groups import LEAST, Scored, patient_index, scorable_groups, scored_groups

Word = Literal["gap shown", "gap below", "cannot tell"]

LIMIT = 0.05  # an upper bound above this says too little to be called "gap below"


@dataclass(frozen=True)
class Gap:
    """One attribute's gap, of one label or of the mean over its label set.

    Attributes:
        attribute: e.g. ``sex``.
        label: the class, or None for the mean over the label set.
        groups: the groups compared.
        aurocs: their AUROCs.
        value: highest minus lowest.
        expected: what ``value`` is on average without bias: group names permuted over patients.
        p: of the test that all groups are equal (Wald, clustered by patient); None where some
            AUROC has no spread to judge by (a perfect or a constant score).
        chi2: the test's statistic, with ``len(groups) - 1`` degrees of freedom.
        low: lower bound of the true gap at 1 - alpha; 0 exactly when p >= alpha.
        high: its upper bound.
        detectable: the smallest gap that the test finds at alpha with 80% power, whichever two
            groups it lies between.
        patients: in the groups compared.
    """

    attribute: str
    label: str | None
    groups: tuple[str, ...]
    aurocs: tuple[float, ...]
    value: float
    expected: float | None
    p: float | None
    chi2: float | None
    low: float | None
    high: float | None
    detectable: float | None
    patients: int

    @property
    def worst(self) -> str:
        """The group with the lowest AUROC."""
        return self.groups[int(np.argmin(self.aurocs))]

    @property
    def best(self) -> str:
        """The group with the highest AUROC."""
        return self.groups[int(np.argmax(self.aurocs))]


@dataclass(frozen=True)
class AttributeGap:
    """All that is known of one attribute's gap.

    Attributes:
        attribute: e.g. ``sex``.
        mean: the gap of the mean over the label set; None when the attribute has no summary
            (fewer than half of the labels can be scored in all its groups).
        labels: the gap of each label, in the groups that can score it; p values not corrected.
        label_gap: mean over the label set of the labels' gaps (the metric ``auroc_gap``).
        label_gap_expected: its value without bias.
        p: of ``mean``, corrected for the number of attributes (Holm 1979).
        word: ``gap shown``, ``gap below`` or ``cannot tell``.
        text: the word with its number: ``gap below .034``.
    """

    attribute: str
    mean: Gap | None
    labels: tuple[Gap, ...]
    label_gap: float | None
    label_gap_expected: float | None
    p: float | None
    word: Word
    text: str

    @property
    def widest(self) -> Gap | None:
        """The label with the largest gap: shown beside the mean."""
        return max(self.labels, key=lambda gap: gap.value, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``result.json``."""
        plain = {k: v for k, v in vars(self).items() if k not in ("mean", "labels")}
        return plain | {
            "mean": None if self.mean is None else dict(vars(self.mean)),
            "labels": [dict(vars(gap)) for gap in self.labels],
        }


def gaps(
    p: Predictions,
    counted: Counted,
    labels: Counted | None = None,
    *,
    alpha: float = 0.05,
    limit: float = LIMIT,
    permutations: int = 200,
    seed: int = 0,
    least: int = LEAST,
) -> tuple[AttributeGap, ...]:
    """Tests, sizes and words for every attribute with two scored groups.

    Args:
        p: predictions of one model.
        counted: attribute -> groups that count, fixed before trial 1.
        labels: attribute -> labels that count, fixed before trial 1; None or absent = all.
        alpha: level of the tests and of the intervals.
        limit: "gap below X" is said only when the upper bound X is at most this.
        permutations: draws for the value without bias; 0 = leave it out.
        seed: of these draws.
        least: positive and negative patients from which a group is scored.

    Returns:
        One entry an attribute. An interval belongs to its attribute alone, at 1 - alpha; only p
        is corrected for the number of attributes. One that "cannot tell" only because of the
        correction may have an interval without 0. Single labels are a second family of tests,
        corrected for all labels of all attributes together.
    """
    found = []
    for attribute, groups in counted.items():
        entry = _attribute(p, attribute, groups, labels, alpha, permutations, seed, least)
        if entry is not None:
            found.append(entry)
    raw = [entry.mean.p if entry.mean is not None else None for entry in found]
    each = [(entry.attribute, gap) for entry in found for gap in entry.labels]
    shown: dict[str, list[Gap]] = {}
    for (attribute, gap), p_label in zip(each, holm([gap.p for _, gap in each]), strict=True):
        if p_label is not None and p_label < alpha:
            shown.setdefault(attribute, []).append(gap)
    return tuple(
        _worded(replace(e, p=corrected), shown.get(e.attribute, ()), alpha, limit, len(raw))
        for e, corrected in zip(found, holm(raw), strict=True)
    )


def gap_of(
    p: Predictions, scored: Scored, alpha: float = 0.05, label: str | None = None
) -> Gap | None:
    """Test, interval and smallest detectable gap of some groups over some labels.

    Args:
        p: predictions.
        scored: the groups, and the columns of which the mean AUROC is compared.
        alpha: level.
        label: name of the one label, or None for a mean.

    Returns:
        None with fewer than two groups, or where an AUROC is undefined.
    """
    if len(scored.groups) < 2:
        return None
    value, covariance = group_covariance(p, scored)
    if not np.isfinite(value).all():
        return None
    member = np.isin(p.groups[scored.attribute], scored.groups)
    found = Gap(
        attribute=scored.attribute,
        label=label,
        groups=scored.groups,
        aurocs=tuple(value.tolist()),
        value=float(np.ptp(value)),
        expected=None,
        p=None,
        chi2=None,
        low=None,
        high=None,
        detectable=None,
        patients=len(np.unique(p.patient[member])),
    )
    if not _testable(covariance):
        return found
    from scipy.special import chdtrc

    statistic = wald(value, covariance)
    low, high = range_interval(value, covariance, alpha)
    return replace(
        found,
        chi2=statistic,
        p=float(chdtrc(len(value) - 1, statistic)),
        low=low,
        high=high,
        detectable=detectable(covariance, alpha),
    )


def group_covariance(p: Predictions, scored: Scored) -> tuple[Floats, Floats]:
    """AUROC of each group (mean over the columns) and their covariance, clustered by patient.

    Every patient's rows and labels move together; a patient with images in two groups (a
    birthday between two studies) ties these groups together too.

    Returns:
        [G] and [G, G].
    """
    unit, patients = patient_index(p)
    parts = components(group_cells(p, scored, unit), patients)
    shape = (len(scored.groups), len(scored.columns))
    average = np.kron(np.eye(shape[0]), np.full((shape[1], 1), 1 / shape[1]))  # [cells, G]
    covariance = parts.covariance()
    return parts.value.reshape(shape).mean(axis=1), average.T @ covariance @ average


def holm(p: Sequence[float | None]) -> tuple[float | None, ...]:
    """Holm's step-down correction (1979); None stays None and is no test."""
    known = [i for i, value in enumerate(p) if value is not None]
    found: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p[i] or 0.0)):
        highest = max(highest, (len(known) - rank) * (p[i] or 0.0))
        found[i] = min(1.0, highest)
    return tuple(found)


def gap_word(
    p: float | None, high: float | None, alpha: float = 0.05, limit: float = LIMIT
) -> Word:
    """``gap shown``: equal groups are rejected. ``gap below``: not, and the upper bound is small.

    Else ``cannot tell``. An absent gap is never stated.

    Args:
        p: of the test of equal groups, corrected.
        high: upper bound of the gap.
        alpha: level.
        limit: largest upper bound that is worth saying.
    """
    if p is None or high is None:
        return "cannot tell"
    if p < alpha:
        return "gap shown"
    return "gap below" if high <= limit else "cannot tell"


def _attribute(
    p: Predictions,
    attribute: str,
    groups: Sequence[str],
    labels: Counted | None,
    alpha: float,
    permutations: int,
    seed: int,
    least: int,
) -> AttributeGap | None:
    mean, null = None, NullGap(None, None)
    for scored in scored_groups(p, {attribute: groups}, labels, least):
        name = p.classes[scored.columns[0]] if len(p.classes) == 1 else None
        mean = gap_of(p, scored, alpha, name)
        if mean is not None and permutations:
            null = null_gap(p, scored, permutations, seed)
            mean = replace(mean, expected=null.of_means)
    each = []
    for scored in scorable_groups(p, attribute, groups, least):
        one = gap_of(p, scored, alpha, p.classes[scored.columns[0]])
        if one is not None and permutations:
            one = replace(one, expected=null_gap(p, scored, permutations, seed).of_means)
        each += [one] if one is not None else []
    if mean is None and not each:
        return None
    used = _label_set(p, attribute, groups, labels, least)
    shared = [gap.value for gap in each if gap.label in used]
    label_gap = float(np.mean(shared)) if mean is not None and shared else None
    return AttributeGap(
        attribute, mean, tuple(each), label_gap, null.of_labels, None, "cannot tell", "cannot tell"
    )


def _label_set(
    p: Predictions, attribute: str, groups: Sequence[str], labels: Counted | None, least: int
) -> set[str]:
    every = scored_groups(p, {attribute: groups}, labels, least)
    return {p.classes[c] for scored in every for c in scored.columns}


def _worded(
    entry: AttributeGap, shown: Sequence[Gap], alpha: float, limit: float, attributes: int
) -> AttributeGap:
    """Words for the mean over labels, which never hide a label: each of them has to be below."""
    if entry.mean is None:
        return entry
    highs = [gap.high for gap in (entry.mean, *entry.labels)]
    highest = None if None in highs else max(h for h in highs if h is not None)
    word = gap_word(entry.p, highest, alpha, limit)
    if shown and len(entry.labels) > 1 and word != "gap shown":
        word = "gap shown"
        text = f"gap shown in {max(shown, key=lambda gap: gap.value).label}"
    elif word == "gap below" and highest is not None:
        text = f"gap below {_up(highest)}"
    else:
        text = word
    mean = entry.mean
    if mean.detectable is not None and mean.value is not None and attributes > 1:
        mean = replace(mean, detectable=mean.detectable * _wider(alpha, attributes))
    return replace(entry, word=word, text=text, mean=mean)


def _wider(alpha: float, tests: int) -> float:
    """How much larger the smallest detectable gap is when p has to pass as the first of several.

    Of a difference of two, at 80% power: that of more groups grows by nearly the same factor.
    """
    from scipy.special import ndtri

    return float((ndtri(1 - alpha / tests / 2) + ndtri(0.8)) / (ndtri(1 - alpha / 2) + ndtri(0.8)))


def _up(value: float) -> str:
    """Three digits, rounded up: a bound must stay a bound."""
    return f"{math.ceil(value * 1000 - 1e-9) / 1000:.3f}".removeprefix("0")


def _testable(covariance: Floats) -> bool:
    if not np.isfinite(covariance).all():
        return False
    variance = np.diag(covariance)
    if variance.min() <= 1e-12:
        return False  # a perfect score, or a constant one: nothing to judge the spread by
    scale = np.sqrt(variance)
    return bool(np.linalg.eigvalsh(covariance / np.outer(scale, scale)).min() > 1e-6)
