import numpy as np
import pytest

from autopeft.data import load_task
from autopeft.data.nih import FINDINGS, load_nih
from autopeft.errors import UserError
from autopeft.settings import Settings

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ALL = "|".join(FINDINGS)


def rows(n=160, images=1):
    """Patients alternate in sex; half are ill; every second pair is old."""
    table = []
    for p in range(1, n + 1):
        cell, sex = (ALL if p % 4 < 2 else "No Finding"), "MF"[p % 2]
        age = 70 if p // 4 % 2 else 40
        for i in range(images):
            name = f"{p:08d}_{i:03d}.png"
            table.append([name, cell, str(i), str(p), str(age), sex, "PA", "2682", "2749"])
    return table


def write(folder, table, name="Data_Entry_2017_v2020.csv", images="images", header=HEADER):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join([*r, "0.143", "0.143"]) for r in table]
    (folder / name).write_text("\n".join([header, *lines]) + "\n")
    (folder / images).mkdir(parents=True, exist_ok=True)
    for r in table:
        (folder / images / r[0]).touch()
    return folder


def load(root, **changes):
    settings = {"dataset": "nih", "data_root": str(root), "label": ("Edema",), **changes}
    return load_nih(Settings(**settings), root)


def everyone(task):
    task.open_test()
    found = {}
    for split in ("train", "search", "confirm", "test"):
        part = task.rows(split)
        for i, path in enumerate(part.path.tolist()):
            groups = {k: str(v[i]) for k, v in part.groups.items()}
            found[path.split("/")[-1]] = (split, part.label[i], groups)
    return found


def lists(folder, table, test_from=121):
    """The official lists, by patient."""
    for name, inside in (("train_val_list.txt", False), ("test_list.txt", True)):
        names = [r[0] for r in table if (int(r[3]) >= test_from) == inside]
        (folder / name).write_text("\n".join(names) + "\n")


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "nih", rows())


def test_the_command_line_name_reaches_it(folder):
    task = load_task(Settings(dataset="nih", data_root=str(folder)), folder)
    assert task.name == "nih"
    assert task.kind == "multilabel"
    assert task.classes == FINDINGS
    assert task.attributes == ("sex", "age:60")
    assert load(folder.parent).digest == load(folder).digest


def test_labels_are_whole_words(tmp_path):
    table = rows()
    table[0][1] = "Edema|Pleural_Thickening"
    table[1][1] = "Emphysema"  # holds no Edema, whatever the letters
    task = load(write(tmp_path, table), label=("Edema", "pleural thickening", "No Finding"))
    found = everyone(task)
    assert task.classes == ("Edema", "Pleural_Thickening", "No Finding")
    assert found["00000001_000.png"][1].tolist() == [1, 1, 0]
    assert found["00000002_000.png"][1].tolist() == [0, 0, 0]
    assert found["00000003_000.png"][1].tolist() == [0, 0, 1]


def test_no_finding(folder):
    task = load(folder, label=("no_finding",))
    assert task.kind == "binary"
    assert task.classes == ("No Finding",)


def test_a_patients_images_stay_together(tmp_path):
    task = load(write(tmp_path, rows(100, images=3)))
    table = task.split_table()
    assert task.patients == 100
    assert table.groupby("patient_id")["split"].nunique().max() == 1


def test_images_of_the_copy_with_twelve_folders(tmp_path):
    table = rows()
    write(tmp_path, table[:80], images="images_001/images")
    write(tmp_path, table, images="images_002/images")
    for r in table[:80]:
        (tmp_path / "images_002/images" / r[0]).unlink()
    task = load(tmp_path)
    assert len(task.paths) == 160
    assert {p.split("/")[0] for p in task.paths} == {"images_001", "images_002"}


def test_the_older_tables_name_and_odd_ages(tmp_path):
    table = rows()
    table[0][4], table[1][4], table[2][4] = "0", "412", "60"
    task = load(write(tmp_path, table, name="Data_Entry_2017.csv"))
    found = everyone(task)
    ages = [found[f"{p:08d}_000.png"][2]["age:60"] for p in (1, 2, 3)]
    assert ages == ["unknown", "unknown", "age>=60"]
    assert "2 ages of 0 or above 120 taken as missing; 0 may be an infant" in task.notes


