from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from autopeft.data.film import draw
from autopeft.data.phantom import Phantom, _random, describe, load_phantom, write_phantom
from autopeft.errors import UserError
from autopeft.settings import Settings

SMALL = Phantom(patients=40, images_per_patient=2, size=48)


def film(phantom, patient, view=0):
    return draw(describe(phantom, patient, view)[0], phantom.size)


def table(phantom):
    records = [
        describe(phantom, p, v)[1]
        for p in range(phantom.patients)
        for v in range(phantom.images_per_patient)
    ]
    return pd.DataFrame(records)


def test_the_same_bytes_every_time_and_however_many_are_made(tmp_path):
    folder = write_phantom(SMALL, tmp_path / "a")
    again = write_phantom(replace(SMALL, patients=11), tmp_path / "b")
    for name in sorted(p.name for p in (again / "images").iterdir()):
        assert (folder / "images" / name).read_bytes() == (again / "images" / name).read_bytes()
    one, two = (pd.read_csv(f / "labels.csv") for f in (folder, again))
    pd.testing.assert_frame_equal(one.head(22), two)
    with Image.open(folder / one["path"][0]) as image:
        assert (image.mode, image.size) == ("L", (48, 48))


def test_images_are_written_once(tmp_path):
    folder = write_phantom(SMALL, tmp_path)
    (folder / "images" / "000000_00.png").write_bytes(b"mine")
    assert write_phantom(SMALL, tmp_path) == folder
    assert (folder / "images" / "000000_00.png").read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    assert write_phantom(replace(SMALL, seed=1), tmp_path) != folder


