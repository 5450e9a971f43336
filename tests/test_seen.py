"""An adapter of patients whom this run keeps unseen is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from autopeft.errors import UserError
from autopeft.seen import check_seen


def task(name="films", test=("d", "e")):
    split = pd.DataFrame(
        {
            "path": ["0.png", "1.png", "2.png", "3.png", "4.png"],
            "patient_id": ["a", "b", "c", *test],
            "split": ["train", "train", "search", "test", "test"],
        }
    )
    return SimpleNamespace(name=name, unit="patient", split_table=lambda: split)


@pytest.fixture
def adapter(tmp_path):
    """Trained on patients a and d of the task `films`; its run looked at c."""

    def make(place="best", trained=("a", "d"), name="films", paths=("0.png", "3.png")):
        folder = tmp_path / "run" / place
        folder.mkdir(parents=True)
        (folder / "autopeft.json").write_text(json.dumps({"task": name}))
        rows = [f"{p},{i},train" for p, i in zip(paths, trained, strict=True)]
        text = "\n".join(["path,patient_id,split", *rows, "2.png,c,search"])
        (tmp_path / "run" / "splits.csv").write_text(text + "\n")
        return folder

    return make


@pytest.mark.parametrize("place", ["best", "baselines/lora_r8"])
def test_a_test_patient_that_trained_it_is_refused(adapter, place):
    with pytest.raises(UserError, match="1 of the 3 patients outside of this run's train split"):
        check_seen(adapter(place), task())


def test_training_on_its_own_train_patients_again_is_fine(adapter):
    assert check_seen(adapter(trained=("a", "b")), task()) == ""
    assert check_seen(adapter("best2", trained=("a", "d")), task(test=("x", "y"))) == ""


def test_folds_refuse_train_patients_too(adapter):
    with pytest.raises(UserError, match="2 of the 2 train patients trained that") as caught:
        check_seen(adapter(trained=("a", "b")), task(), folds=True)
    assert "--inner cv5" in caught.value.where
    assert caught.value.fix.startswith("Take --inner holdout")
    with pytest.raises(UserError, match="1 of the 3 patients outside"):  # no holdout would do
        check_seen(adapter("best2"), task(), folds=True)
    assert check_seen(adapter("best3", trained=("x", "y")), task(), folds=True) == ""
    other = adapter("best4", name="elsewhere")
    (other.parent / "splits.csv").write_text("path,patient_id,split\np.png,a,train\n")
    assert check_seen(other, task(), folds=True) == ""


def test_the_same_id_in_another_data_set_is_somebody_else(adapter):
    other = adapter(name="elsewhere", paths=("p.png", "q.png"))
    (other.parent / "splits.csv").write_text("path,patient_id,split\np.png,d,train\n")
    assert check_seen(other, task()) == ""


def test_the_same_films_under_another_name_are_the_same(adapter):
    with pytest.raises(UserError, match="would be too good"):
        check_seen(adapter(name="renamed"), task())


def test_an_adapter_far_from_its_run_is_told_about(adapter, tmp_path):
    moved = tmp_path / "a" / "b" / "c" / "d"
    moved.parent.mkdir(parents=True)
    adapter().rename(moved)
    assert "is not known" in check_seen(moved, task())