def test_views(tmp_path):
    table = rows()
    for r in table[:10]:
        r[6] = "AP"
    folder = write(tmp_path, table)
    assert len(load(folder).paths) == 160
    assert len(load(folder, data_option={"view": "pa"}).paths) == 150


def test_the_official_test_list_is_the_test(folder):
    lists(folder, rows())
    task = load(folder)
    found = everyone(task)
    assert all((split == "test") == (int(n[:8]) >= 121) for n, (split, _, _) in found.items())
    assert {split for split, _, _ in found.values()} == {"train", "search", "confirm", "test"}
    assert any("the official test list (40 images)" in n for n in task.notes)
    own = load(folder, data_option={"split": "own"})
    assert own.digest != task.digest
    assert any("our own, by patient" in n for n in own.notes)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f, t: (f / "test_list.txt").unlink(), "test_list.txt not found"),
        (lambda f, t: lists(f, t[:-3]), "3 images of the table are in no list"),
        (
            lambda f, t: (f / "train_val_list.txt").write_text("\n".join(r[0] for r in t)),
            "40 images are in both lists",
        ),
    ],
)
def test_lists_that_cannot_be_used(folder, spoil, reason):
    lists(folder, rows())
    spoil(folder, rows())
    assert any(reason in note for note in load(folder).notes)
    with pytest.raises(UserError, match=reason):
        load(folder, data_option={"split": "official"})


def test_lists_that_share_a_patient(tmp_path):
    table = rows(160, images=2)
    folder = write(tmp_path, table)
    lists(folder, table)
    text = (folder / "train_val_list.txt").read_text()
    (folder / "train_val_list.txt").write_text(text.replace("00000001_001.png\n", ""))
    with (folder / "test_list.txt").open("a") as file:
        file.write("00000001_001.png\n")
    assert any("1 patients are in both lists" in note for note in load(folder).notes)


def test_missing_images_are_counted_and_five_named(folder):
    for p in range(1, 8):
        (folder / "images" / f"{p:08d}_000.png").unlink()
    with pytest.raises(UserError, match="7 of 160 images are in no folder") as error:
        load(folder)
    assert str(error.value).count(".png") == 5


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, "Edema|Infiltrate", r"unknown value\(s\) such as 'Infiltrate'; .*'No Finding' x"),
        (3, "", "'Patient ID' is blank in 1 row"),
        (4, "058Y", "'Patient Age' holds 1 value"),
        (5, "2", "a column of sex holds '2' x 1"),
        (6, "LL", r"View Position\): 1 unknown value"),
    ],
)
def test_a_strange_cell_stops_with_its_counts(tmp_path, column, value, message):
    table = rows()
    table[7][column] = value
    with pytest.raises(UserError, match=message) as error:
        load(write(tmp_path, table))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ("Oedema",)}, 'Did you mean "Edema"'),
        ({"group": ("race",)}, "no column 'race'"),
        ({"data_option": {"split": "oficial"}}, 'Did you mean "official"'),
        ({"data_root": None}, "needs the folder"),
        ({"split_column": "x"}, "brings its own patients"),
    ],
)
def test_bad_flags(folder, changes, message):
    with pytest.raises(UserError, match=message):
        load(folder, **changes)


def test_a_strange_header_and_no_table(folder, tmp_path):
    write(folder, rows(), header=HEADER.replace("Patient ID", "PatientID"))
    with pytest.raises(UserError, match="lacks 'Patient ID'; its header is Image Index"):
        load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no Data_Entry_2017_v2020.csv"):
        load(tmp_path / "empty")


def test_the_comma_inside_the_header_does_not_shift_columns(folder):
    found = everyone(load(folder))
    assert found["00000001_000.png"][2] == {"sex": "sex=F", "age:60": "age<60"}
    assert np.array_equal(found["00000003_000.png"][1], [0])
