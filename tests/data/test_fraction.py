"""``--label-fraction``: nested, stratified, whole patients; nothing but train changes."""

import numpy as np
import pytest
import synthetic
import yaml

from autopeft.data import load_task
from autopeft.data.splits import nested_share
from autopeft.errors import UserError
from autopeft.settings import Settings


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return synthetic.write(folder, synthetic.people(n=400))


def load(table, fraction, tmp_path, **changes):
    changes = {"group": ("sex",), **changes}
    return load_task(synthetic.settings(table, label_fraction=fraction, **changes), tmp_path)


def test_a_smaller_share_lies_in_a_larger_one(table, tmp_path):
    tasks = {f: load(table, f, tmp_path) for f in (0.05, 0.1, 0.33, 0.5, 1.0)}
    patients = [set(t.rows("train").patient.tolist()) for t in tasks.values()]
    assert all(a < b for a, b in zip(patients, patients[1:], strict=False))
    for fraction, mine in zip(tasks, patients, strict=True):
        assert len(mine) == pytest.approx(fraction * len(patients[-1]), abs=2)


def test_patients_stay_whole(table, tmp_path):
    part, whole = (load(table, f, tmp_path).rows("train") for f in (0.2, 1.0))
    for patient in set(part.patient.tolist()):
        assert (part.patient == patient).sum() == (whole.patient == patient).sum() == 2


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_each_label_and_group_gives_its_share(table, tmp_path, fraction):
    part, whole = (load(table, f, tmp_path).counts("train") for f in (fraction, 1.0))
    assert part["group"].tolist() == whole["group"].tolist()
    for key in ("positives", "negatives"):
        assert np.allclose(part[key], fraction * whole[key], atol=2.0)


def test_the_other_splits_are_the_same(table, tmp_path):
    part, whole = (load(table, f, tmp_path) for f in (0.1, 1.0))
    part.open_test(), whole.open_test()
    for split in ("search", "confirm", "test"):
        mine, theirs = part.rows(split), whole.rows(split)
        assert mine.path.tolist() == theirs.path.tolist()
        assert np.array_equal(mine.label, theirs.label)
        assert part.paths[mine.index].tolist() == mine.path.tolist()


def test_images_of_unused_patients_are_not_decoded(table, tmp_path):
    part, whole = (load(table, f, tmp_path) for f in (0.1, 1.0))
    unused = set(whole.rows("train").path.tolist()) - set(part.rows("train").path.tolist())
    assert unused
    assert not unused & set(part.paths.tolist())  # the store is built from these


def test_it_is_fixed_by_the_split_seed_and_known_to_the_digests(table, tmp_path):
    one, again = (load(table, 0.1, tmp_path) for _ in range(2))
    other = load(table, 0.1, tmp_path, split_seed=1)
    assert one.digest == again.digest
    assert one.rows("train").path.tolist() == again.rows("train").path.tolist()
    assert one.digest not in (other.digest, load(table, 0.2, tmp_path).digest)
    asked = [Settings(label_fraction=f).digest() for f in (1.0, 0.1, 0.01)]
    assert len(set(asked)) == 3
    assert "trained on" in one.notes[-1]


def test_too_few_patients_are_refused_with_the_smallest_fraction(table, tmp_path):
    with pytest.raises(UserError, match=r"--label-fraction: 0\.005 leaves \d") as error:
        load(table, 0.005, tmp_path)
    smallest = float(str(error.value).split("take ")[1].split(" or more")[0])
    load(table, smallest, tmp_path)  # enough
    with pytest.raises(UserError):
        load(table, 0.8 * smallest, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_is_a_share(fraction):
    with pytest.raises(UserError, match="--label-fraction: .* is out of range"):
        Settings(label_fraction=fraction)


def test_a_share_does_not_depend_on_the_order_of_the_rows():
    patient = np.array([f"p{i // 2}" for i in range(200)])
    strata = np.stack([np.ones(200, bool), np.arange(200) // 2 % 5 == 0], axis=1)
    inside = nested_share(patient, strata, 0.3, 7)
    shuffled = np.random.default_rng(0).permutation(200)
    again = nested_share(patient[shuffled], strata[shuffled], 0.3, 7)
    assert np.array_equal(inside[shuffled], again)
    rare = strata[:, 1]
    assert abs(inside[rare].mean() - 0.3) <= 0.05


def test_settings_are_read_and_saved_with_it(tmp_path):
    Settings(label_fraction=0.1).save(tmp_path / "s.yaml")
    assert yaml.safe_load((tmp_path / "s.yaml").read_text())["label_fraction"] == 0.1
