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
