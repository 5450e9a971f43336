"""The probe split: whole patients from train, alike in labels, and nobody else moves."""

import numpy as np
import pytest
import synthetic

from autopeft.data import load_task
from autopeft.data.probe import cut_probe
from autopeft.errors import UserError


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    table = synthetic.write(folder, synthetic.people(n=400))
    return load_task(synthetic.settings(table, group=("sex",)), folder)


def patients(task, split):
    return set(task.rows(split).patient.tolist())


def test_as_many_patients_as_search_leave_train_and_the_rest_stays(task):
    cut = cut_probe(task, 0)
    assert len(patients(cut, "probe")) == len(patients(task, "search"))
    assert patients(cut, "probe") | patients(cut, "train") == patients(task, "train")
    assert not patients(cut, "probe") & patients(cut, "train")
    for split in ("search", "confirm"):
        assert patients(cut, split) == patients(task, split)
    assert patients_of_test(cut) == patients_of_test(task)
    assert (task.inner, cut.inner) == (("train", "search"), ("train", "search", "probe"))
    table = cut.split_table()
    assert set(table.split) == {"train", "search", "confirm", "test", "probe"}


def patients_of_test(task):
    table = task.split_table()
    return set(table.patient_id[table.split == "test"])


def test_labels_and_groups_are_shared_out(task):
    cut = cut_probe(task, 0)
    shares = {
        s: (cut.rows(s).label.mean(), (cut.rows(s).groups["sex"] == "sex=F").mean())
        for s in ("train", "probe")
    }
    assert shares["train"] == pytest.approx(shares["probe"], abs=0.04)


def test_the_seed_decides_and_the_task_without_it_is_as_it_was(task):
    before = task.digest
    a, b, c = (cut_probe(task, seed) for seed in (0, 0, 1))
    assert a.digest == b.digest != c.digest
    assert patients(a, "probe") != patients(c, "probe")
    assert task.digest == before != a.digest
    assert len(task.rows("probe")) == 0


def test_test_stays_sealed(task):
    with pytest.raises(RuntimeError, match="sealed"):
        cut_probe(task, 0).rows("test")


def test_a_train_split_that_would_lose_more_than_half_is_refused():
    split = ["train"] * 18 + ["search"] * 10 + ["confirm"] * 6 + ["test"] * 6
    made = synthetic.task(np.arange(40), np.arange(40) % 2, {}, split)
    with pytest.raises(UserError, match="10 patients cut from train.* only 18"):
        cut_probe(made, 0)


def test_a_probe_that_cannot_be_scored_is_refused():
    split = ["train"] * 20 + ["search"] * 2 + ["confirm"] * 4 + ["test"] * 4
    label = np.arange(30) % 2
    label[:20] = 0
    label[0] = 1
    made = synthetic.task(np.arange(30), label, {}, split)
    with pytest.raises(UserError, match="cannot be scored"):
        cut_probe(made, 0)
