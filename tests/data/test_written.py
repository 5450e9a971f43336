"""A task from the table that a finished run keeps."""

import json

import numpy as np
import pytest
import synthetic

from autopeft.data import written
from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.job import Rows


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


def test_it_is_sealed_again(task, tmp_path):
    again = written.read(*save(task, tmp_path))
    with pytest.raises(RuntimeError, match="sealed"):
        again.rows("test")


def test_the_table_waits_for_the_opening(task):
    with pytest.raises(RuntimeError, match="sealed"):
        written.table(task)


def test_uncertain_labels_stay_uncertain(tmp_path):
    unsure = np.zeros((4, 1), np.bool_)
    unsure[3] = True
    label = np.array([[1], [0], [1], [np.nan]], np.float32)
    rows = Rows(
        np.array(["a", "b", "c", "d"]), np.arange(4), np.array(["a", "b", "c", "d"]), label
    )
    split = np.array(["train", "search", "confirm", "test"])
    task = Task("t", "binary", "patient", ("x",), tmp_path, (), (), (), rows, split, unsure)
    again = written.read(*save(task, tmp_path))
    assert again.digest == task.digest
    again.open_test()
    assert again.unsure("test").tolist() == [[True]]
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