def test_a_killed_writer_leaves_no_half_set(tmp_path, monkeypatch):
    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("autopeft.data.phantom.draw", dies)
        with pytest.raises(KeyboardInterrupt):
            write_phantom(SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (write_phantom(SMALL, tmp_path) / "labels.csv").exists()


def test_seed_and_view_change_the_film():
    assert not np.array_equal(film(SMALL, 0), film(replace(SMALL, seed=1), 0))
    assert not np.array_equal(film(SMALL, 0, 0), film(SMALL, 0, 1))


def test_views_of_a_patient_are_more_alike_than_patients():
    films = np.array([[film(SMALL, p, v) for v in (0, 1)] for p in range(12)], float)
    films = films.reshape(12, 2, -1)
    own = [np.corrcoef(a, b)[0, 1] for a, b in films]
    other = [np.corrcoef(films[p, 0], films[p - 1, 1])[0, 1] for p in range(12)]
    assert np.mean(own) > np.mean(other) + 0.03


def test_it_becomes_a_task_like_any_table(tmp_path):
    options = {"patients": "80", "size": "32"}
    task = load_phantom(Settings(data_option=options), tmp_path)
    assert (task.name, task.kind, task.classes) == ("phantom", "binary", ("lesion",))
    assert task.attributes == ("sex", "age:60", "scanner")
    assert (task.patients, len(task.paths)) == (80, 160)
    several = Settings(data_option=options, label=("nodule", "effusion"), group=("sex",))
    task = load_phantom(several, tmp_path)
    assert (task.kind, task.attributes) == ("multilabel", ("sex",))
    assert "synthetic" in task.notes[0]


def test_prevalence_and_attributes_are_as_asked():
    people = table(replace(SMALL, patients=600, images_per_patient=1, prevalence=0.3))
    assert abs(people["lesion"].mean() - 0.3) < 0.06
    assert (people["lesion"] == people["true_lesion"]).all()
    assert ((people["nodule"] | people["opacity"]) == people["true_lesion"]).all()
    assert abs((people["sex"] == "F").mean() - 0.5) < 0.06
    assert people["age"].between(20, 90).all()
    assert set(people["scanner"]) == {"A", "B", "C"}
    # Who has a lesion does not depend on sex, age or scanner: demographics alone score .5.
    for column in ("sex", "scanner"):
        assert people.groupby(column)["lesion"].mean().agg(np.ptp) < 0.12


def test_the_lesion_is_in_the_pixels_and_scales_with_contrast():
    def change(contrast):
        phantom = replace(SMALL, contrast=contrast, prevalence=1.0)
        shown = describe(phantom, 3, 0)[0]
        hidden = replace(describe(phantom, 3, 0)[0], nodule=False, opacity=False)
        difference = draw(shown, 96).astype(float) - draw(hidden, 96)
        return np.abs(difference).sum()

    assert change(0.0) == 0
    assert 0 < change(0.5) < change(1.0) < change(2.0)


def test_an_effusion_is_in_the_pixels():
    both = [replace(describe(SMALL, 3, 0)[0], effusion=e) for e in (True, False)]
    bottom, top = (slice(60, 96), slice(0, 40))
    difference = np.abs(draw(both[0], 96).astype(float) - draw(both[1], 96))
    assert difference[bottom].mean() > 1 > difference[top].mean()


def test_sex_and_scanner_change_the_film():
    def mean(**changes):
        return np.mean(
            [draw(replace(describe(SMALL, p, 0)[0], **changes), 48) for p in range(6)], axis=0
        )

    assert np.abs(mean(female=True) - mean(female=False)).mean() > 3
    assert np.abs(mean(age=85) - mean(age=25)).mean() > 1
    assert np.abs(mean(scanner="A") - mean(scanner="C")).mean() > 5


def association(people):
    """Share of films whose mark agrees with the label."""
    return (people["mark"] == people["lesion"]).mean()


def test_the_shortcut_is_planted_in_one_group_only():
    phantom = replace(SMALL, patients=400, images_per_patient=1)
    plain, planted = table(phantom), table(replace(phantom, shortcut=0.9, shortcut_in="sex=M"))
    assert abs(association(plain) - 0.5) < 0.08
    men = planted["sex"] == "M"
    assert association(planted[men]) > 0.9
    assert abs(association(planted[~men]) - 0.5) < 0.1
    # Only the mark differs, and it is in the upper corner of the film.
    same = ["patient_id", "lesion", "sex", "age", "scanner", "true_lesion"]
    pd.testing.assert_frame_equal(plain[same], planted[same])
    marked, bare = (
        draw(replace(describe(phantom, 0, 0)[0], mark=m), 96).astype(int) for m in (True, False)
    )
    rows, columns = np.nonzero(marked != bare)
    assert 20 < len(rows) < 300
    assert rows.max() < 20
    assert columns.min() > 75


def test_weaker_lesions_in_one_group_only():
    people = table(replace(SMALL, weak_group=0.4, weak_in="age>=60", contrast=2.0))
    old = people["age"] >= 60
    assert old.any()
    assert np.allclose(people["contrast"], np.where(old, 0.8, 2.0))


def test_wrong_labels_in_one_group_only_and_not_in_the_film():
    phantom = replace(SMALL, patients=500, images_per_patient=1)
    noisy = table(replace(phantom, label_noise=0.4, label_noise_in="scanner=B"))
    wrong = noisy["lesion"] != noisy["true_lesion"]
    here = noisy["scanner"] == "B"
    assert not wrong[~here].any()
    assert abs(wrong[here].mean() - 0.4) < 0.15
    turned = int(np.flatnonzero(wrong)[0])
    noise = replace(phantom, label_noise=0.4, label_noise_in="scanner=B")
    assert np.array_equal(film(noise, turned), film(phantom, turned))


def test_duplicates_are_near_and_under_another_id():
    phantom = replace(SMALL, patients=120, images_per_patient=1, duplicates=0.3)
    people = table(phantom)
    copies = people[people["duplicate_of"] != ""]
    assert 15 < len(copies) < 45
    by_id = people.set_index("patient_id")
    for _, copy in copies.head(5).iterrows():
        original = by_id.loc[copy["duplicate_of"]]
        assert original["duplicate_of"] == ""
        assert (copy[["sex", "age", "lesion"]] == original[["sex", "age", "lesion"]]).all()
        one, two, stranger = (
            film(phantom, int(name[-6:]))
            for name in (
                copy["patient_id"],
                copy["duplicate_of"],
                f"phantom{(copy.name + 7) % 120:06d}",
            )
        )
        assert not np.array_equal(one, two)
        alike = [np.corrcoef(one.ravel(), x.ravel())[0, 1] for x in (two, stranger)]
        assert alike[0] > max(0.92, alike[1])
    assert (table(replace(phantom, duplicates=0.0))["duplicate_of"] == "").all()


def test_later_options_change_nothing_where_they_are_not_given():
    # The folder's name, and with it every run made before there were these options.
    assert Phantom().digest == "0a1a8fd540"
    assert replace(SMALL, copies=2).digest != SMALL.digest
    phantom = replace(SMALL, patients=400, images_per_patient=1, duplicates=0.6)
    drawn = [_random(phantom, 2, p).random() < phantom.duplicates for p in range(400)]
    copied = (table(phantom)["duplicate_of"] != "").tolist()
    for patient in range(1, 400):  # in a run of drawn patients every other one is a copy
        run = next(n for n in range(patient + 1) if patient == n or not drawn[patient - n])
        assert copied[patient] == (run % 2 == 1)


def test_copies_say_how_often_a_film_is_there():
    phantom = replace(SMALL, patients=40, images_per_patient=1, duplicates=1.0, copies=3)
    people = table(phantom)
    firsts = people[people["duplicate_of"] == ""]
    assert firsts["patient_id"].tolist() == [f"phantom{p:06d}" for p in range(0, 40, 4)]
    assert (people["duplicate_of"].value_counts().drop("") == 3).all()
    some = table(replace(phantom, patients=400, duplicates=0.3))
    counts = some["duplicate_of"].value_counts().drop("")
    assert set(counts[:-1]) == {3}
    assert not set(counts.index) & set(some[some["duplicate_of"] != ""]["patient_id"])


def test_a_bias_in_everyone():
    people = table(
        replace(
            SMALL, patients=400, images_per_patient=1, shortcut=1.0, shortcut_in="everyone",
            weak_group=0.5, weak_in="everyone", label_noise=0.2, label_noise_in="everyone",
        )
    )  # fmt: skip
    assert (people["mark"] == people["lesion"]).all()
    assert (people["contrast"] == 0.5).all()
    for sex in "FM":
        own = people[people["sex"] == sex]
        assert abs((own["lesion"] != own["true_lesion"]).mean() - 0.2) < 0.08


def test_share_of_women_and_the_same_set_as_before():
    few = [describe(Phantom(women=0.2), n, 0)[1]["sex"] for n in range(400)]
    half = [describe(Phantom(), n, 0)[1]["sex"] for n in range(400)]
    assert few.count("F") / 400 == pytest.approx(0.2, abs=0.06)
    assert all(h == "F" for f, h in zip(few, half, strict=True) if f == "F")
    # A set that was made before there was this option keeps its folder.
    assert Phantom(women=0.5).digest == Phantom().digest != Phantom(women=0.2).digest


def test_wrong_labels_in_train_only(tmp_path):
    options = {"patients": "200", "size": "32", "label_noise": "0.3", "label_noise_in": "everyone"}
    tasks = {
        split: load_phantom(
            Settings(data_option={**options, "label_noise_split": split}), tmp_path
        )
        for split in ("all", "train")
    }
    truth = pd.read_csv(next(tmp_path.glob("phantom-*")) / "labels.csv").set_index("path")
    for split, task in tasks.items():
        assert task.policy_differs == (split == "train")
        for name in ("train", "search", "confirm", "test"):
            rows = task.open_test() if name == "test" else task.rows(name)
            wrong = (rows.label[:, 0] != truth.loc[rows.path, "true_lesion"]).mean()
            if split == "train" and name != "train":
                assert wrong == 0
            else:
                assert 0.12 < wrong < 0.5


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"patients": "many"}, "not a whole number"),
        ({"patient": "3"}, 'Did you mean "patients"'),
        ({"prevalence": "1.5"}, "out of range"),
        ({"size": "8"}, "out of range"),
        ({"weak_in": "sex=W"}, "is no group"),
        ({"label_noise_split": "tests"}, "is not possible"),
        ({"copies": "0"}, "out of range"),
    ],
)
def test_bad_options_write_nothing(option, words, tmp_path):
    with pytest.raises(UserError, match=words):
        load_phantom(Settings(data_option=option), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flag", [{"split_column": "sex"}, {"patient_column": "none"}, {"data_root": "films"}]
)
def test_flags_for_data_of_ones_own_are_refused(tmp_path, flag):
    name = f"--{next(iter(flag)).replace('_', '-')} {next(iter(flag.values()))}"
    with pytest.raises(UserError, match=f"^{name}: "):
        load_phantom(Settings(dataset="phantom", **flag), tmp_path)
    assert list(tmp_path.iterdir()) == []
