import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from chexpert_tree import HEADER, many, row, write, write_sheet

from autopeft.data import load_task
from autopeft.data.chexpert import load_chexpert
from autopeft.errors import UserError
from autopeft.settings import Settings

SPLITS = ("train", "search", "confirm", "test")


def load(root, cache=Path("unused"), **changes):
    return load_chexpert(
        Settings(**{"dataset": "chexpert", "data_root": str(root), **changes}), cache
    )


def everyone(task):
    """All rows: path -> (split, label row, groups)."""
    task.open_test()
    found = {}
    for split in (*SPLITS, "uncertain", *task.external):
        rows = task.rows(split)
        for i, path in enumerate(rows.path.tolist()):
            groups = {k: str(v[i]) for k, v in rows.groups.items()}
            found[path] = (split, rows.label[i], groups)
    return found


def of_patient(found, number):
    return next(v for k, v in found.items() if f"patient{number:05d}" in k)


@pytest.fixture
def tree(tmp_path):
    return write(tmp_path / "CheXpert-v1.0-small", many())


def test_the_command_line_name_reaches_it(tree):
    task = load_task(Settings(dataset="chexpert", data_root=str(tree)), tree)
    assert task.name == "chexpert"
    assert task.kind == "multilabel"
    assert task.unit == "patient"
    assert task.classes == (
        "Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion",
    )  # fmt: skip
    assert task.attributes == ("sex", "age:60")
    assert task.external == ()


def test_root_or_its_parent(tree):
    assert load(tree).digest == load(tree.parent).digest


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "", "/elsewhere/train/CheXpert-v1.0/"])
def test_the_prefix_of_the_paths_does_not_matter(tree, prefix):
    digest = load(tree).digest
    text = (tree / "train.csv").read_text()
    (tree / "train.csv").write_text(text.replace("CheXpert-v1.0-small/", prefix))
    assert load(tree).digest == digest


def test_splits_are_by_patient(tmp_path):
    rows = [row(p, study=s) for p in range(1, 101) for s in (1, 2, 3)]
    task = load(write(tmp_path, rows))
    found = everyone(task)
    assert len(found) == 300
    splits = {}
    for path, (split, _, _) in found.items():
        splits.setdefault(path.split("/")[1], set()).add(split)
    assert all(len(s) == 1 for s in splits.values())
    assert {s for (s,) in map(tuple, splits.values())} == set(SPLITS)


def test_unknown_sex_and_age_zero_are_missing_not_dropped(tmp_path):
    rows = many()
    rows[4] |= {"Sex": "Unknown"}
    rows[5] |= {"Age": "0"}
    task = load(write(tmp_path, rows))
    found = everyone(task)
    assert of_patient(found, 5)[2]["sex"] == "unknown"
    assert of_patient(found, 6)[2]["age:60"] == "unknown"
    assert len(found) == 160
    assert any("1 images of 1 patients have no known sex" in n for n in task.notes)


def test_sixty_is_old(tmp_path):
    rows = many()
    rows[0] |= {"Age": "60"}
    rows[1] |= {"Age": "59"}
    found = everyone(load(write(tmp_path, rows)))
    assert of_patient(found, 1)[2]["age:60"] == "age>=60"
    assert of_patient(found, 2)[2]["age:60"] == "age<60"


def test_views(tmp_path):
    rows = many() + [row(1, 2, view="lateral"), row(2, 2, ap="PA"), row(3, 2, ap="LL")]
    folder = write(tmp_path, rows)
    sizes = {}
    for view in ("frontal", "all", "ap"):
        sizes[view] = len(load(folder, data_option={"view": view}).paths)
    assert sizes == {"frontal": 162, "all": 163, "ap": 160}
    notes = load(folder).notes
    assert "1 images of other views left out (--data-option view=frontal)" in notes


@pytest.mark.parametrize(
    ("policy", "edema", "cardiomegaly", "effusion"),
    [
        ("mixed", 1, 0, 0), ("medpeft", 1, 0, 1), ("ones", 1, 1, 1), ("zeros", 0, 0, 0),
        ("ignore", None, None, None),
    ],
)  # fmt: skip
def test_the_policy_touches_train_only(tmp_path, policy, edema, cardiomegaly, effusion):
    unsure = {"Edema": "-1.0", "Cardiomegaly": "-1.0", "Pleural_Effusion": "-1.0"}
    rows = many() + [row(p, 2, **unsure) for p in range(1, 161)]
    folder = write(tmp_path, rows)
    task = load(folder, data_option={"uncertain": policy})
    expected = {"Edema": edema, "Cardiomegaly": cardiomegaly, "Pleural Effusion": effusion}
    for path, (split, label, _) in everyone(task).items():
        if "study2" not in path:
            continue
        for name, value in expected.items():
            got = label[task.classes.index(name)]
            if split == "train" and value is not None:
                assert got == value
            else:
                assert np.isnan(got)
    assert any(f"uncertain labels in train ({policy})" in n for n in task.notes)


