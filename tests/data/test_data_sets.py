import re
from pathlib import Path

import pytest
import synthetic

from autopeft.data import DATASETS, load_task
from autopeft.errors import UserError
from autopeft.settings import Settings


def test_a_csv_is_a_table(tmp_path):
    csv = synthetic.write(tmp_path, synthetic.people())
    assert load_task(synthetic.settings(csv), tmp_path).patients == 120


def test_the_phantom_by_name(tmp_path):
    options = {"patients": "60", "size": "32", "images_per_patient": "1"}
    assert load_task(Settings(data_option=options), tmp_path).name == "phantom"


def test_an_unknown_name_offers_the_nearest(tmp_path):
    with pytest.raises(UserError, match='Did you mean "chexpert"'):
        load_task(Settings(dataset="chexprt"), tmp_path)


def test_every_data_set_has_one_line():
    assert {"phantom", "chexpert", "nih"} <= set(DATASETS)
    for entry in DATASETS.values():
        assert 0 < len(entry.what) < 100
        assert "\n" not in entry.what


def test_nothing_uses_numpy_s_global_generator(tmp_path):
    """A constructor that seeds it would make everybody's later draws repeat."""
    import numpy as np

    root = Path(__file__).parents[2]
    own = r"np\.random\.(?!default_rng)[a-z]\w*"
    files = [*(root / "autopeft").rglob("*.py"), *(root / "objectives").glob("*.py")]
    assert [f.name for f in files if re.search(own, f.read_text())] == []
    csv = synthetic.write(tmp_path, synthetic.people())
    before = np.random.get_state()[1:3]  # noqa: NPY002
    load_task(synthetic.settings(csv), tmp_path)
    after = np.random.get_state()[1:3]  # noqa: NPY002
    assert before[0].tolist() == after[0].tolist()
    assert before[1] == after[1]
