import numpy as np
import pandas as pd
import pytest
import synthetic

from autopeft.data.splits import SPLITS
from autopeft.data.table import load_table
from autopeft.errors import UserError


@pytest.fixture
def frame():
    return synthetic.people()


@pytest.fixture
def load(tmp_path):
    def run(frame, images=True, **changes):
        csv = synthetic.write(tmp_path, frame, images=images)
        return load_table(synthetic.settings(csv, **changes), tmp_path)

    return run


@pytest.fixture
def refused(load, tmp_path):
    """Runs on bad input: one line, the words in it, nothing written."""

    def run(frame, *words, images=True, **changes):
        with pytest.raises(UserError) as caught:
            load(frame, images=images, **changes)
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message
        assert {p.name for p in tmp_path.iterdir()} <= {"labels.csv", "images", "other"}

    return run


def test_a_binary_table(frame, load):
    task = load(frame, group=("sex", "age:60"))
    assert (task.kind, task.unit, task.classes) == ("binary", "patient", ("lesion",))
    assert task.attributes == ("sex", "age:60")
    assert task.paths.tolist() == sorted(frame["path"])
    rows = task.rows("train")
    assert rows.label.shape == (len(rows), 1)
    by_path = frame.set_index("path")
    for path, label, index, sex, age in zip(
        rows.path, rows.label[:, 0], rows.index, rows.groups["sex"], rows.groups["age:60"],
        strict=True,
    ):  # fmt: skip
        truth = by_path.loc[path]
        assert label == truth["lesion"]
        assert task.paths[index] == path
        assert sex == f"sex={truth['sex']}"
        assert age == ("age>=60" if truth["age"] >= 60 else "age<60")
    task.open_test()
    everyone = [set(task.rows(s).patient) for s in SPLITS]
    assert sum(map(len, everyone)) == len(set.union(*everyone)) == 120


def test_row_order_changes_nothing(frame, load):
    first = load(frame, group=("sex",))
    shuffled = frame.sample(frac=1, random_state=3)
    assert load(shuffled, group=("sex",)).digest == first.digest
    assert load(frame, group=("sex",), split_seed=1).digest != first.digest


def test_other_spellings_of_columns(frame, load):
    renamed = frame.rename(columns={"path": "Filename", "patient_id": "PatientID"})
    assert load(renamed.assign(path=frame["path"])).patients == 120
    odd = frame.rename(columns={"path": "img", "patient_id": "who"})
    task = load(odd.assign(path=frame["path"]), patient_column="who")
    assert task.patients == 120


def test_the_path_column_can_be_named(tmp_path, frame):
    csv = synthetic.write(tmp_path, frame)
    frame.rename(columns={"path": "img"}).to_csv(csv, index=False)
    settings = synthetic.settings(csv, data_option={"path": "img"})
    assert len(load_table(settings, tmp_path).paths) == 240
    with pytest.raises(UserError, match="no column with image paths"):
        load_table(synthetic.settings(csv), tmp_path)


def test_images_below_another_root(tmp_path, frame):
    other = tmp_path / "other"
    synthetic.write(other / "..", frame.assign(path="other/" + frame["path"]))
    csv = tmp_path / "labels.csv"
    frame.to_csv(csv, index=False)
    task = load_table(synthetic.settings(csv, data_root=str(other)), tmp_path)
    assert task.root == other.resolve()
    absolute = frame.assign(path=[str(other / p) for p in frame["path"]])
    absolute.to_csv(csv, index=False)
    again = load_table(synthetic.settings(csv, data_root=str(other)), tmp_path)
    assert again.digest == task.digest


def test_ids_keep_their_zeros(frame, load):
    numbered = frame.assign(patient_id=frame["patient_id"].str[1:])  # 0001 and 001 must differ
    numbered.loc[numbered["patient_id"] == "0001", "patient_id"] = "001"
    assert "001" in set(load(numbered)._all.patient)


def test_multiclass_is_one_hot_in_sorted_classes(frame, load):
    words = np.where(frame["age"] > 60, "viral", np.where(frame["age"] > 40, "none", "bacterial"))
    words[0] = ""
    task = load(frame.assign(lesion=words))
    assert (task.kind, task.classes) == ("multiclass", ("bacterial", "none", "viral"))
    assert len(task.paths) == 239
    assert "239" not in "".join(task.notes)
    assert any("1 images without a known label" in n for n in task.notes)
    rows = task.rows("train")
    assert (rows.label.sum(1) == 1).all()
    truth = dict(zip(frame["path"], words, strict=True))
    assert [task.classes[i] for i in rows.label.argmax(1)] == [truth[p] for p in rows.path]


