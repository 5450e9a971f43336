"""Which training patients: everyone, one of eight halves, four of five folds, and a subsample.

All of it depends on nothing but patient ids, their labels and the seed, so that driver and
workers find the same rows without telling each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from autopeft.job import Rows

HALVES, FOLDS = 8, 5

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


def is_part(part: str) -> bool:
    """Whether this names training patients: ``all``, ``half:0`` to ``half:7``, ``fold:0`` ..."""
    kind, _, number = part.partition(":")
    limit = {"half": HALVES, "fold": FOLDS}.get(kind, 0)
    return part == "all" or part in [f"{kind}:{i}" for i in range(limit)]


def part_rows(rows: Mapping[str, Rows], part: str, seed: int) -> tuple[Rows, Rows]:
    """Rows that a part trains on, and rows by which its training is judged.

    Args:
        rows: ``train`` and ``search`` of a setup.
        part: ``all``; ``half:i``, half of the train patients (each is in four of the eight);
            ``fold:i``, the train and search patients but for one of five folds, which judges.
        seed: of the setup.

    Raises:
        ValueError: there is no such part.
    """
    if not is_part(part):
        raise ValueError(f"there is no part {part!r}")
    kind, _, number = part.partition(":")
    if kind == "half":
        return rows["train"].take(halves(rows["train"], seed)[int(number)]), rows["search"]
    if kind == "fold":
        everyone = joined([rows["train"], rows["search"]])
        held = folds(everyone, seed) == int(number)
        return everyone.take(~held), everyone.take(held)
    return rows["train"], rows["search"]


def scored_rows(rows: Mapping[str, Rows], part: str, seed: int) -> dict[str, Rows]:
    """Name in the file of predictions -> rows that a rung scores.

    ``score`` is what judges the training. With a ``probe`` split also ``train``, a subsample of
    the members, and ``probe``. A half scores all of train, its own patients and the others.
    """
    found = {"score": part_rows(rows, part, seed)[1]}
    if part.startswith("half:"):
        found["train"] = rows["train"]
    elif part == "all" and "probe" in rows:
        found["train"] = rows["train"].take(subsample(rows, seed))
    if "probe" in rows and "train" in found:
        found["probe"] = rows["probe"]
    return found


def subsample(rows: Mapping[str, Rows], seed: int) -> Bools:
    """The train rows [N] of as many patients as ``probe`` has, at most half of them.

    Spread evenly over the label patterns. The others are nobody's members: neighbors among them
    have seen neither side.
    """
    train = rows["train"]
    order, unit = _in_order(train, seed, "members")
    p = len(order)
    wanted = min(len(np.unique(rows["probe"].patient)), p // 2)
    place = np.arange(p + 1) * wanted // max(p, 1)
    chosen = np.zeros(p, np.bool_)
    chosen[order] = np.diff(place) > 0
    return chosen[unit]


def halves(rows: Rows, seed: int) -> Bools:
    """Whether a row's patient is in each of eight halves, [8, N]; everyone is in four.

    Patients with equal labels stand beside each other; of two neighbors one gets four of the
    eight and the other the remaining four, so that halves are equal in size and alike in labels.
    """
    order, unit = _in_order(rows, seed, "half")
    fours = [c for c in combinations(range(HALVES), HALVES // 2) if 0 in c]
    inside = np.zeros((HALVES, len(order)), np.bool_)
    for place, patient in enumerate(order):
        # The step is prime to the number of fours: neighbors' fours have little in common.
        four = fours[place // 2 * 11 % len(fours)]
        rest = [i for i in range(HALVES) if i not in four]
        inside[rest if place % 2 else list(four), patient] = True
    return inside[:, unit]


def folds(rows: Rows, seed: int) -> Indices:
    """The fold [N] of each row's patient, alike in size and labels."""
    order, unit = _in_order(rows, seed, "fold")
    fold = np.empty(len(order), np.intp)
    fold[order] = np.arange(len(order)) % FOLDS
    return fold[unit]


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several splits in store order."""
    order = np.argsort(np.concatenate([p.index for p in parts]), kind="stable")
    labels = [p.label for p in parts if p.label is not None]
    return Rows(
        np.concatenate([p.path for p in parts])[order],
        np.concatenate([p.index for p in parts])[order],
        np.concatenate([p.patient for p in parts])[order],
        np.concatenate(labels)[order] if len(labels) == len(parts) else None,
        {k: np.concatenate([p.groups[k] for p in parts])[order] for k in parts[0].groups},
    )


def _in_order(rows: Rows, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Places of the P patients, those of equal labels together and inside by a hash; unit [N]."""
    ids, unit = np.unique(rows.patient.astype(np.str_), return_inverse=True)
    assert rows.label is not None
    positive = np.zeros((len(ids), rows.label.shape[1]), np.bool_)
    for c in range(rows.label.shape[1]):
        positive[unit[rows.label[:, c] == 1], c] = True
    shuffle = [_hash(f"{purpose}/{seed}/{name}") for name in ids.tolist()]
    return np.lexsort((np.array(shuffle, np.uint64), *positive.T)), unit


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
