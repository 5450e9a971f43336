from dataclasses import fields, replace

import numpy as np
import pytest
import synthetic


@pytest.fixture
def task():
    return synthetic.task(
        patient=["a", "a", "b", "c", "d", "e", "f"],
        label=[[1, 0], [0, 0], [0, np.nan], [1, 1], [0, 1], [1, 0], [0, 1]],
        groups={"sex": ["sex=F", "sex=F", "sex=M", "unknown", "sex=M", "sex=F", "sex=M"]},
        split=["train", "train", "train", "search", "confirm", "test", "official"],
        external=("official",),
    )


def test_test_rows_stay_sealed_until_opened(task):
    for sealed in ("test", "official"):
        with pytest.raises(RuntimeError, match="sealed"):
            task.rows(sealed)
    assert task.rows("train").path.tolist() == ["00000.png", "00001.png", "00002.png"]
    assert task.open_test().patient.tolist() == ["e"]
    assert task.rows("test").index.tolist() == [5]
    assert task.rows("official").index.tolist() == [6]


def test_sealed_labels_show_nowhere_before_the_opening():
    """Turned test labels change no row, note or count that can be read while they are sealed."""
    splits = ["train"] * 4 + ["search"] * 4 + ["test"] * 4
    patients, groups = range(12), {"sex": ["sex=F", "sex=M"] * 6}
    label = np.array([0, 1] * 6, np.float32)
    turned = np.where(np.array(splits) == "test", 1 - label, label)
    one, other = (synthetic.task(patients, y, groups, splits) for y in (label, turned))
    assert one.notes == other.notes
    assert one.split_table().equals(other.split_table())
    for split in ("train", "search"):
        assert one.counts(split).equals(other.counts(split))
        mine, theirs = one.rows(split), other.rows(split)
        assert mine.path.tolist() == theirs.path.tolist()
        assert np.array_equal(mine.label, theirs.label)
        assert mine.groups["sex"].tolist() == theirs.groups["sex"].tolist()


def test_an_unknown_split_is_a_mistake(task):
    with pytest.raises(KeyError):
        task.rows("val")


def test_counts_are_of_patients_and_need_no_opening(task):
    table = task.counts("train").set_index(["class", "group"])
    # a is positive for c0 though one of their two images is not; b's c1 is not known.
    assert table.loc[("c0", "all"), ["images", "patients"]].tolist() == [3, 2]
    assert table.loc[("c0", "all"), ["positives", "negatives"]].tolist() == [1, 1]
    assert table.loc[("c1", "all"), ["positives", "negatives"]].tolist() == [0, 1]
    assert table.loc[("c1", "sex=M"), ["positives", "negatives"]].tolist() == [0, 0]
    assert task.counts("test").iloc[0]["images"] == 1
    with pytest.raises(RuntimeError):
        task.rows("test")


def test_groups_of_leaves_out_unknown(task):
    assert task.groups_of("sex") == ("sex=F", "sex=M")


def test_a_patient_in_two_splits_is_refused_by_the_constructor(task):
    split = task._split.copy()
    split[1] = "test"
    with pytest.raises(RuntimeError, match="two splits"):
        replace(task, _split=split)
    assert not any("allow" in f.name or "check" in f.name for f in fields(task))


def test_the_digest_covers_labels_groups_splits_and_paths(task):
    rows = task._all
    flipped = rows.label.copy()
    flipped[3, 0] = 0
    other_split = np.where(task._split == "confirm", "search", task._split)
    changed = [
        replace(task, _all=replace(rows, label=flipped)),
        replace(task, _split=other_split),
        replace(task, _all=replace(rows, path=np.char.add("x", rows.path))),
        replace(task, _all=replace(rows, groups={"sex": np.full(7, "sex=F")})),
        replace(task, classes=("c0", "c9")),
    ]
    assert len({task.digest, *(t.digest for t in changed)}) == 6
    assert replace(task, notes=("a note",)).digest == task.digest


def test_no_patient_shows_in_the_repr(task):
    assert "00000.png" not in repr(task)
    assert "'a'" not in repr(task)
