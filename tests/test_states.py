"""What a rung leaves and a later one finds."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from autopeft.backbones.describe import random_backbone
from autopeft.files import new_folder
from autopeft.job import Job
from autopeft.methods import canonical
from autopeft.states import STATE, TRAINED, State, saved_state, trained_twin, write_state

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3)}
MOMENTS = {"head.weight|exp_avg": torch.ones(2, 3)}


@pytest.fixture(scope="module")
def facts():
    return random_backbone("test_vit", 32).facts


@pytest.fixture
def setup(tmp_path):
    return SimpleNamespace(run_dir=str(tmp_path), epochs=3)


def job(facts, alpha=None, **changes):
    post = {"post": {"method": "wise_ft", "alpha": alpha}} if alpha else {}
    candidate = canonical({"method": "lora", **post}, facts)
    return Job("rung", "setup", candidate, **{"stop": 1, **changes})


def write(setup, tmp_path, one):
    with new_folder(tmp_path / "states" / one.name) as folder:
        write_state(folder, State(WEIGHTS, MOMENTS, 0.25, 1.5), one, setup.epochs)
    return tmp_path / "states" / one.name


def test_a_stretch_goes_on_from_what_was_written(setup, tmp_path, facts):
    one = job(facts)
    folder = write(setup, tmp_path, one)
    found = saved_state(setup, job(facts, start=1, stop=3, state=folder.name))
    assert torch.equal(found.weights["head.weight"], WEIGHTS["head.weight"])
    assert torch.equal(found.optimizer["head.weight|exp_avg"], torch.ones(2, 3))
    assert saved_state(setup, one) == State({}, {})


def test_weights_stay_behind_the_last_epoch_only_where_a_step_hides_them(setup, tmp_path, facts):
    assert not (write(setup, tmp_path, job(facts, stop=3)) / STATE).exists()
    assert (write(setup, tmp_path, job(facts, 0.5, stop=3)) / STATE).exists()


def test_a_twin_is_found_and_nothing_else(setup, tmp_path, facts):
    asked = job(facts, 0.5)
    assert trained_twin(setup, asked, None) is None
    folder = write(setup, tmp_path, job(facts, 0.7))
    found = trained_twin(setup, asked, None)
    assert (found.loss, found.seconds, found.source) == (0.25, 1.5, folder.name)
    assert torch.equal(found.weights["head.weight"], WEIGHTS["head.weight"])
    plain = write(setup, tmp_path, job(facts))
    assert trained_twin(setup, asked, None).source == plain.name  # asked first: one look
    assert trained_twin(setup, job(facts), None) is None
    for other in ({"repeat": 1}, {"repeat": 10}, {"stop": 2}, {"micro_batch": 4}):
        assert trained_twin(setup, job(facts, 0.5, **other), None) is None, other
    assert trained_twin(setup, Job("rung", "another", asked.candidate, stop=1), None) is None


def test_what_is_damaged_or_vanishes_is_passed_by(setup, tmp_path, facts):
    folder = write(setup, tmp_path, job(facts))
    asked = job(facts, 0.5)
    trained = json.loads((folder / TRAINED).read_text())
    (folder / TRAINED).write_text("{")
    assert trained_twin(setup, asked, None) is None
    (folder / TRAINED).write_text(json.dumps(trained))
    assert trained_twin(setup, asked, None) is not None
    (folder / STATE).unlink()
    assert trained_twin(setup, asked, None) is None
