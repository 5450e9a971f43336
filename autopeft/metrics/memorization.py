"""Memorization of a classifier: do its scores tell who was trained on?

Members are patients of ``train``, non-members those of ``probe``, which was cut from the same
random split before anything was trained. An attack orders patients by how well the model fits
them; its AUC is the chance that a member looks better fitted than a matched non-member. What is
reported and optimized is that AUC minus the AUC of the same attack on a model that has seen
neither side (PROTOCOL 5). None of it is a guarantee: "no attack that we ran succeeded".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from autopeft.evaluation import Evaluation, Floats, Predictions
from autopeft.metrics.groups import LEAST, patient_index
from autopeft.metrics.matching import LEVELS, Indices, Matching, match

Name = Literal["loss", "confidence"]
Both = tuple[Predictions, Predictions]  # of the members, of the non-members

ATTACKS: tuple[Name, ...] = ("loss", "confidence")
ONE_PERCENT_FROM = 1000  # non-member patients; fewer hold too few false alarms for 1%
_CELLS = 400_000  # floats of a block of resamples


@dataclass(frozen=True)
class Attack:
    """How well one attack tells members from matched non-members. The unit is the patient.

    Attributes:
        name: ``loss``, ``confidence``, ``likelihood ratio`` or ``rmia``.
        auc: chance that a member is ranked above a matched non-member.
        null: the same for scores that no member had a part in; .5 where none are given.
        value: ``auc - null``; 0 = nothing found.
        low: lower bound of ``value``, 95% over patients; equal to it where none was asked for.
        high: upper bound.
        tpr: share of the members found at the false-alarm rate ``fpr``.
        tpr_low: its lower bound.
        tpr_high: its upper bound.
        fpr: .01 from 1,000 non-members on, else .10.
        members: patients that were attacked and have a match.
        non_members: patients that they are matched with.
        matched: share of the members that have a match.
        level: what they are matched on, one of ``LEVELS``.
    """

    name: str
    auc: float
    null: float
    value: float
    low: float
    high: float
    tpr: float
    tpr_low: float
    tpr_high: float
    fpr: float
    members: int
    non_members: int
    matched: float = 1.0
    level: str = LEVELS[-1]

    @property
    def succeeded(self) -> bool:
        """Whether the interval lies above 0: members are told from non-members."""
        return self.low > 0


def words(attacks: Sequence[Attack]) -> str:
    """What may be said of attacks with intervals: never more than that none of them succeeded."""
    if not attacks:
        return "memorization was not measured"
    found = [a.name for a in attacks if a.succeeded]
    if not found:
        return "no attack that we ran succeeded; not a privacy guarantee"
    return f"training patients can be told from others (by {', '.join(found)})"


# ---- what an attacker sees ----------------------------------------------------------------------


def log_likelihood(p: Predictions) -> Floats:
    """Log-probability of each row's labels [N]: minus the loss, summed over the known labels.

    NaN where no label is known. The loss attack (Yeom et al. 2018, arXiv:1709.01604) takes whose
    loss is low for a member.
    """
    if p.kind == "multiclass":
        return _of_true_class(p, p.rank_score)
    logit = _signed(p)
    return _sum_known(np.minimum(logit, 0) - np.log1p(np.exp(-np.abs(logit))))


def confidence(p: Predictions) -> Floats:
    """Logit-scaled confidence in each row's labels [N], summed over the known labels.

    log(q / (1 - q)) of the probability q that the model gives the true label: nearly normal where
    a loss is skewed (Carlini et al. 2022, arXiv:2112.03570). For a label of its own
    it is the logit, with the sign of the label. NaN where no label is known.
    """
    if p.kind != "multiclass":
        return _sum_known(_signed(p))
    log_p = p.rank_score
    others = np.where(p.target == 1, -np.inf, log_p)
    top = others.max(axis=1)
    rest = top + np.log(np.exp(others - top[:, None]).sum(axis=1))
    scaled: Floats = _of_true_class(p, log_p) - rest
    return scaled


def patient_signal(p: Predictions, name: Name) -> Floats:
    """An attack's signal of each patient [P], by sorted id: the mean over their images.

    NaN for a patient without any label.
    """
    unit, count = patient_index(p)
    return _mean(log_likelihood(p) if name == "loss" else confidence(p), unit, count)


def _signed(p: Predictions) -> Floats:
    """Logit of the true label [N, C]; NaN where it is not known."""
    return p.score.astype(np.float64) * (2.0 * p.target - 1.0)


def _sum_known(value: Floats) -> Floats:
    known = ~np.isnan(value)
    total: Floats = np.where(known, value, 0.0).sum(axis=1)
    return np.where(known.any(axis=1), total, np.nan)


def _of_true_class(p: Predictions, value: Floats) -> Floats:
    found: Floats = np.where(p.target == 1, value, 0.0).sum(axis=1)
    return np.where(np.isnan(p.target).any(axis=1), np.nan, found)


def _mean(value: Floats, unit: Indices, count: int) -> Floats:
    known = ~np.isnan(value)
    rows = np.bincount(unit[known], minlength=count)
    total = np.bincount(unit[known], weights=value[known], minlength=count)
    return np.where(rows > 0, total / np.maximum(rows, 1), np.nan)


# ---- the attack ---------------------------------------------------------------------------------


def attack(
    train: Predictions,
    probe: Predictions,
    null: Both | None = None,
    name: Name = "loss",
    n: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Attack | None:
    """Ranks patients by one signal and asks how far the members stand above the non-members.

    The AUC is taken inside the strata of ``match`` and averaged by m k / (m + k) of a stratum's m
    members and k non-members: nearly by how common the stratum is, and a stratum of few says
    little (van Elteren 1960). For the TPR the non-members weigh as many as the members in each
    stratum, under one threshold.

    Args:
        train: scores of members.
        probe: scores of non-members, by the same model.
        null: scores of the very same rows by something that has seen neither side, e.g. kNN on
            frozen features of other patients; None: chance, .5.
        name: the signal.
        n: resamples of the patients, on each side by itself; 0: no interval.
        seed: of the resamples.
        alpha: 1 - coverage.

    Returns:
        None with fewer than 10 matched patients on a side.
    """
    found = match(train, probe)
    if min(len(found.member), len(found.other)) < LEAST:
        return None
    signal = _Contest.of(found, (train, probe), name)
    chance = _Contest.of(found, null, name) if null is not None else None
    fpr = 0.01 if len(found.other) >= ONE_PERCENT_FROM else 0.10

    def look(member: Floats, other: Floats) -> Floats:
        """AUC, the null's AUC and TPR under weights of the patients, [3, B]."""
        other_auc = chance.auc(member, other) if chance else np.full(member.shape[1], 0.5)
        return np.stack([signal.auc(member, other), other_auc, signal.tpr(member, other, fpr)])

    ones = [np.ones((len(side), 1)) for side in (found.member, found.other)]
    auc, basis, tpr = look(*ones)[:, 0].tolist()
    low, high, tpr_low, tpr_high = auc - basis, auc - basis, tpr, tpr
    if n:
        drawn = resampled(look, len(found.member), len(found.other), n, seed)
        both = [alpha / 2, 1 - alpha / 2]
        low, high = np.nanquantile(drawn[0] - drawn[1], both).tolist()
        tpr_low, tpr_high = np.nanquantile(drawn[2], both).tolist()
    return Attack(
        name, auc, basis, auc - basis, low, high, tpr, tpr_low, tpr_high, fpr,
        len(found.member), len(found.other), found.share, LEVELS[found.level],
    )  # fmt: skip