def test_mixed_ignores_the_other_labels(tmp_path):
    rows = many() + [row(p, 2, Fracture="-1.0") for p in range(1, 161)]
    task = load(write(tmp_path, rows), label=("Fracture",))
    found = everyone(task)
    waiting = [split for path, (split, _, _) in found.items() if "study2" in path]
    assert set(waiting) == {"uncertain"}
    left = 160 - len(waiting)
    assert f"{left} images without a known label were left out" in task.notes


def test_uncertain_images_of_test_patients_wait_for_the_readings(tmp_path):
    """Sealed like test, of test patients only, and nobody else moves for them."""
    alone = [row(p, Fracture="-1.0") for p in range(1001, 1101)]  # never a certain label
    rows = many() + [row(p, 2, Fracture="-1.0") for p in range(1, 161)] + alone
    task = load(write(tmp_path / "a", rows), label=("Fracture",))
    with pytest.raises(RuntimeError, match="sealed"):
        task.rows("uncertain")
    with pytest.raises(RuntimeError, match="sealed"):
        task.unsure("uncertain")
    found = everyone(task)
    certain = everyone(load(write(tmp_path / "b", many()), label=("Fracture",)))
    assert {k: v[0] for k, v in found.items() if v[0] != "uncertain"} == {
        k: v[0] for k, v in certain.items()
    }
    test = {k.split("/")[1] for k, v in found.items() if v[0] == "test"}
    waiting = task.rows("uncertain")
    mine = [p for p in waiting.patient if p < "patient01000"]
    assert set(mine) == test
    assert 8 <= len(waiting) - len(mine) <= 22  # 15% of the patients who are never certain
    assert np.isnan(waiting.label).all()
    assert task.unsure("uncertain").all()
    assert not task.unsure("test").any()
    assert task.patients == 160
    assert f"{len(waiting)} images of test patients have uncertain labels only" in "".join(
        task.notes
    )


def test_an_uncertain_label_beside_a_certain_one_is_marked(tmp_path):
    rows = many()
    for r in rows:
        r["Edema"] = "-1.0" if r["Age"] == "70" else r["Edema"]
    task = load(write(tmp_path, rows), label=("Edema", "Fracture"))
    task.open_test()
    test, unsure = task.rows("test"), task.unsure("test")
    assert np.array_equal(unsure[:, 0], test.groups["age:60"] == "age>=60")
    assert np.isnan(test.label[unsure]).all()
    assert not unsure[:, 1].any()


def test_blank_is_zero_or_ignored(tmp_path):
    blank = {"Edema": "", "Support_Devices": ""}
    rows = many()
    rows += [row(3, 2, **blank), row(3, 3, No_Finding="1.0", **blank)]
    folder = write(tmp_path, rows)
    labels = {"label": ("edema", "Support_Devices", "Cardiomegaly")}
    zero = everyone(load(folder, **labels))
    ignore = everyone(load(folder, **labels, data_option={"blank": "ignore"}))
    of = lambda found, study: next(  # noqa: E731
        v[1].tolist() for k, v in found.items() if f"patient00003/study{study}" in k
    )
    assert of(zero, 2) == [0, 0, 0]
    assert np.array_equal(of(ignore, 2), [np.nan, np.nan, 0], equal_nan=True)
    assert np.array_equal(of(ignore, 3), [0, np.nan, 0], equal_nan=True)


@pytest.mark.parametrize("blank", ["zero", "ignore"])
def test_no_finding_counts_blank_as_its_negative(tree, blank):
    task = load(tree, label=("no_finding",), data_option={"blank": blank})
    assert task.kind == "binary"
    assert task.classes == ("No Finding",)
    found = everyone(task)
    assert Counter(float(v[1][0]) for v in found.values()) == {1.0: 80, 0.0: 80}
    assert any("positive class is the healthy" in n for n in task.notes)


