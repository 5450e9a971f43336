import numpy as np
import pytest
import synthetic
from chexpert_tree import many, row
from chexpert_tree import write as write_tree

from autopeft.data import data_set
from autopeft.data.whole import whole
from autopeft.errors import UserError
from autopeft.settings import Settings


def read(settings, groups=(), optional=(), split="all"):
    source, _ = data_set(settings.dataset).source(settings, None)
    return whole(source, groups, optional, split)


@pytest.fixture
def csv(tmp_path):
    frame = synthetic.people(20)
    frame["part"] = ["here", "there"] * 20
    return synthetic.write(tmp_path, frame)


def test_everyone_is_there_once_and_nobody_is_split(csv):
    found = read(synthetic.settings(csv), ("sex",))
    assert (len(found.rows), found.classes, found.kind) == (40, ("lesion",), "binary")
    assert found.rows.path.tolist() == sorted(found.rows.path.tolist())
    assert found.rows.index.tolist() == list(range(40))
    assert set(found.rows.groups["sex"]) == {"sex=F", "sex=M"}


def test_one_class_and_few_patients_are_no_error(tmp_path):
    frame = synthetic.people(3).assign(lesion=1)
    found = read(synthetic.settings(synthetic.write(tmp_path, frame)))
    assert found.rows.label[:, 0].tolist() == [1] * 6


def test_a_split_of_their_own(csv):
    settings = synthetic.settings(csv, split_column="part")
    assert len(read(settings, split="here").rows) == 20
    with pytest.raises(UserError, match='no such split.*Did you mean "there"'):
        read(settings, split="theer")
    with pytest.raises(UserError, match="have no splits of their own"):
        read(synthetic.settings(csv), split="here")


def test_optional_groups_that_are_absent_are_noted(csv):
    found = read(synthetic.settings(csv), (), ("sex", "race"))
    assert list(found.rows.groups) == ["sex"]
    assert any(note.startswith("no groups by race: has no column 'race'") for note in found.notes)
    with pytest.raises(UserError, match="no column 'race'"):
        read(synthetic.settings(csv), ("race",))


def test_blanks_are_left_out_and_counted(tmp_path):
    frame = synthetic.people(20)
    frame["edema"] = frame["lesion"].astype(float)
    frame.loc[:3, ["lesion", "edema"]] = np.nan
    frame.loc[4:5, "edema"] = np.nan
    csv = synthetic.write(tmp_path, frame)
    found = read(synthetic.settings(csv, label=("lesion", "edema")))
    assert len(found.rows) == 36
    assert np.isnan(found.rows.label[:, 1]).sum() == 2
    assert "4 images without a known label were left out" in found.notes
    frame[["lesion", "edema"]] = np.nan
    csv = synthetic.write(tmp_path, frame)
    with pytest.raises(UserError, match="no image with a known label"):
        read(synthetic.settings(csv, label=("lesion", "edema")))


def test_uncertain_is_unknown_whatever_the_training_policy(tmp_path):
    rows = many(40) + [row(p, 2, Edema="-1.0") for p in range(1, 41)]
    folder = write_tree(tmp_path, rows)
    settings = Settings(
        dataset="chexpert", data_root=str(folder), label=("Edema",),
        data_option={"uncertain": "ones"},
    )  # fmt: skip
    found = read(settings)
    assert len(found.rows) == 40
    assert any("40 uncertain labels are taken for unknown" in note for note in found.notes)
    write_tree(tmp_path, many(10, 5001, part="valid"), "valid.csv")
    assert len(read(settings, split="official_valid").rows) == 10
