"""Counts of a task, and copies among its files."""

from __future__ import annotations

import shutil

import pytest
from tiny_run import tiny

from autopeft import settings as settings_file
from autopeft.audit import audit, identical
from autopeft.data import load_task


@pytest.fixture
def made(tmp_path):
    """A phantom task that the test may spoil."""
    values = tiny(tmp_path, group=("sex", "age:60"), objective="fairness")
    values["data_option"] = {**values["data_option"], "patients": "80"}
    return load_task(settings_file.from_mapping(settings_file.complete(values), "test"), tmp_path)


def test_counts_agree_with_the_task(made):
    found = audit(made)
    table = made.split_table()
    assert found["images"] == len(table)
    each = table.groupby("patient_id").size()
    assert (found["several_images"], found["most_images"]) == (int((each > 1).sum()), each.max())
    for split, one in found["splits"].items():
        assert one["images"] == int((table["split"] == split).sum())
    assert set(found["unknown"]) == {"sex", "age:60"}
    assert all(u["of"] == found["patients"] for u in found["unknown"].values())


def test_no_patient_and_no_path_is_in_it(made):
    text, table = str(audit(made)), made.split_table()
    assert not any(str(p) in text for p in table["path"])
    assert str(made.root) not in text


def test_copies_are_found_and_told_where_they_lie(made):
    assert identical(made)["copies"] == 0
    table = made.split_table()
    train = table[table["split"] == "train"]
    test = table[table["split"] == "test"]
    others = train[train["patient_id"] != train["patient_id"].iloc[0]]
    first = made.root / train["path"].iloc[0]
    shutil.copyfile(first, made.root / others["path"].iloc[0])  # another patient, same split
    found = identical(made)
    assert (found["copies"], found["patients"], found["splits"]) == (1, 1, 0)
    shutil.copyfile(first, made.root / test["path"].iloc[0])
    found = identical(made)
    assert (found["copies"], found["patients"], found["splits"]) == (2, 1, 1)


def test_without_time_it_says_so(made):
    assert identical(made, seconds=-1.0)["whole"] is False


def test_a_file_that_is_gone_is_nobodys_copy(made):
    table = made.split_table()
    for path in table["path"].iloc[:2]:
        (made.root / path).unlink()
    assert identical(made)["copies"] == 0
