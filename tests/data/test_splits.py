import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.data.splits import (
    SPLITS,
    cells,
    check_disjoint,
    make_splits,
    shared_patients,
    shares,
)


@st.composite
def cohorts(draw):
    """(patient [N], label [N, C], groups) of 1 to 80 patients with 1 to 3 rows each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, classes = draw(st.integers(1, 80)), draw(st.integers(1, 3))
    rows = np.repeat(np.arange(n), rng.integers(1, 4, n))
    rng.shuffle(rows)
    label = (rng.random((n, classes)) < draw(st.sampled_from([0.05, 0.3, 0.5]))).astype(float)
    label = label[rows]
    label[rng.random(label.shape) < 0.1] = np.nan
    sex = np.array(["sex=F", "sex=M", "unknown"])[rng.choice(3, n, p=[0.6, 0.35, 0.05])][rows]
    return np.array([f"p{i}" for i in rows]), label.astype(np.float32), [sex]


def split_of(cohort, seed=0, share=None):
    patient, label, groups = cohort
    share = share or shares(len(set(patient)))
    return make_splits(patient, cells(label, groups), share, seed)


@given(cohorts())
def test_no_patient_crosses(cohort):
    split = split_of(cohort)
    for p in set(cohort[0]):
        assert len(set(split[cohort[0] == p])) == 1
    check_disjoint(cohort[0], split)


@given(cohorts())
def test_shares_are_met_to_the_patient(cohort):
    split = split_of(cohort)
    n = len(set(cohort[0]))
    for name, share in shares(n).items():
        assert abs(len(set(cohort[0][split == name])) - share * n) < 1.5


@given(cohorts(), st.integers(0, 5))
def test_row_order_does_not_matter(cohort, seed):
    patient, label, groups = cohort
    order = np.random.default_rng(seed).permutation(len(patient))
    again = split_of((patient[order], label[order], [g[order] for g in groups]), seed)
    assert (again == split_of(cohort, seed)[order]).all()


def test_each_cell_of_label_and_group_is_shared_out():
    rng = np.random.default_rng(1)
    n = 2000
    sick, woman, old = (rng.random(n) < p for p in (0.07, 0.5, 0.3))
    groups = [np.where(woman, "F", "M"), np.where(old, "old", "young")]
    patient = np.arange(n)
    split = split_of((patient, sick[:, None].astype(np.float32), groups))
    for name, share in shares(n).items():
        here = split == name
        for w in (woman, ~woman):
            for o in (old, ~old):
                for s in (sick, ~sick):
                    cell = w & o & s
                    # Random allocation would be off by sqrt(n p (1-p)) = up to 13 patients.
                    assert abs((cell & here).sum() - share * cell.sum()) <= 2.5


def test_a_rare_label_reaches_every_split():
    label = np.zeros((400, 3), np.float32)
    label[np.arange(20) * 20, 2] = 1  # 20 patients of 400
    label[::3, 0] = 1
    split = split_of((np.arange(400), label, []))
    assert [int(label[split == s, 2].sum()) for s in SPLITS] == [12, 3, 2, 3]


def test_seed_changes_the_patients_not_the_counts():
    cohort = np.arange(500), (np.arange(500) % 3 == 0)[:, None].astype(np.float32), []
    one, two = split_of(cohort, 0), split_of(cohort, 1)
    assert (one != two).mean() > 0.3
    assert sorted(one) == sorted(two)


def test_consecutive_patients_are_spread():
    """Consecutive ids (often admission order) must not decide the split."""
    split = split_of((np.arange(1000), np.zeros((1000, 1), np.float32), []))
    train = np.flatnonzero(split == "train")
    assert abs(train.mean() - 499.5) < 40


def test_shares_change_at_five_thousand_patients():
    assert shares(4999) == {"train": 0.60, "search": 0.15, "confirm": 0.10, "test": 0.15}
    assert shares(5000) == {"train": 0.70, "search": 0.10, "confirm": 0.05, "test": 0.15}


def test_shared_patients_are_found():
    patient, split = np.array(["a", "a", "b", "c"]), np.array(["train", "test", "test", "train"])
    assert shared_patients(patient, split).tolist() == ["a"]
    with pytest.raises(RuntimeError, match="1 patients"):
        check_disjoint(patient, split)
