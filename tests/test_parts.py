"""Halves, folds and the subsample: by patient, balanced, the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autopeft.job import Rows
from autopeft.parts import (
    FOLD_PARTS,
    FOLDS,
    HALVES,
    fold_of,
    fold_rows,
    folds,
    halves,
    is_part,
    part_rows,
    planted,
    scored_rows,
    subsample,
)


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


def test_folds_are_disjoint_by_patient_and_alike_in_labels_and_groups(rows):
    fold = by_patient(rows["train"], folds(rows["train"]))
    assert sorted(np.bincount(fold)) == [0, 25, 25, 25, 26]  # fold 0 is search
    label = by_patient(rows["train"], rows["train"].label.T)
    woman = by_patient(rows["train"], rows["train"].groups["sex"] == "sex=F")
    for member in (np.ones(len(fold), bool), woman, ~woman):
        shares = [label[:, member & (fold == i)].sum(axis=1) for i in range(1, FOLDS)]
        assert np.ptp(shares, axis=0).max() <= 2
        assert np.ptp([(member & (fold == i)).sum() for i in range(1, FOLDS)]) <= 3


def test_folds_are_as_fixed_as_the_split(rows):
    """No seed of the run moves them: a repeat, or a resumed run, has the same folds."""
    for part in FOLD_PARTS:
        one, other = (part_rows(rows, part, seed) for seed in (0, 9))
        assert all(np.array_equal(a.index, b.index) for a, b in zip(one, other, strict=True))


def test_a_split_column_may_make_folds_unequal(rows):
    few = {"train": make_rows(12), "search": rows["search"]}
    sizes = [len(np.unique(r.patient)) for r in fold_rows(few)]
    assert sizes == [30, 3, 3, 3, 3]


def test_the_subsample_has_as_many_patients_as_the_probe_and_its_labels(rows):
    chosen = by_patient(rows["train"], subsample(rows, 0))
    assert chosen.sum() == 30
    label = by_patient(rows["train"], rows["train"].label.T)
    share = label[:, chosen].mean(axis=1) - label.mean(axis=1)
    assert abs(share).max() < 0.05
    few = {"train": make_rows(21), "probe": rows["probe"]}
    assert by_patient(few["train"], subsample(few, 0)).sum() == 10  # at most half


def test_row_order_does_not_move_the_folds(rows):
    order = np.random.default_rng(3).permutation(len(rows["train"]))
    assert np.array_equal(folds(rows["train"])[order], folds(rows["train"].take(order)))


@pytest.mark.parametrize("cut", [halves, lambda r, s: subsample({"train": r, "probe": r}, s)])
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
    for i, part in enumerate(FOLD_PARTS):
        train, judge = part_rows(rows, part, 0)
        assert fold_of(part) == i
        assert np.array_equal(fold_rows(rows)[i].index, judge.index)
        assert not set(train.patient) & set(judge.patient)
        assert len(train) + len(judge) == len(rows["train"]) + len(rows["search"])
        assert set(judge.index) <= {*rows["train"].index, *rows["search"].index}
        assert np.array_equal(np.sort(train.index), train.index)
        assert train.label.shape == (len(train), 2)
        held += judge.index.tolist()
    assert sorted(held) == sorted([*rows["train"].index, *rows["search"].index])
    assert fold_of("half:3") == 0  # search judges it


def test_what_is_scored_where_memorization_is_asked_and_where_not(rows):
    without = {k: rows[k] for k in ("train", "search")}
    assert list(scored_rows(without, "all", 0)) == ["score"]
    assert list(scored_rows(rows, "fold:1", 0)) == ["score"]
    found = scored_rows(rows, "all", 0)
    assert list(found) == ["score", "train", "probe"]
    assert found["probe"] is rows["probe"]
    assert len(np.unique(found["train"].patient)) == 30
    half = scored_rows(rows, "half:0", 0)
    assert half["train"] is rows["train"]  # its own patients and the others
    assert half["probe"] is rows["probe"]
    assert list(scored_rows(without, "half:0", 0)) == ["score", "train"]


def test_planted_labels_are_wrong_for_one_patient_in_ten(rows):
    found, wrong = planted(rows["train"], 0)
    assert np.array_equal(found.label != rows["train"].label, wrong)
    hit = np.unique(found.patient[wrong.any(axis=1)])
    assert len(hit) == 10  # of 101
    assert (wrong.sum(axis=1) <= 1).all()
    for name in hit:  # all images of a patient say the same
        mine = wrong[found.patient == name]
        assert (mine == mine[0]).all()
    assert wrong.any(axis=0).all()
    train, judge = part_rows(rows, "planted", 0)
    assert np.array_equal(train.label, found.label)
    assert judge is rows["search"]
    asked = scored_rows(rows, "planted", 0)
    assert asked["train"] is rows["train"]
    assert asked["probe"] is rows["probe"]
    assert not np.array_equal(planted(rows["train"], 1)[1], wrong)


def test_a_planted_row_of_one_class_goes_to_another_one():
    rows = make_rows(60)
    label = np.eye(3, dtype=np.float32)[np.arange(len(rows)) % 3]
    found, wrong = planted(replace(rows, label=label), 0)
    assert (found.label.sum(axis=1) == 1).all()
    assert (wrong.sum(axis=1)[wrong.any(axis=1)] == 2).all()
    assert wrong.any()


def test_an_unknown_label_cannot_be_made_wrong():
    rows = make_rows(60)
    label = np.full((len(rows), 2), np.nan, np.float32)
    found, wrong = planted(replace(rows, label=label), 0)
    assert not wrong.any()
    assert np.isnan(found.label).all()


def test_other_parts_do_not_exist(rows):
    good = ["all", "planted", "half:0", "half:7", "fold:1", "fold:4"]
    assert all(map(is_part, good))
    bad = ["", "half", "half:8", "half:-1", "half: 1", "half:01", "fold:0"]
    bad += ["fold:5", "all:0", "third:0", "planted:0", "planted:"]
    assert not any(map(is_part, bad))
    with pytest.raises(ValueError, match="half:8"):
        part_rows(rows, "half:8", 0)
