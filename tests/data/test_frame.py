from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic

from autopeft.data.frame import Source, build_task
from autopeft.errors import UserError


@pytest.fixture
def source(tmp_path):
    """200 patients, one image each; an uncertain label is 1 in train and NaN elsewhere."""
    frame = synthetic.people(200, images=1)
    synthetic.write(tmp_path, frame)
    judged = frame["lesion"].to_numpy(np.float32)[:, None].copy()
    judged[::10] = np.nan
    label = np.where(np.isnan(judged), np.float32(1), judged)
    return Source(
        "made", "made.csv", tmp_path, "binary", "patient", ("lesion",),
        frame.drop(columns="lesion"), label, judged,
    )  # fmt: skip


def test_the_training_policy_touches_train_only(source):
    task = build_task(source, (), 0)
    task.open_test()
    uncertain = {f"P{i:04d}" for i in range(0, 200, 10)}
    train = task.rows("train")
    here = np.isin(train.patient, list(uncertain))
    assert here.any()
    assert (train.label[here] == 1).all()
    for split in ("search", "confirm", "test"):
        assert not set(task.rows(split).patient) & uncertain
    dropped = 200 - len(task.paths)
    assert dropped == 20 - here.sum() > 0
    assert f"{dropped} images without a known label were left out" in task.notes


def test_a_task_knows_that_train_has_other_labels(source):
    assert build_task(source, (), 0).policy_differs
    for same in (
        replace(source, label=source.judged),
        replace(source, label=source.judged, judged=None),
    ):
        task = build_task(same, (), 0)
        assert not task.policy_differs
        assert task.digest == replace(task, policy_differs=True).digest
    # Where only test patients are uncertain the policy says nothing.
    words = np.array(["test", "test", "search", "confirm", *["train"] * 6])[np.arange(200) % 10]
    given = replace(source, frame=source.frame.assign(split=words))
    assert not build_task(given, (), 0).policy_differs


def test_another_policy_keeps_the_evaluated_rows(source):
    """What train does with an uncertain label must not move a patient between splits."""
    other = replace(source, label=np.where(np.isnan(source.judged), 0, source.judged))
    one, two = build_task(source, ("sex",), 0), build_task(other, ("sex",), 0)
    assert one.digest != two.digest
    for split in ("search", "confirm"):
        assert one.rows(split).path.tolist() == two.rows(split).path.tolist()
        assert np.array_equal(one.rows(split).label, two.rows(split).label)


def test_external_checks_stay_out_of_the_splits(source):
    names = np.where(np.arange(200) < 150, "train", "official_valid")
    checked = replace(source, frame=source.frame.assign(split=names), external=("official_valid",))
    task = build_task(checked, ("sex",), 0)
    assert task.external == ("official_valid",)
    with pytest.raises(RuntimeError, match="sealed"):
        task.rows("official_valid")
    test = task.open_test()
    outside = task.rows("official_valid")
    assert len(outside) == 45  # five of its fifty are uncertain
    assert not set(outside.patient) & set(test.patient)
    # Shares are of the 150 patients that are ours to split.
    assert 20 <= len(test) <= 23


def test_unknown_groups_are_told_and_kept(source):
    sex = source.frame["sex"].where(np.arange(200) % 20 != 3, "")
    task = build_task(replace(source, frame=source.frame.assign(sex=sex)), ("sex",), 0)
    assert "10 images of 10 patients have no known sex: in no group of it" in "\n".join(task.notes)
    assert (task._all.groups["sex"] == "unknown").sum() == 10


def test_notes_hold_no_path_and_no_patient(source):
    sex = source.frame["sex"].where(np.arange(200) % 20 != 3, "")
    task = build_task(replace(source, frame=source.frame.assign(sex=sex)), ("sex",), 0)
    text = "\n".join(task.notes)
    assert text
    assert "P0" not in text
    assert ".png" not in text


def test_no_rows(source):
    empty = replace(source, frame=source.frame.head(0), label=np.zeros((0, 1), np.float32))
    with pytest.raises(UserError, match="holds no rows"):
        build_task(replace(empty, judged=None), (), 0)


def test_patients_with_images_of_every_class_can_be_scored(tmp_path):
    frame = synthetic.people(40, images=3)
    synthetic.write(tmp_path, frame)
    label = np.tile(np.eye(3, dtype=np.float32), (40, 1))
    source = Source(
        "made", "made.csv", tmp_path, "multiclass", "patient", ("a", "b", "c"),
        frame.drop(columns="lesion"), label,
    )  # fmt: skip
    task = build_task(source, (), 0)
    assert set(task.counts("search")["negatives"]) == {0}  # patients
    n = len(task.rows("search"))
    assert task.count_images("search")["b"] == (n // 3, n - n // 3)
    assert not any("not scored" in note for note in task.notes)


@pytest.mark.parametrize("twice", [("sex", "Sex"), ("age:60", "Age:60.0")])
def test_a_group_named_twice_is_refused(source, twice):
    with pytest.raises(UserError, match=f"the same group as --group {twice[0]}. Name it once"):
        build_task(source, twice, 0)
    assert build_task(source, ("age:40", "age:60"), 0).attributes == ("age:40", "age:60")


@pytest.mark.slow
def test_a_task_of_chexperts_size_is_right(tmp_path):
    """224,000 images of 64,000 patients; one real file, the others hard links to it."""
    rng = np.random.default_rng(0)
    patient = np.sort(rng.integers(0, 64000, 224000))
    paths = [f"{p % 50}/{p}_{i}.jpg" for i, p in enumerate(patient)]
    for folder in range(50):
        (tmp_path / str(folder)).mkdir()
    first = tmp_path / paths[0]
    first.touch()
    for i, path in enumerate(paths[1:]):
        if i % 10000 == 0:  # a file system allows some 65,000 links to one file
            first = tmp_path / path
            first.touch()
        else:
            (tmp_path / path).hardlink_to(first)
    label = (rng.random((224000, 5)) < 0.2).astype(np.float32)
    frame = pd.DataFrame({"path": paths, "patient_id": patient.astype(str)})
    frame = frame.assign(sex=np.where(patient % 2, "M", "F"), age=20 + patient % 70)
    source = Source(
        "big", "big.csv", tmp_path, "multilabel", "patient", tuple("abcde"), frame, label
    )
    task = build_task(source, ("sex", "age:60"), 0)
    n = task.patients
    sizes = [task.counts(s).iloc[0]["patients"] for s in ("train", "search", "confirm", "test")]
    assert np.allclose(np.array(sizes) / n, [0.70, 0.10, 0.05, 0.15], atol=2 / n)
    table = pd.concat(task.counts(s).assign(split=s) for s in ("search", "test"))
    share = table["positives"] / (table["positives"] + table["negatives"])
    overall = share.groupby([table["class"], table["group"]]).agg(lambda s: s.max() - s.min())
    assert overall.max() < 0.02
