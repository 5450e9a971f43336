"""What a worker scores where memorization is asked, and parts of the patients, on a tiny ViT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autopeft import trial
from autopeft.backbones.describe import random_backbone
from autopeft.bench import Audience
from autopeft.data.probe import cut_probe
from autopeft.data.task import Task
from autopeft.job import Job, Rows, Setup
from autopeft.methods import canonical
from autopeft.metrics.memorization import attack
from autopeft.parts import halves, part_rows, subsample
from autopeft.training.features import frozen_features
from autopeft.training.images import build_store
from autopeft.training.neighbors import knn_scores

SIZES = {"train": 100, "search": 40, "confirm": 8, "test": 8}
LORA = {"method": "lora", "blocks": [4, 5], "r": 2, "lr": 1e-3}
PROBE = {"method": "linear_probe", "weight_decay": 1.0}
FULL = {"method": "full", "lr": 2e-3, "weight_decay": 0.0}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vit():
    return random_backbone("test_vit", 32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Each picture twice; brightness says a little, and a third of the labels is noise."""
    folder = tmp_path_factory.mktemp("world")
    rng, n = np.random.default_rng(0), sum(SIZES.values())
    truth = rng.permutation(np.arange(n) % 2)
    label = np.where(rng.random(n) < 0.3, 1 - truth, truth)
    for i in range(n):
        picture = (rng.integers(0, 200, (32, 32)) + 20 * truth[i]).astype(np.uint8)
        for copy in "ab":
            Image.fromarray(picture).save(folder / f"{i:03}{copy}.png")
    who = np.repeat(np.arange(n), 2)
    rows = Rows(
        np.array([f"{i:03}{c}.png" for i in range(n) for c in "ab"]),
        np.arange(2 * n),
        np.array([f"p{i:03}" for i in who]),
        label[who].astype(np.float32)[:, None],
    )
    split = np.repeat(np.repeat(list(SIZES), list(SIZES.values())), 2)
    task = cut_probe(Task("tiny", "binary", "patient", ("x",), folder, (), (), (), rows, split), 0)
    store = build_store(folder, task.paths, 32, "pad", folder / "cache")
    return folder, task, store


@pytest.fixture
def setup(world, vit, tmp_path, monkeypatch):
    folder, task, store = world
    monkeypatch.setattr(trial, "load_backbone", lambda *args: vit)
    return Setup(
        kind="binary",
        classes=("x",),
        backbone="test_vit",
        weights=None,
        weights_sha256=vit.facts.sha256,
        image_size=32,
        fit="pad",
        images=str(store.folder),
        cache=str(folder / "cache"),
        run_dir=str(tmp_path / "run"),
        rows={split: task.rows(split) for split in task.inner},
        epochs=2,
        batch_size=32,
        views=1,
        precision="fp32",
        threads=1,
        seed=0,
        offline=True,
    )


def answer(setup, vit, raw, **changes):
    changes = {"kind": "rung", "stop": setup.epochs, **changes}
    job = Job(setup=setup.digest(), candidate=canonical(raw, vit.facts), **changes)
    outcome = trial.run(setup, job)
    assert (outcome.status, outcome.reason) == ("ok", "")
    with np.load(Path(setup.run_dir) / "predictions" / outcome.predictions) as stored:
        return outcome, {name: stored[name] for name in stored.files}


def audience(setup):
    members = setup.rows["train"].take(subsample(setup.rows, setup.seed))
    rows = dict(setup.rows)
    return Audience(Path(setup.run_dir), ("x",), "binary", rows, {}, 0.01, "", 1, None, members)


