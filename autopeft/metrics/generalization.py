"""How much better a model does on its own training patients, and which wrong labels it learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Evaluation, Floats, Predictions
from autopeft.metrics.fairness import Counted
from autopeft.metrics.groups import class_counts, patient_index, scored_groups
from autopeft.metrics.memorization import resampled
from autopeft.metrics.pairs import Statistic, macro, pair

Bools = npt.NDArray[np.bool_]
EVERYONE = "all"


@dataclass(frozen=True)
class Gap:
    """AUROC on members minus AUROC on non-members.

    Attributes:
        train: on the subsample of the training patients.
        probe: on as many patients that the model has not seen.
        value: the difference.
        low: lower bound, 95% over patients of both sides.
        high: upper bound.
    """

    train: float
    probe: float
    value: float
    low: float
    high: float


def generalization_gaps(
    train: Predictions,
    probe: Predictions,
    counted: Counted | None = None,
    labels: Counted | None = None,
    n: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Mapping[str, Gap]:
    """The gap over everyone (``all``) and inside each counted group.

    Both sides are scored on the same labels: those that both can score, for a group those that
    all of its attribute's scored groups can score on both sides.

    Args:
        train: scores of members.
        probe: scores of non-members, by the same model.
        counted: attribute -> groups that count.
        labels: attribute -> labels that count; None = all.
        n: resamples of the patients; 0: no interval.
        seed: of the resamples.
        alpha: 1 - coverage.

    Returns:
        Empty where nothing can be scored; groups that cannot be scored on both sides are absent.
    """
    sides = (train, probe)
    counts = [np.minimum(*class_counts(p)) for p in sides]
    columns = tuple(np.flatnonzero(np.minimum(*counts) > 0).tolist())
    wanted: dict[str, tuple[tuple[str, str] | None, tuple[int, ...]]] = {}
    if columns:
        wanted[EVERYONE] = (None, columns)
    for attribute in counted or {}:
        only = {attribute: (counted or {})[attribute]}
        scored = [scored_groups(p, only, labels) for p in sides]
        if not all(scored):
            continue
        first, second = (s[0] for s in scored)
        common = tuple(c for c in first.columns if c in second.columns)
        for group in first.groups:
            if group in second.groups and common:
                wanted[group] = ((attribute, group), common)
    found = {}
    for name, (where, used) in wanted.items():
        pairs = [_statistic(p, where, used) for p in sides]
        found[name] = _gap(pairs[0], pairs[1], n, seed, alpha)
    return found


def generalization_gap(evaluation: Evaluation) -> float | None:
    """The gap over everyone, or None without train and probe predictions."""
    if evaluation.train is None or evaluation.probe is None:
        return None
    gaps = generalization_gaps(evaluation.train, evaluation.probe, n=0)
    return gaps[EVERYONE].value if EVERYONE in gaps else None


def _statistic(
    p: Predictions, where: tuple[str, str] | None, columns: tuple[int, ...]
) -> Statistic:
    unit, count = patient_index(p)
    member = np.ones(len(unit), np.bool_) if where is None else p.groups[where[0]] == where[1]
    score = p.rank_score
    cells = [
        pair(score[member, c], p.target[member, c], unit[member], p.part[member]) for c in columns
    ]
    return Statistic(tuple(cells), macro, count)


def _gap(train: Statistic, probe: Statistic, n: int, seed: int, alpha: float) -> Gap:
    def look(a: Floats, b: Floats) -> Floats:
        return np.stack([train.values(a), probe.values(b)])

    ones = [np.ones((s.units, 1)) for s in (train, probe)]
    first, second = look(*ones)[:, 0].tolist()
    low = high = first - second
    if n:
        drawn = resampled(look, train.units, probe.units, n, seed)
        low, high = np.nanquantile(drawn[0] - drawn[1], [alpha / 2, 1 - alpha / 2]).tolist()
    return Gap(first, second, first - second, low, high)


@dataclass(frozen=True)
class Fitted:
    """Wrong labels that were planted on purpose, and how many of them the model says.

    Attributes:
        share: of the members' planted labels.
        by_chance: share of the non-members' planted labels, which nobody was trained on: how
            often the model is wrong anyway. NaN where none are given.
        excess: ``share - by_chance``: learnt by heart.
        planted: how many of the members' labels.
    """

    share: float
    by_chance: float
    excess: float
    planted: int


def fitted_share(
    train: Predictions,
    planted: Bools,
    probe: Predictions | None = None,
    probe_planted: Bools | None = None,
) -> Fitted | None:
    """Share of the planted mislabels that the model has come to say (Zhang et al. 2017).

    A wrong label can only be learnt by heart, not from what the images have in common
    (arXiv:1611.03530). But a model is also wrong by itself, so the same noise is planted in
    patients whom nobody was trained on.

    Args:
        train: scores of members; targets are the labels that were trained on, wrong ones too.
        planted: which of these labels are wrong, [N, C] (of all classes of a row for multiclass).
        probe: scores of non-members with targets that are wrong in the same way.
        probe_planted: which of those are wrong.

    Returns:
        None where no label was planted.
    """
    share = _said(train, planted)
    if share is None:
        return None
    chance = None
    if probe is not None and probe_planted is not None:
        chance = _said(probe, probe_planted)
    basis = float("nan") if chance is None else chance[0]
    return Fitted(share[0], basis, share[0] - basis, share[1])


def _said(p: Predictions, planted: Bools) -> tuple[float, int] | None:
    """Share of the planted labels that are also the model's decision, and their number."""
    if planted.shape != p.target.shape:
        raise ValueError(f"planted is {planted.shape}, the labels are {p.target.shape}")
    if p.kind == "multiclass":
        rows = planted.any(axis=1)
        said = p.score[rows].argmax(axis=1) == p.target[rows].argmax(axis=1)
    else:
        known = planted & ~np.isnan(p.target)
        said = (p.score > 0)[known] == (p.target == 1)[known]
    return (float(said.mean()), len(said)) if len(said) else None
