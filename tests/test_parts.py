"""Halves, folds and the subsample: by patient, balanced, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from autopeft.job import Rows
from autopeft.parts import FOLDS, HALVES, folds, halves, is_part, part_rows, scored_rows, subsample


def make_rows(patients, first=0, seed=0, images=3):
    """Every patient has one to three images and two labels of their own."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, images + 1, patients))
    n = len(who)
    label = (rng.random((patients, 2)) < [0.1, 0.4]).astype(np.float32)[who]
    return Rows(
        np.array([f"{i + first}.png" for i in range(n)]),
        np.arange(n) + first,
        np.array([f"p{i}-{first}" for i in who]),
        label,
        {"sex": np.array(["sex=F", "sex=M"])[who % 2]},
    )


@pytest.fixture(scope="module")
def rows():
    return {
        "train": make_rows(101),
        "search": make_rows(30, 1000, 1),
        "probe": make_rows(30, 2000, 2),
    }


def by_patient(rows, value):
    """One value a patient; all their rows have it."""
    ids, unit = np.unique(rows.patient, return_inverse=True)
    found = np.zeros((*value.shape[:-1], len(ids)), value.dtype)
    found[..., unit] = value
    assert np.array_equal(found[..., unit], value)
    return found


def test_every_patient_is_in_four_of_eight_halves_of_equal_size(rows):
    inside = by_patient(rows["train"], halves(rows["train"], 0))
    assert inside.shape == (HALVES, 101)
    assert (inside.sum(axis=0) == 4).all()
    assert set(inside.sum(axis=1)) <= {50, 51}
    label = by_patient(rows["train"], rows["train"].label.T)
    shares = np.array([label[:, i].sum(axis=1) for i in inside])
    assert np.ptp(shares, axis=0).max() <= 3  # the labels are shared out, too
    together = (inside.astype(int) @ inside.T.astype(int))[~np.eye(HALVES, dtype=bool)]
    assert 14 <= together.min() <= together.max() <= 29  # 3 in 7 of a half's patients


def test_folds_are_disjoint_by_patient_and_alike(rows):
    fold = by_patient(rows["train"], folds(rows["train"], 0))
    assert set(np.bincount(fold)) == {20, 21}
    label = by_patient(rows["train"], rows["train"].label.T)
    shares = [label[:, fold == i].sum(axis=1) for i in range(FOLDS)]
    assert np.ptp(shares, axis=0).max() <= 2


def test_the_subsample_has_as_many_patients_as_the_probe_and_its_labels(rows):
    chosen = by_patient(rows["train"], subsample(rows, 0))
    assert chosen.sum() == 30
    label = by_patient(rows["train"], rows["train"].label.T)
    share = label[:, chosen].mean(axis=1) - label.mean(axis=1)
    assert abs(share).max() < 0.05
    few = {"train": make_rows(21), "probe": rows["probe"]}
    assert by_patient(few["train"], subsample(few, 0)).sum() == 10  # at most half


@pytest.mark.parametrize(
    "cut", [halves, folds, lambda r, s: subsample({"train": r, "probe": r}, s)]
)
def test_it_depends_on_patients_labels_and_seed_only(rows, cut):
    train = rows["train"]
    order = np.random.default_rng(3).permutation(len(train))
    here, there = cut(train, 7), cut(train.take(order), 7)
    assert np.array_equal(here[..., order], there)
    assert not np.array_equal(here, cut(train, 8))


def test_what_a_part_trains_on_and_what_judges_it(rows):
    train, judge = part_rows(rows, "all", 0)
    assert train is rows["train"]
    assert judge is rows["search"]
    half, judge = part_rows(rows, "half:3", 0)
    assert judge is rows["search"]
    assert np.array_equal(half.index, rows["train"].index[halves(rows["train"], 0)[3]])
    held = []
    for i in range(FOLDS):
        train, judge = part_rows(rows, f"fold:{i}", 0)
        assert not set(train.patient) & set(judge.patient)
        assert len(train) + len(judge) == len(rows["train"]) + len(rows["search"])
        assert set(judge.index) <= {*rows["train"].index, *rows["search"].index}
        assert np.array_equal(np.sort(train.index), train.index)
        assert train.label.shape == (len(train), 2)
        held += judge.index.tolist()
    assert sorted(held) == sorted([*rows["train"].index, *rows["search"].index])


def test_what_is_scored_where_memorization_is_asked_and_where_not(rows):
    without = {k: rows[k] for k in ("train", "search")}
    assert list(scored_rows(without, "all", 0)) == ["score"]
    assert list(scored_rows(rows, "fold:0", 0)) == ["score"]
    found = scored_rows(rows, "all", 0)
    assert list(found) == ["score", "train", "probe"]
    assert found["probe"] is rows["probe"]
    assert len(np.unique(found["train"].patient)) == 30
    half = scored_rows(rows, "half:0", 0)
    assert half["train"] is rows["train"]  # its own patients and the others
    assert half["probe"] is rows["probe"]
    assert list(scored_rows(without, "half:0", 0)) == ["score", "train"]


def test_other_parts_do_not_exist(rows):
    good = ["all", "half:0", "half:7", "fold:0", "fold:4"]
    assert all(map(is_part, good))
    bad = ["", "half", "half:8", "half:-1", "half: 1", "half:01", "fold:5", "all:0", "third:0"]
    assert not any(map(is_part, bad))
    with pytest.raises(ValueError, match="half:8"):
        part_rows(rows, "half:8", 0)