def test_rates_of_uncertain_and_blank_by_group(tmp_path):
    rows = many()
    for r in rows:
        if r["Sex"] == "Female":
            r["Edema"] = "-1.0" if r["Age"] == "70" else ""
    notes = load(write(tmp_path, rows), label=("Edema",)).notes
    assert "uncertain / blank before the policy, sex=F: Edema 50.0% / 50.0%" in notes
    assert "uncertain / blank before the policy, sex=M: Edema 0.0% / 0.0%" in notes


# ---- race ---------------------------------------------------------------------------------------


def test_race_comes_from_the_spreadsheet(tree):
    write_sheet(tree / "CHEXPERT_DEMO.xlsx", range(1, 157))
    task = load(tree)
    assert task.attributes == ("sex", "age:60", "race")
    found = everyone(task)
    words = [of_patient(found, n)[2]["race"] for n in range(1, 13)]
    assert words == [
        "race=White", "race=Black", "race=Asian", "race=Other", "race=White", "race=Black",
        "race=Asian", "race=Other", "unknown", "unknown", "unknown", "unknown",
    ]  # fmt: skip
    assert of_patient(found, 160)[2]["race"] == "unknown"  # not in the sheet
    assert of_patient(found, 1)[2]["sex"] == "sex=F"
    assert of_patient(found, 2)[2]["sex"] == "sex=M"  # the table's own sex, not the sheet's
    assert any("race=Other, images by the words of CHEXPERT_DEMO.xlsx" in n for n in task.notes)


def test_the_spreadsheet_may_lie_elsewhere(tree, tmp_path):
    sheet = write_sheet(tmp_path / "people.xlsx", range(1, 161))
    assert load(tree).attributes == ("sex", "age:60")
    option = {"demographics": str(sheet)}
    assert load(tree, data_option=option).attributes == ("sex", "age:60", "race")
    with pytest.raises(UserError, match="no such file"):
        load(tree, data_option={"demographics": str(tmp_path / "none.xlsx")})


def test_the_spreadsheet_is_read_only_for_race(tree):
    (tree / "CHEXPERT DEMO.xlsx").write_text("not a spreadsheet")
    assert load(tree, group=("sex",)).attributes == ("sex",)
    with pytest.raises(UserError, match="cannot be read as a spreadsheet"):
        load(tree, group=("race",))


def test_race_without_the_spreadsheet(tree):
    with pytest.raises(UserError, match="--group race: race is in the demographics spreadsheet"):
        load(tree, group=("sex", "race"))


def test_a_spreadsheet_of_other_patients(tree):
    write_sheet(tree / "CHEXPERT DEMO.xlsx", range(1000, 1100))
    with pytest.raises(UserError, match="no patient of this table"):
        load(tree)


# ---- external checks ----------------------------------------------------------------------------


def test_the_official_sets_are_sealed_checks_and_never_splits(tree):
    before = load(tree)
    write(tree, many(20, 5001, part="valid"), "valid.csv")
    unlabeled = HEADER.split(",")[0] + "," + ",".join(sorted(HEADER.split(",")[5:]))
    write(tree, many(20, 6001, part="test"), "test_labels.csv", header=unlabeled)
    task = load(tree)
    assert task.external == ("official_valid", "official_test")
    for name in task.external:
        with pytest.raises(RuntimeError, match="sealed"):
            task.rows(name)
    with_checks, without = everyone(task), everyone(before)
    for path, (split, label, groups) in without.items():  # they do not move anybody
        again = with_checks[path]
        assert again[0] == split
        assert np.array_equal(again[1], label, equal_nan=True)
        assert again[2] == groups
    assert len(task.rows("official_valid")) == 20
    test = task.rows("official_test")
    assert len(test) == 20
    assert set(test.groups["sex"]) == {"unknown"}  # its table has no sex
    assert any("external check official_valid: 20 images of 20 patients" in n for n in task.notes)


def test_uncertain_is_ignored_in_an_official_set(tree):
    rows = many(20, 5001, part="valid")
    rows[0] |= {"Edema": "-1.0"}
    found = everyone(load(write(tree, rows, "valid.csv"), data_option={"uncertain": "ones"}))
    assert np.isnan(of_patient(found, 5001)[1][1])


def test_a_patient_in_train_and_the_official_set(tree):
    write(tree, many(20, 150, part="valid"), "valid.csv")
    with pytest.raises(UserError, match=r"11 patient\(s\) are in two of the given splits"):
        load(tree)


