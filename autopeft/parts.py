"""Which training patients: everyone, a half, four of five folds, some with planted wrong labels.

All of it depends on nothing but patient ids, their labels and groups, and the seed, so that
driver and workers find the same rows without telling each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.job import Rows

HALVES, FOLDS = 8, 5
FOLD_PARTS = ("all", *(f"fold:{i}" for i in range(1, FOLDS)))  # of five folds, in their order
PLANTED = "planted"
_ONE_IN = 10  # patients with a planted label

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


def is_part(part: str) -> bool:
    """Whether this names training patients: ``all``, ``planted``, ``half:0``, ``fold:1`` ..."""
    return part in (PLANTED, *FOLD_PARTS, *(f"half:{i}" for i in range(HALVES)))


def part_rows(rows: Mapping[str, Rows], part: str, seed: int) -> tuple[Rows, Rows]:
    """Rows that a part trains on, and rows by which its training is judged.

    Args:
        rows: ``train`` and ``search`` of a setup.
        part: ``all``; ``planted``, the train patients, one in ten with a wrong label;
            ``half:i``, half of the train patients (each is in four of the eight);
            ``fold:1`` to ``fold:4``, the search patients and three of the four folds of train;
            the fourth judges. (Fold 0 is ``search``: its training is ``all``.)
        seed: of the setup.

    Raises:
        ValueError: there is no such part.
    """
    if not is_part(part):
        raise ValueError(f"there is no part {part!r}")
    kind, _, number = part.partition(":")
    if kind == PLANTED:
        return planted(rows["train"], seed)[0], rows["search"]
    if kind == "half":
        return rows["train"].take(halves(rows["train"], seed)[int(number)]), rows["search"]
    if kind == "fold":
        held = folds(rows["train"]) == int(number)
        trained = joined([rows["train"].take(~held), rows["search"]])
        return trained, rows["train"].take(held)
    return rows["train"], rows["search"]


def scored_rows(rows: Mapping[str, Rows], part: str, seed: int) -> dict[str, Rows]:
    """Name in the file of predictions -> rows that a rung scores.

    ``score`` is what judges the training. With a ``probe`` split also ``train``, a subsample of
    the members, and ``probe``. A half, and a training on planted labels, scores all of train.
    """
    found = {"score": part_rows(rows, part, seed)[1]}
    if part == PLANTED or part.startswith("half:"):
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


def planted(rows: Rows, seed: int) -> tuple[Rows, Bools]:
    """The rows with one label of one patient in ten made wrong, in all images of the patient.

    A label is turned over; where each row has exactly one class, the row goes to the next one.

    Returns:
        The rows, and which of their labels [N, C] are wrong.
    """
    order, unit = _in_order(rows, seed, PLANTED)
    assert rows.label is not None
    label, classes = rows.label.copy(), rows.label.shape[1]
    one_class = classes > 1 and bool((np.nan_to_num(label).sum(axis=1) == 1).all())
    for place, patient in enumerate(order[_ONE_IN // 2 :: _ONE_IN]):
        mine = unit == patient
        if one_class:
            label[mine] = np.roll(label[mine], 1, axis=1)
        else:
            label[mine, place % classes] = 1 - label[mine, place % classes]
    wrong = (label != rows.label) & ~np.isnan(rows.label)
    return replace(rows, label=label), wrong


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


def folds(rows: Rows) -> Indices:
    """The fold [N], 1 to 4, of each train row's patient; alike in size, labels and groups.

    No seed: the folds are as fixed as the split that they are cut from.
    """
    order, unit = _in_order(rows, 0, "fold", rows.groups)
    fold = np.empty(len(order), np.intp)
    fold[order] = 1 + np.arange(len(order)) % (FOLDS - 1)
    return fold[unit]


def fold_of(part: str) -> int:
    """The fold that judges a part: 0 (``search``) but for ``fold:1`` to ``fold:4``."""
    return FOLD_PARTS.index(part) if part in FOLD_PARTS else 0


def fold_rows(rows: Mapping[str, Rows]) -> tuple[Rows, ...]:
    """What each of the five folds judges by: ``search``, then the four folds of train."""
    fold = folds(rows["train"])
    return (rows["search"], *(rows["train"].take(fold == i) for i in range(1, FOLDS)))


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


def _in_order(
    rows: Rows,
    seed: int,
    purpose: str,
    groups: Mapping[str, npt.NDArray[Any]] | None = None,
) -> tuple[Indices, Indices]:
    """Places of the P patients, those of equal labels together and inside by a hash; unit [N].

    With groups those of equal labels and equal groups stand together.
    """
    ids, unit = np.unique(rows.patient.astype(np.str_), return_inverse=True)
    assert rows.label is not None
    positive = np.zeros((len(ids), rows.label.shape[1]), np.bool_)
    for c in range(rows.label.shape[1]):
        positive[unit[rows.label[:, c] == 1], c] = True
    member = [
        np.bincount(unit[names == name], minlength=len(ids)) > 0
        for names in (groups or {}).values()
        for name in np.unique(names)
    ]
    shuffle = [_hash(f"{purpose}/{seed}/{name}") for name in ids.tolist()]
    return np.lexsort((np.array(shuffle, np.uint64), *member, *positive.T)), unit


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