def test_a_rung_also_scores_members_and_probe_and_what_it_had_scored_stays(setup, vit):
    outcome, found = answer(setup, vit, LORA)
    # Half of the train patients are members to be attacked: the probe has more than that.
    assert {k: v.shape[0] for k, v in found.items()} == {"score": 80, "train": 60, "probe": 80}
    assert {v.dtype for v in found.values()} == {np.dtype(np.float16)}
    train, _ = part_rows(setup.rows, "all", 0)
    assert outcome.cost.images == 2 * len(train)
    without = replace(setup, rows={k: setup.rows[k] for k in ("train", "search")})
    _, before = answer(without, vit, LORA)
    assert list(before) == ["score"]
    assert np.array_equal(before["score"], found["score"])


def test_a_half_trains_on_its_own_patients_and_scores_everyone(setup, vit):
    outcome, found = answer(setup, vit, LORA, part="half:2")
    rows = setup.rows["train"]
    inside = halves(rows, 0)[2]
    assert outcome.cost.images == 2 * inside.sum()
    assert len(found["train"]) == len(rows)
    # The same training by hand: half of the rows are all of train.
    alone = {**setup.rows, "train": rows.take(inside)}
    del alone["probe"]
    _, by_hand = answer(replace(setup, rows=alone), vit, LORA)
    assert np.array_equal(found["score"], by_hand["score"])


def test_a_linear_probe_of_a_half_is_solved_on_it(setup, vit):
    rows = setup.rows["train"]
    alone = {"train": rows.take(halves(rows, 0)[5]), "search": setup.rows["search"]}
    _, found = answer(setup, vit, PROBE, part="half:5")
    _, by_hand = answer(replace(setup, rows=alone), vit, PROBE)
    assert found["score"] == pytest.approx(by_hand["score"], abs=2e-3)
    _, whole = answer(setup, vit, PROBE)
    assert not np.allclose(found["score"], whole["score"], atol=2e-3)


def test_a_fold_scores_the_patients_that_it_was_not_trained_on(setup, vit):
    outcome, found = answer(setup, vit, PROBE, part="fold:1")
    train, held = part_rows(setup.rows, "fold:1", 0)
    assert list(found) == ["score"]
    assert len(found["score"]) == len(held)
    assert outcome.cost.images == 2 * len(train)


def test_other_parts_are_refused(setup, vit):
    job = Job("rung", setup.digest(), canonical(LORA, vit.facts), part="half:8", stop=2)
    outcome = trial.run(setup, job)
    assert (outcome.status, outcome.reason) == ("error", "there is no part 'half:8'")


def test_the_null_asks_neighbors_that_are_neither_members_nor_probe(setup, vit, world):
    _, found = answer(setup, vit, PROBE, kind="null", split="null", stop=0)
    rows, member = setup.rows["train"], subsample(setup.rows, setup.seed)
    place = (vit.facts.depth, canonical(PROBE, vit.facts).readout.pool)
    splits = {
        "others": rows.take(~member),
        "train": rows.take(member),
        "probe": setup.rows["probe"],
    }
    features = {
        name: frozen_features(vit, world[2], some.index, [place], "fp32", Path(setup.cache))[place]
        for name, some in splits.items()
    }
    assert {k: len(v) for k, v in found.items()} == {"train": 60, "probe": 80}
    for name, scores in found.items():
        by_hand = knn_scores(features["others"], splits["others"].label, features[name])
        assert scores == pytest.approx(by_hand, abs=0.02)


@pytest.mark.slow
def test_full_fine_tuning_learns_its_patients_by_heart_and_a_probe_does_not(setup, vit):
    """A third of the labels is noise: fitting them is memory and nothing else."""
    setup = replace(setup, epochs=40)
    _, null = answer(setup, vit, PROBE, kind="null", split="null", stop=0)
    seen, found = audience(setup), {}
    null = seen.both(null["train"], null["probe"])
    for name, raw in (("full", FULL), ("probe", PROBE)):
        _, scores = answer(setup, vit, raw)
        found[name] = attack(*seen.both(scores["train"], scores["probe"]), null, n=300)
    assert found["full"].succeeded
    assert found["full"].value > 0.15
    assert not found["probe"].succeeded
    assert abs(found["probe"].value) < 0.15