def attacks(train: Predictions, probe: Predictions, null: Both | None = None) -> list[Attack]:
    """The loss and the confidence attack with their intervals; empty with too few patients."""
    every = [attack(train, probe, null, name) for name in ATTACKS]
    return [found for found in every if found is not None]


def memorization(evaluation: Evaluation) -> float | None:
    """AUC minus null of the stronger of the two attacks; what the search minimizes.

    The larger of two estimates is a little too high: pessimistic, and alike for all candidates.
    """
    e = evaluation
    if e.train is None or e.probe is None or e.null is None:
        return None
    found = [attack(e.train, e.probe, e.null, name, n=0) for name in ATTACKS]
    return max((a.value for a in found if a is not None), default=None)


def resampled(
    look: Callable[[Floats, Floats], Floats], members: int, others: int, n: int, seed: int
) -> Floats:
    """Statistics [S, n] under n resamples of the patients, of members and others apart."""
    rng = np.random.default_rng(seed)
    sizes, parts = (members, others), []
    for count in _blocks(members + others, n):
        drawn = [rng.multinomial(size, np.full(size, 1 / size), count).T for size in sizes]
        parts.append(look(*(d.astype(np.float64) for d in drawn)))
    return np.concatenate(parts, axis=1)


def _blocks(rows: int, n: int) -> Iterator[int]:
    size = int(np.clip(_CELLS // max(rows, 1), 8, 256))
    for start in range(0, n, size):
        yield min(size, n - start)


@dataclass(frozen=True)
class _Contest:
    """One signal of matched patients, sorted once: AUC and TPR are then sums of weights."""

    matching: Matching
    order: Indices  # non-members by stratum and signal
    below: Indices  # [A] how many of them lie below a member, those of earlier strata included
    up_to: Indices  # the same, ties included
    first: Indices  # [S] where a stratum's non-members begin; and members, one row more: the end
    first_member: Indices
    member: Floats
    other: Floats

    @staticmethod
    def of(found: Matching, both: Both, name: Name) -> _Contest:
        member, other = (
            patient_signal(p, name)[places]
            for p, places in zip(both, (found.member, found.other), strict=True)
        )
        levels, rank = np.unique(np.concatenate([member, other]), return_inverse=True)
        ranks = np.split(rank.reshape(-1), [len(member)])
        strata = (found.member_stratum, found.other_stratum)
        keys = [s * len(levels) + r for s, r in zip(strata, ranks, strict=True)]
        order = np.argsort(keys[1], kind="stable")
        below, up_to = (np.searchsorted(keys[1][order], keys[0], s) for s in ("left", "right"))
        names = np.unique(found.member_stratum)
        first, first_member = (np.append(np.searchsorted(s, names), len(s)) for s in strata[::-1])
        return _Contest(found, order, below, up_to, first, first_member, member, other)

    def auc(self, member: Floats, other: Floats) -> Floats:
        """[B] under weights [A, B] of the members and [B', B] of the non-members."""
        total = np.zeros((len(self.order) + 1, other.shape[1]))
        np.cumsum(other[self.order], axis=0, out=total[1:])
        stratum = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first_member))
        wins = (total[self.below] + total[self.up_to]) / 2 - total[self.first[stratum]]
        won = np.add.reduceat(member * wins, self.first_member[:-1], axis=0)
        m = np.add.reduceat(member, self.first_member[:-1], axis=0)
        k = np.diff(total[self.first], axis=0)
        size = np.maximum(m + k, 1e-12)
        pairs = (m * k / size).sum(axis=0)
        total_won: Floats = (won / size).sum(axis=0)
        return total_won / np.where(pairs > 0, pairs, np.nan)

    def tpr(self, member: Floats, other: Floats, fpr: float) -> Floats:
        """[B]: share of the members above a threshold that ``fpr`` of the non-members pass."""
        m = np.add.reduceat(member, self.first_member[:-1], axis=0)
        k = np.add.reduceat(other, self.first[:-1], axis=0)
        both = (m > 0) & (k > 0)  # in a resample a stratum may have lost a side
        scale = np.where(both, m / np.maximum(k, 1e-12), 0.0)
        other = other * np.repeat(scale, np.diff(self.first), axis=0)
        member = member * np.repeat(both, np.diff(self.first_member), axis=0)
        return true_positive_rate(self.member, self.other, member, other, fpr)


def true_positive_rate(
    member: Floats, other: Floats, member_weight: Floats, other_weight: Floats, fpr: float
) -> Floats:
    """Highest share of members at or above a threshold that at most ``fpr`` of others reach.

    Args:
        member: signals [A]; higher = more like a member.
        other: signals [B] of non-members.
        member_weight: [A, R], one column a resample.
        other_weight: [B, R].
        fpr: the false-alarm rate.

    Returns:
        [R]; NaN without any weight on a side.
    """
    levels, place = np.unique(-np.concatenate([member, other]), return_inverse=True)
    places = np.split(place.reshape(-1), [len(member)])
    shares = []
    for where, weight in zip(places, (member_weight, other_weight), strict=True):
        count = np.zeros((len(levels), weight.shape[1]))
        np.add.at(count, where, weight)
        total: Any = count.sum(axis=0)
        shares.append(np.cumsum(count, axis=0) / np.where(total > 0, total, np.nan))
    hits, alarms = shares
    allowed = alarms <= fpr + 1e-12
    found: Floats = np.where(allowed, hits, 0.0).max(axis=0, initial=0.0)
    return np.where(np.isnan(hits[-1] + alarms[-1]), np.nan, found)