def test_an_official_table_without_its_images_is_named(tree):
    write(tree, many(20, 5001, part="valid"), "valid.csv", images=False)
    task = load(tree)
    assert task.external == ()
    assert "no external check official_valid: its table is there without images" in task.notes


# ---- bad input ----------------------------------------------------------------------------------


def test_missing_images_are_counted_and_five_named(tree):
    for n in range(1, 8):
        (tree / f"train/patient{n:05d}/study1/view1_frontal.jpg").unlink()
    with pytest.raises(UserError, match="7 of 160 images are missing") as error:
        load(tree)
    assert str(error.value).count(".jpg") == 5


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Edema", "2", r"column Edema\): 1 unknown value\(s\) such as '2'; .*'1.0' x "),
        ("Edema", "yes", r"unknown value\(s\) such as 'yes'"),
        ("Sex", "1", r"column Sex\): a column of sex holds '1' x 1"),
        ("Age", "old", "column 'Age' holds 1 value"),
        ("AP/PA", "UP", r"column AP/PA\): 1 unknown .*'AP' x 159, 'UP' x 1"),
        ("Frontal/Lateral", "Side", r"column Frontal/Lateral\): 1 unknown"),
        ("Path", "images/1.jpg", "1 path.* not like train/patient00001"),
        ("Path", "", "1 path.* not like train/patient00001"),
    ],
)
def test_a_strange_cell_stops_with_its_counts(tmp_path, column, value, message):
    rows = many()
    rows[3] |= {column: value}
    with pytest.raises(UserError, match=message) as error:
        load(write(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_a_strange_header_is_shown(tmp_path):
    folder = write(tmp_path, many(), header=HEADER.replace("Edema", "Oedema"))
    with pytest.raises(UserError, match="lacks 'Edema'; its header is Path, Sex, Age"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ("Edemma",)}, 'Did you mean "Edema"'),
        ({"label": ("Edema", "edema")}, "named twice"),
        ({"data_option": {"uncertain": "one"}}, 'Did you mean "ones"'),
        ({"data_option": {"views": "pa"}}, 'Did you mean "view"'),
        ({"data_root": None}, "needs the folder"),
        ({"data_root": "/no/such"}, "no such folder"),
        ({"patient_column": "Path"}, "brings its own patients"),
        ({"split_column": "Path"}, "brings its own patients"),
        ({"group": ("insurance",)}, "no column 'insurance'"),
    ],
)
def test_bad_flags(tree, changes, message):
    with pytest.raises(UserError, match=message):
        load(tree, **changes)


def test_no_table_or_two(tmp_path):
    with pytest.raises(UserError, match=r"holds no train\.csv"):
        load(tmp_path)
    write(tmp_path / "a", many(4))
    write(tmp_path / "b", many(4))
    with pytest.raises(UserError, match="2 folders below it"):
        load(tmp_path)
    write(tmp_path / "c", [])
    with pytest.raises(UserError, match="holds no rows"):
        load(tmp_path / "c")


# ---- size ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_of_full_size_loads_and_splits_in_seconds(tmp_path):
    """223,414 rows of 64,540 patients; 16 images a folder, hard links to a few files."""
    rng = np.random.default_rng(0)
    patient = np.sort(rng.integers(1, 64541, 223414))
    cells = rng.choice(["1.0", "0.0", "-1.0", ""], (len(patient), 14), p=[0.2, 0.1, 0.1, 0.6])
    cells[:, 0] = np.where(cells[:, 0] == "1.0", "1.0", "")
    names = [f"train/patient{p:05d}/study1/view{i}_frontal.jpg" for i, p in enumerate(patient)]
    lines = [
        f"CheXpert-v1.0-small/{name},{'Male' if p % 2 else 'Female'},{20 + p % 70},Frontal,AP,"
        + ",".join(row)
        for name, p, row in zip(names, patient, cells, strict=True)
    ]
    (tmp_path / "train.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    made = set()
    for i, name in enumerate(names):
        file = tmp_path / name
        if file.parent not in made:
            file.parent.mkdir(parents=True)
            made.add(file.parent)
        if i % 20000 == 0:  # a file system allows some 65,000 links to one file
            first = file
            first.touch()
        else:
            file.hardlink_to(first)
    started = time.process_time()
    task = load(tmp_path)
    seconds = time.process_time() - started
    assert task.patients > 60000
    assert seconds < 10  # CPU time; 3.5 s measured, and machines differ
