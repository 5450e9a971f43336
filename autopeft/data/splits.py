"""Splits: disjoint by patient, stratified by label x group, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "search", "confirm", "test")
PROBE = "probe"  # cut from train where memorization is measured, see ``data.probe``
# Test patients' images without a label that is certain: scored for the readings, sealed as test.
UNCERTAIN = "uncertain"
_LARGE = {"train": 0.70, "search": 0.10, "confirm": 0.05, "test": 0.15}
_SMALL = {"train": 0.60, "search": 0.15, "confirm": 0.10, "test": 0.15}
LARGE_FROM = 5000
_GOLDEN = (5**0.5 - 1) / 2

Bools = npt.NDArray[np.bool_]
Names = npt.NDArray[np.str_]


def shares(patients: int) -> dict[str, float]:
    """Share of the patients of each split: 70/10/5/15 from 5,000 on, below 60/15/10/15."""
    return dict(_LARGE if patients >= LARGE_FROM else _SMALL)


def cells(label: npt.NDArray[np.float32], groups: Sequence[Names]) -> Bools:
    """The strata that a row belongs to: each group, and each (positive class, group).

    Args:
        label: 0, 1 or NaN [N, C].
        groups: group names, one [N] for each attribute.

    Returns:
        bool [N, T]: whether the row belongs to cell t.
    """
    n = len(label)
    members = [np.ones(n, np.bool_)]
    for names in groups:
        members += [names == name for name in np.unique(names)]
    positive = [label[:, c] == 1 for c in range(label.shape[1])]
    return np.stack(members + [p & m for p in positive for m in members], axis=1)


def make_splits(
    patient: npt.NDArray[Any], strata: Bools, parts: Mapping[str, float], seed: int
) -> Names:
    """Allocates patients to splits in proportion, within every cell.

    Patients are handled by the rarest cell they belong to, rarest first, as in iterative
    stratification (Sechidis et al. 2011), and dealt out along that order by the split that lags
    most behind its share. Within equals the order is a hash of seed and patient id, so neither
    row order nor the machine matters.

    Args:
        patient: patient ids [N].
        strata: bool [N, T], see ``cells``; a patient belongs to the cells of all their rows.
        parts: split -> share; shares are normalized.
        seed: the settings' ``--split-seed``.

    Returns:
        Name of the split [N].
    """
    ids, row_patient, order = _ordered(patient, strata, seed)
    names = np.array(list(parts))
    split = np.empty(len(ids), names.dtype)
    split[order] = names[_deal(len(ids), np.array(list(parts.values()), np.float64))]
    return split[row_patient]


def _ordered(
    patient: npt.NDArray[Any], strata: Bools, seed: int
) -> tuple[Names, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Patients with equal cells beside each other, the rarest cells first.

    Returns:
        The P patients' ids, each row's patient [N], and the order [P] of the patients.
    """
    ids, row_patient = np.unique(patient.astype(np.str_), return_inverse=True)
    member = np.zeros((len(ids), strata.shape[1]), np.bool_)
    for cell in range(strata.shape[1]):
        member[row_patient[strata[:, cell]], cell] = True
    size = np.where(member.sum(0) > 0, member.sum(0), len(ids) + 1)
    by_size = np.argsort(size, kind="stable")
    # Columns from rare to common: a patient's first True is their rarest cell, and the packed
    # bits then order equal patients beside each other.
    packed = np.packbits(member[:, by_size], axis=1)
    rarest = np.argmax(member[:, by_size], axis=1)
    _, combination = np.unique(packed, axis=0, return_inverse=True)
    shuffle = np.array([_hash(seed, str(name)) for name in ids], np.uint64)
    order = np.lexsort((shuffle, combination.reshape(-1), rarest))
    return ids, row_patient, order


def nested_share(patient: npt.NDArray[Any], strata: Bools, fraction: float, seed: int) -> Bools:
    """Rows of a share of the patients; of two shares the smaller lies within the larger.

    The patients stand in the order in which ``make_splits`` deals them out, and each has a fixed
    number in [0, 1): the multiples of the golden ratio, which are spread evenly over every
    stretch of the order. A patient belongs to all shares above that number, so every cell gives
    its part, and a share depends on nothing but patients, cells and seed.

    Args:
        patient: patient ids [N].
        strata: bool [N, T], see ``cells``.
        fraction: share of the patients, in (0, 1].
        seed: the settings' ``--split-seed``.

    Returns:
        Whether the row belongs to the share [N].
    """
    return shares_of(patient, strata, seed) < fraction


def shares_of(patient: npt.NDArray[Any], strata: Bools, seed: int) -> npt.NDArray[np.float64]:
    """The number in [0, 1) of each row's patient [N], see ``nested_share``."""
    _, row_patient, order = _ordered(patient, strata, seed)
    place = np.empty(len(order), np.float64)
    place[order] = (np.arange(len(order)) + 0.5) * _GOLDEN % 1.0
    return place[row_patient]


def _hash(seed: int, patient: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{patient}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _deal(n: int, share: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Which part gets card i, so that any stretch of the order is shared out in proportion."""
    goal = (share / share.sum()).tolist()
    behind = [0.0] * len(goal)
    dealt = np.empty(n, np.int64)
    for i in range(n):
        behind = [b + g for b, g in zip(behind, goal, strict=True)]
        lucky = max(range(len(goal)), key=behind.__getitem__)
        behind[lucky] -= 1.0
        dealt[i] = lucky
    return dealt


def shared_patients(patient: npt.NDArray[Any], split: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Ids of the patients with rows in more than one split."""
    ids, row_patient = np.unique(patient.astype(np.str_), return_inverse=True)
    names, row_split = np.unique(split.astype(np.str_), return_inverse=True)
    pairs = np.unique(row_patient.astype(np.int64) * len(names) + row_split)
    found, times = np.unique(pairs // len(names), return_counts=True)
    return ids[found[times > 1]]  # type: ignore[no-any-return]


def check_disjoint(patient: npt.NDArray[Any], split: npt.NDArray[Any]) -> None:
    """Asserts that no patient has rows in two splits. No option turns this off.

    Raises:
        RuntimeError: counts the patients.
    """
    shared = shared_patients(patient, split)
    if len(shared):
        raise RuntimeError(f"{len(shared)} patients have rows in two splits")
