"""Matched members and non-members: who may be compared with whom, decided without a score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.groups import patient_index

Indices = npt.NDArray[np.intp]

LEVELS = (
    "labels, view and number of images",
    "number of findings, view and number of images",
    "any finding and number of images",
    "nothing",
)
_ENOUGH = 0.8  # share of the members that must have a matched non-member


@dataclass(frozen=True)
class Matching:
    """Members and non-members in strata; a pair never joins two strata.

    Attributes:
        member: their places among the members' patients [A], by stratum.
        other: places among the non-members' patients [B], by stratum.
        member_stratum: [A], ascending, every stratum has both.
        other_stratum: [B], likewise.
        share: how many of all members these are.
        level: index into ``LEVELS``.
    """

    member: Indices
    other: Indices
    member_stratum: Indices
    other_stratum: Indices
    share: float
    level: int


def match(train: Predictions, probe: Predictions) -> Matching:
    """Strata of patients with equal labels, views and numbers of images, decided without scores.

    A patient's labels are, for each class, any positive, none, or unknown; views are compared
    where both sides have a group attribute ``view``; numbers of images by powers of two. Where
    fewer than 80% of the members have a counterpart the next of ``LEVELS`` is taken; members
    without one are left out and counted.
    """
    sides = [_traits(train, probe), _traits(probe, train)]
    for level in range(len(LEVELS)):
        keys = [_key(*side, level) for side in sides]
        _, stratum = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
        member, other = np.split(stratum.reshape(-1), [len(keys[0])])
        known = [side[1].any(axis=1) for side in sides]  # of the others there is nothing to see
        shared = np.intersect1d(member[known[0]], other[known[1]])
        inside = [np.isin(s, shared) & k for s, k in zip((member, other), known, strict=True)]
        share = float(inside[0].sum() / max(1, known[0].sum()))
        if share >= _ENOUGH or level == len(LEVELS) - 1:
            break
    places = [np.flatnonzero(i) for i in inside]
    a, b = (
        p[np.argsort(s[p], kind="stable")] for p, s in zip(places, (member, other), strict=True)
    )
    return Matching(a, b, member[a], other[b], share, level)


def _traits(p: Predictions, opposite: Predictions) -> tuple[Floats, Floats, Floats, Floats]:
    """Of each patient: positive labels [P, C], known labels [P, C], views [P, V], images [P]."""
    unit, count = patient_index(p)
    positive, known = (np.zeros((count, p.target.shape[1])) for _ in "+?")
    for c in range(p.target.shape[1]):
        positive[:, c] = np.bincount(unit[p.target[:, c] == 1], minlength=count) > 0
        known[:, c] = np.bincount(unit[~np.isnan(p.target[:, c])], minlength=count) > 0
    views = np.zeros((count, 0))
    if "view" in p.groups and "view" in opposite.groups:
        names = np.union1d(p.groups["view"].astype(str), opposite.groups["view"].astype(str))
        views = np.zeros((count, len(names)))
        views[unit, np.searchsorted(names, p.groups["view"].astype(str))] = 1
    images = np.floor(np.log2(np.maximum(np.bincount(unit, minlength=count), 1)))
    return positive, known, views, images


def _key(positive: Floats, known: Floats, views: Floats, images: Floats, level: int) -> Floats:
    findings, seen = positive.sum(axis=1), known.sum(axis=1)
    parts = [
        [*positive.T, *known.T, *views.T, images],
        [findings, seen, *views.T, images],
        [np.minimum(findings, 1), images],
        [np.zeros(len(images))],
    ][level]
    return np.stack(parts, axis=1)
