"""A task from the table that a finished run keeps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import synthetic
from chexpert_tree import LABELS, many, row, write

from autopeft.data import written
from autopeft.data.chexpert import load_chexpert
from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.job import Rows
from autopeft.settings import Settings


@pytest.fixture
def task():
    return synthetic.task(
        patient=["a", 'b "x", y', "NA", "001", "e", "f", "g"],
        label=[[1, 0], [0, 0], [0, np.nan], [1, 1], [0, 1], [1, 0], [0, 1]],
        groups={
            "sex": ["sex=F", "sex=F", "sex=M", "unknown", "sex=M", "sex=F", "sex=M"],
            "age:60": ["age>=60", "age<60", "unknown", "age<60", "age<60", "age>=60", "age<60"],
        },
        split=["train", "train", "search", "search", "confirm", "test", "official"],
        external=("official",),
    )


def save(task, folder):
    task.open_test()
    path = folder / "splits.csv"
    written.table(task).to_csv(path, index=False)
    return json.loads(json.dumps(written.about(task))), path


def test_it_is_the_same_task(task, tmp_path):
    about, path = save(task, tmp_path)
    again = written.read(about, path)
    assert again.digest == task.digest
    again.open_test()
    for split in ("train", "search", "confirm", "test", "official"):
        a, b = task.rows(split), again.rows(split)
        assert a.path.tolist() == b.path.tolist()
        assert a.patient.tolist() == b.patient.tolist()
        assert np.array_equal(a.label, b.label, equal_nan=True)
        assert {k: v.tolist() for k, v in a.groups.items()} == {
            k: v.tolist() for k, v in b.groups.items()
        }
    assert (again.name, again.kind, again.unit) == (task.name, task.kind, task.unit)
    assert (again.notes, again.external) == (task.notes, task.external)


def test_that_train_has_other_labels_is_kept(task, tmp_path):
    assert "policy_differs" not in written.about(task)
    assert not written.read(*save(task, tmp_path)).policy_differs
    assert written.read(*save(replace(task, policy_differs=True), tmp_path)).policy_differs


def test_it_is_sealed_again(task, tmp_path):
    again = written.read(*save(task, tmp_path))
    with pytest.raises(RuntimeError, match="sealed"):
        again.rows("test")


def test_the_table_waits_for_the_opening(task):
    with pytest.raises(RuntimeError, match="sealed"):
        written.table(task)


def test_uncertain_labels_stay_uncertain(tmp_path):
    unsure = np.zeros((5, 1), np.bool_)
    unsure[3] = True  # the last one is blank, which is something else
    label = np.array([[1], [0], [1], [np.nan], [np.nan]], np.float32)
    ids = np.array(["a", "b", "c", "d", "e"])
    rows = Rows(ids, np.arange(5), ids, label)
    split = np.array(["train", "search", "confirm", "test", "test"])
    task = Task("t", "binary", "patient", ("x",), tmp_path, (), (), (), rows, split, unsure)
    again = written.read(*save(task, tmp_path))
    assert again.digest == task.digest
    again.open_test()
    assert again.unsure("test").tolist() == [[True], [False]]
    assert np.isnan(again.rows("test").label).all()


def test_a_changed_label_changes_the_digest(task, tmp_path):
    about, path = save(task, tmp_path)
    text = path.read_text()
    path.write_text(text.replace("test,1,0", "test,0,0"))
    assert path.read_text() != text
    assert written.read(about, path).digest != task.digest


def test_what_is_no_such_table_is_refused_in_one_line(task, tmp_path):
    about, path = save(task, tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        written.read(about, tmp_path / "gone.csv")
    path.write_text(path.read_text().replace("label:c0", "c0"))
    with pytest.raises(UserError, match="is not the table that a run wrote"):
        written.read(about, path)


def test_chexpert_with_uncertain_images_and_an_external_check(tmp_path):
    doubtful = dict.fromkeys(LABELS, "-1.0")
    lines = [*many(), *(row(p, **doubtful) for p in range(200, 240))]
    root = write(tmp_path / "CheXpert-v1.0-small", lines)
    write(root, many(20, start=900, part="valid"), name="valid.csv")
    task = load_chexpert(
        Settings(dataset="chexpert", data_root=str(root), group=("sex", "age:60")), tmp_path
    )
    assert task.has("uncertain")
    assert task.external
    again = written.read(*save(task, tmp_path))
    assert again.digest == task.digest
    again.open_test()
    for split in ("uncertain", "test", *task.external):
        assert again.unsure(split).tolist() == task.unsure(split).tolist()
        assert again.counts(split).equals(task.counts(split))
    assert again.unsure("uncertain").any()