def test_grades_sort_as_numbers(frame, load):
    grades = [["10", "9", "2"][i // 2 % 3] for i in range(len(frame))]
    assert load(frame.assign(lesion=grades)).classes == ("2", "9", "10")


def test_multilabel_with_blanks(frame, load):
    second = (np.arange(240) // 2 % 3 == 0).astype(float)
    second[:20] = np.nan
    task = load(frame.assign(edema=second), label=("lesion", "edema"))
    assert (task.kind, task.classes) == ("multilabel", ("lesion", "edema"))
    blank = set(frame["path"][:20])
    task.open_test()
    for split in ("train", "search", "confirm", "test"):
        rows = task.rows(split)
        unknown = [path in blank for path in rows.path]
        assert np.array_equal(np.isnan(rows.label[:, 1]), unknown)
        assert not np.isnan(rows.label[:, 0]).any()


@pytest.mark.parametrize(
    "words", [("1", "0"), ("true", "false"), ("Yes", "no"), ("1.0", "0.0"), ("True", "False")]
)
def test_spellings_of_binary_labels(frame, load, words):
    cells = [words[0] if v else words[1] for v in frame["lesion"]]
    assert load(frame.assign(lesion=cells)).digest == load(frame).digest


def test_images_without_a_patient_column(frame, load, refused):
    alone = frame.drop(columns="patient_id")
    refused(alone, "no column with patient ids", "--patient-column none")
    task = load(alone, patient_column="none")
    assert (task.unit, task.patients) == ("image", 240)
    assert any("every image is taken for a patient" in n for n in task.notes)


def given(frame, words):
    return frame.assign(part=[words[int(p[1:]) % len(words)] for p in frame["patient_id"]])


def test_given_splits_are_kept(frame, load):
    words = ["train", "train", "search", "confirm", "test"]
    task = load(given(frame, words), split_column="part")
    task.open_test()
    for split in SPLITS:
        for patient in task.rows(split).patient:
            assert words[int(patient[1:]) % 5] == split


def test_a_given_validation_split_is_halved_by_patient(frame, load):
    task = load(given(frame, ["Train", "train", "valid", "test"]), split_column="part")
    assert {len(set(task.rows(s).patient)) for s in ("search", "confirm")} == {15}
    for split in ("search", "confirm"):
        assert all(int(p[1:]) % 4 == 2 for p in task.rows(split).patient)
    assert any("halved" in n for n in task.notes)


def test_what_is_missing_is_cut_from_train(frame, load):
    task = load(given(frame, ["train", "train", "test"]), split_column="part")
    assert len(task.open_test()) == 80
    # 60 : 15 : 10 of the 80 patients that are not test
    assert [len(set(task.rows(s).patient)) for s in SPLITS[:3]] == [57, 14, 9]
    assert any("search, confirm cut by patient" in n for n in task.notes)


def test_labels_with_commas_and_a_byte_order_mark(tmp_path, frame):
    csv = synthetic.write(tmp_path, frame)
    csv.write_bytes(b"\xef\xbb\xbf" + csv.read_bytes())
    assert load_table(synthetic.settings(csv), tmp_path).patients == 120
    tsv = tmp_path / "labels.tsv"
    frame.to_csv(tsv, sep="\t", index=False)
    assert load_table(synthetic.settings(tsv), tmp_path).patients == 120


# ---- bad input: one line each, nothing written ----------------------------------------------


def test_no_such_csv(tmp_path):
    (tmp_path / "labels.csv").touch()
    with pytest.raises(UserError, match='no such CSV.*Did you mean "labels.csv"'):
        load_table(synthetic.settings(tmp_path / "label.csv"), tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        load_table(synthetic.settings(tmp_path), tmp_path)


def test_an_empty_csv(tmp_path, frame, refused):
    (tmp_path / "labels.csv").touch()
    with pytest.raises(UserError, match="is empty"):
        load_table(synthetic.settings(tmp_path / "labels.csv"), tmp_path)
    refused(frame.head(0), "holds no rows")


def test_bytes_that_are_no_csv(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    with pytest.raises(UserError, match=r"labels\.csv"):
        load_table(synthetic.settings(tmp_path / "labels.csv"), tmp_path)


def test_missing_columns(frame, refused):
    refused(frame, "no column 'lesions'", 'Did you mean "lesion"', label=("lesions",))
    refused(frame, "no column 'sexx'", 'Did you mean "sex"', group=("sexx",))
    refused(frame, "no column 'patient_ids'", patient_column="patient_ids")
    refused(frame, "no column 'fold'", split_column="fold")
    refused(frame, "no label column was named", "--label", label=())


def test_missing_images(frame, refused, tmp_path):
    refused(frame, "240 of 240 images are missing", "images/0000_0.png", images=False)


def test_a_data_root_that_is_none(frame, refused):
    refused(frame, "no such folder", data_root="/nowhere/at/all")


def test_a_path_that_leaves_the_root(frame, refused):
    refused(frame.assign(path="../" + frame["path"]), "leave the image folder", images=False)


def test_a_path_twice(frame, refused):
    refused(pd.concat([frame, frame.head(2)]), "2 path(s) occur more than once", "0000_0.png")


def test_a_patient_in_two_given_splits(frame, refused):
    parts = given(frame, ["train", "train", "val", "test"])
    parts.loc[1, "part"] = "test"
    refused(parts, "1 patient(s) are in two of the given splits", split_column="part")


def test_split_words_that_nobody_knows(frame, refused):
    words = given(frame, ["train", "holdout"])
    refused(words, "'holdout' x 120", "search (or val)", split_column="part")


def test_labels_that_are_not_labels(frame, refused):
    one = frame.assign(lesion=1)
    refused(one, "label 'lesion' has one class: 240 positive, 0 negative")
    codes = frame.assign(lesion=frame["lesion"] - 1)
    refused(codes, "other than 0 and 1", "'-1' x")
    uncertain = frame.assign(lesion=[-1, 0, 1, 1] * 60)
    refused(uncertain, "other than 0 and 1", "'-1' x 60", "blank for unknown")
    shares = frame.assign(lesion=frame["age"] / 7)
    refused(shares, "other than 0 and 1")
    mixed = frame.assign(lesion=["0", "1", "maybe", "1"] * 60)
    refused(mixed, "'maybe' x 60")
    several = frame.assign(edema=["0", "2"] * 120)
    refused(several, "label column 'edema'", "'2' x 120", label=("lesion", "edema"))
    many = frame.assign(lesion=[f"finding {i}" for i in range(240)])
    refused(many, "240 different values", "At most 50")
    refused(frame, "named twice", label=("lesion", "lesion"))


def test_a_typing_error_does_not_make_a_third_class(frame, refused, load):
    typo = frame.copy()
    typo.loc[7, "lesion"] = 2
    zeros, ones = (int((typo["lesion"] == v).sum()) for v in (0, 1))
    counts = f"'0' x {zeros}, '1' x {ones}, '2' x 1"
    refused(typo, "1 other number(s), first at images/0003_1.png", counts)
    grades = frame.assign(lesion=np.arange(240) // 2 % 3)
    assert load(grades).classes == ("0", "1", "2")


def test_a_class_of_a_few_patients(frame, refused):
    words = frame.assign(lesion=np.where(frame["lesion"] == 1, "viral", "none"))
    words.loc[:17, "lesion"] = "virl"  # 18 images of 9 patients
    refused(words, "1 of 3 classes have fewer than 10 patients: 'virl' has 9", "drop their rows")


def test_the_label_as_a_group(frame, refused):
    refused(frame, "the label cannot be a group", "--group Lesion", group=("sex", "Lesion"))
    refused(frame, "the label cannot be a group", group=("lesion:1",))


def test_semicolons(tmp_path, frame):
    csv = synthetic.write(tmp_path, frame)
    csv.write_text(csv.read_text().replace(",", ";").replace("0;M", "0,5;M"))
    with pytest.raises(UserError, match=r"separated by semicolons.*Save it with commas"):
        load_table(synthetic.settings(csv), tmp_path)


def test_tabs_other_alphabets_and_a_column_twice(tmp_path, frame):
    csv = synthetic.write(tmp_path, frame)
    text = csv.read_text()
    header = text.partition("\n")[0]
    for changed, words in (
        (text.replace(",", "\t"), "separated by tabs.*Save it with commas"),
        (text.replace(header, f"{header},{header.split(',')[-1]}", 1), "several columns named"),
        (text.replace("M", "M\u00e4nner", 1), "is not UTF-8 text.*UTF-8"),
    ):
        csv.write_bytes(changed.encode("latin-1"))
        with pytest.raises(UserError, match=words):
            load_table(synthetic.settings(csv), tmp_path)


def test_the_image_column_is_no_patient(frame, refused):
    refused(frame, "'path' holds the images, not patients", patient_column="path")


def test_group_columns_that_are_no_groups(frame, refused):
    ages = frame.assign(age=frame["age"].astype(str).where(frame["age"] != 60, "sixty"))
    ages.loc[3, "age"] = "n. d."
    refused(ages, "no number", "age", group=("age:60",))
    refused(frame.assign(sex="F"), "only sex=F", group=("sex",))
    refused(frame.assign(sex=1), "Names, not codes", group=("sex",))


def test_a_blank_patient(frame, refused):
    frame.loc[[4, 9], "patient_id"] = ""
    refused(frame, "blank in 2 row(s)")


def test_too_few_patients_for_four_splits(refused):
    refused(synthetic.people(4), "split cannot be scored", "More patients")


def test_unknown_options(frame, refused):
    refused(frame, "no option 'paths'", data_option={"paths": "x"})
