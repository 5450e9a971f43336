"""A worker's jobs, end to end on a tiny data set."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from autopeft import load_adapter, readouts, trial
from autopeft.adapter import merge
from autopeft.backbones.describe import random_backbone
from autopeft.backbones.weights import load_backbone
from autopeft.data.task import Task
from autopeft.errors import RunError, UserError
from autopeft.job import Job, Rows, Setup
from autopeft.methods import METHODS, canonical, own
from autopeft.methods.sparse_presets import Gps
from autopeft.parts import part_rows
from autopeft.prepare import make_audience, make_setup
from autopeft.runners import guarded
from autopeft.settings import Settings
from autopeft.training import memory, probe
from autopeft.training import precision as number_format
from autopeft.training.features import frozen_features
from autopeft.training.images import ImageStore, build_store, normalize
from autopeft.training.loop import NotFiniteError
from autopeft.training.probe import best_strength, fit_probe
from autopeft.training.scoring import TrainScoring

LORA = {"method": "lora", "blocks": [3, 5], "r": 4, "lr": 3e-3}
SPLITS = ["train"] * 20 + ["search"] * 8 + ["confirm"] * 4 + ["test"] * 4


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vit():
    return random_backbone("test_vit", 32)


@pytest.fixture(scope="module")
def world(tmp_path_factory, vit):
    """Pictures (bright ones are positive), their store, a weights file."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    label = np.arange(36) % 2
    for i in range(36):
        picture = rng.integers(0, 150, (40, 30)) + 60 * label[i]
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i:02}.png")
    state = {k: v.contiguous() for k, v in vit.model.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    everyone = Rows(
        np.array([f"{i:02}.png" for i in range(36)]),
        np.arange(36),
        np.array([f"patient{i // 2}" for i in range(36)]),
        label.astype(np.float32)[:, None],
        {"sex": np.array(["sex=F", "sex=F", "sex=M", "sex=M"] * 9)},
    )
    task = Task(
        "tiny", "binary", "patient", ("bright",), folder, ("sex",), (), (),
        everyone, np.array(SPLITS),
    )  # fmt: skip
    store = build_store(folder, task.paths, 32, "pad", folder / "cache")
    return SimpleNamespace(folder=folder, task=task, store=store, everyone=everyone)


@pytest.fixture
def setup(world, vit, tmp_path, monkeypatch):
    """A fresh run's setup; its backbone is in memory already."""
    monkeypatch.setattr(trial, "load_backbone", lambda *args: vit)
    return Setup(
        kind="binary",
        classes=("bright",),
        backbone="test_vit",
        weights=str(world.folder / "weights.safetensors"),
        weights_sha256=vit.facts.sha256,
        image_size=32,
        fit="pad",
        images=str(world.store.folder),
        cache=str(world.folder / "cache"),
        run_dir=str(tmp_path / "run"),
        rows={s: world.task.rows(s) for s in ("train", "search")},
        epochs=3,
        batch_size=8,
        views=2,
        precision="fp32",
        threads=1,
        seed=0,
        offline=True,
    )


def rung(setup, vit, raw=LORA, start=0, stop=3, **changes):
    return Job(
        "rung", setup.digest(), canonical(raw, vit.facts), start=start, stop=stop, **changes
    )


def scores(setup, outcome, key="score"):
    with np.load(Path(setup.run_dir) / "predictions" / outcome.predictions) as stored:
        return stored[key]


def names_below(setup, folder):
    path = Path(setup.run_dir) / folder
    return sorted(p.name for p in path.iterdir()) if path.exists() else []


# ---- rungs --------------------------------------------------------------------------------------


def test_a_rung_writes_predictions_and_an_adapter_and_answers(setup, vit):
    job = rung(setup, vit)
    outcome = trial.run(setup, job)
    assert (outcome.status, outcome.reason, outcome.epoch) == ("ok", "", 3)
    assert outcome.state == job.name
    assert names_below(setup, "states") == [job.name]
    assert names_below(setup, "predictions") == [outcome.predictions]
    got = scores(setup, outcome)
    assert got.shape == (8, 1)
    assert got.dtype == np.float16
    file = Path(setup.run_dir) / "predictions" / outcome.predictions
    assert file.stat().st_mode & 0o777 == 0o600
    assert 0 < outcome.train_loss < 1
    assert outcome.cost.images == 60
    assert outcome.cost.train_seconds > 0
    tensors = load_file(Path(setup.run_dir) / "states" / job.name / "adapter_model.safetensors")
    assert outcome.cost.trainable_params == sum(t.numel() for t in tensors.values())
    assert outcome.cost.adapter_bytes == 4 * outcome.cost.trainable_params
    label = setup.rows["search"].label[:, 0]
    assert got[label == 1].min() > got[label == 0].max()  # brightness is easy


PAUSED = [
    LORA,
    {**LORA, "group_dro": True},
    {"method": "linear_probe"},
    {"method": "gps", "blocks": 3},
    {"method": "sara", "blocks": 3, "share": 0.3, "lr": 3e-3, "reselect_at": 0.5},
    {"method": "lt_sft", "blocks": 2, "share": 0.05, "phase_lr": 1e-3, "lr": 1e-3},
]


@pytest.mark.parametrize("raw", PAUSED, ids=[r["method"] for r in PAUSED])
def test_a_paused_trial_goes_on_bit_for_bit(setup, vit, tmp_path, raw):
    whole_setup = replace(setup, run_dir=str(tmp_path / "whole"))
    whole = trial.run(whole_setup, rung(whole_setup, vit, raw))
    state = None
    for start, stop in ((0, 1), (1, 2), (2, 3)):
        part = trial.run(setup, rung(setup, vit, raw, start, stop, state=state))
        assert part.status == "ok", part.reason
        assert part.cost.images == 20
        state = part.state
    assert part.train_loss == whole.train_loss
    assert np.array_equal(scores(setup, part), scores(whole_setup, whole))
    ours, theirs = (
        (Path(s.run_dir) / "states" / whole.state / "adapter_model.safetensors").read_bytes()
        for s in (setup, whole_setup)
    )
    assert ours == theirs
    paused = Path(setup.run_dir) / "states" / state.replace("-3", "-1") / "state.safetensors"
    assert paused.exists()
    assert not (Path(setup.run_dir) / "states" / state / "state.safetensors").exists()


def test_a_method_looks_at_training_images_once(setup, vit, monkeypatch):
    """Before the first epoch, within the trial's seconds; never at the rows that are scored."""
    looked, seen = [], []
    prepare, batch = Gps.prepare.__func__, ImageStore.batch

    def watched(cls, scoring, strata, readout):
        looked.append(strata)
        seen.clear()
        found = prepare(cls, scoring, strata, readout)
        looked.append(set(seen))
        time.sleep(0.5)
        return found

    monkeypatch.setattr(Gps, "prepare", classmethod(watched))
    monkeypatch.setattr(
        ImageStore, "batch", lambda self, index: seen.extend(index.tolist()) or batch(self, index)
    )
    raw = {"method": "gps", "blocks": 2}
    first = trial.run(setup, rung(setup, vit, raw, 0, 1))
    assert first.cost.train_seconds > 0.5
    assert len(looked) == 2
    assert looked[1] == set(setup.rows["train"].index.tolist())
    second = trial.run(setup, rung(setup, vit, raw, 1, 3, state=first.state))
    assert second.status == "ok", second.reason
    assert len(looked) == 2
    head = 65
    entries = first.cost.trainable_params - head
    places = entries - 2 * (192 + 64 + 192 + 64)  # the rest are biases
    assert places == 2 * (192 + 64 + 192 + 64)
    assert first.cost.adapter_bytes == 4 * (entries + head) + 4 * places


def test_candidates_of_a_worker_share_what_they_found(setup, vit, monkeypatch):
    calls, fine_tune = [], TrainScoring.fine_tune
    monkeypatch.setattr(
        TrainScoring, "fine_tune", lambda self, *a: calls.append(a) or fine_tune(self, *a)
    )
    raw = {"method": "lt_sft", "blocks": 2, "phase_lr": 1e-3}
    states = {}
    for share in (0.05, 0.2):
        outcome = trial.run(setup, rung(setup, vit, {**raw, "share": share}, stop=1))
        path = Path(setup.run_dir) / "states" / outcome.state / "adapter_model.safetensors"
        states[share] = load_file(path)
    assert len(calls) == 1
    for name, places in states[0.05].items():
        if name.endswith("_index"):
            assert set(places.tolist()) <= set(states[0.2][name].tolist())
    other = rung(setup, vit, {**raw, "share": 0.05}, stop=1, repeat=1)
    assert trial.run(setup, other).status == "ok"
    assert len(calls) == 2  # a repeat is a training of its own


def test_repeats_differ_and_the_same_job_does_not(setup, vit):
    first = scores(setup, trial.run(setup, rung(setup, vit)))
    assert np.array_equal(scores(setup, trial.run(setup, rung(setup, vit))), first)
    assert not np.array_equal(scores(setup, trial.run(setup, rung(setup, vit, repeat=1))), first)


def test_the_setup_s_micro_batch_is_where_jobs_start(setup, vit, monkeypatch):
    seen, real = [], trial.train_epochs

    def look(adapted, plan, *args):
        seen.append(plan.micro_batch)
        return real(adapted, plan, *args)

    monkeypatch.setattr(trial, "train_epochs", look)
    start = replace(setup, micro_batch=4)
    for asked in (0, 2):  # the second one after out-of-memory
        assert trial.run(start, rung(start, vit, stop=1, micro_batch=asked)).status == "ok"
    assert seen == [4, 2]


def test_a_smaller_micro_batch_gives_nearly_the_same(setup, vit):
    first = scores(setup, trial.run(setup, rung(setup, vit)))
    small = scores(setup, trial.run(setup, rung(setup, vit, micro_batch=3)))
    np.testing.assert_allclose(small.astype(float), first, rtol=0.02, atol=0.01)


def test_the_linear_probe_is_the_probe_of_the_frozen_features(setup, vit, world):
    raw = {"method": "linear_probe", "readout": {"block": 4, "pool": "avg"}, "weight_decay": 0.03}
    rows = setup.rows
    got = scores(setup, trial.run(setup, rung(setup, vit, raw)))
    train, search = (
        frozen_features(vit, world.store, rows[s].index, [(4, "avg")], "fp32")[(4, "avg")]
        for s in ("train", "search")
    )
    want = fit_probe(train, rows["train"].label, "binary", 0.03).logits(search)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)
    again = trial.run(setup, rung(setup, vit, raw, repeat=1))
    assert np.array_equal(scores(setup, again), got)  # no seed in it


def test_training_starts_from_the_probe_s_head(setup, vit, monkeypatch):
    heads = []

    def look(adapted, plan, start, stop, optimizer):
        heads.append(adapted.head.weight.detach().clone())
        return 0.5, {}

    monkeypatch.setattr(trial, "train_epochs", look)
    for repeat, init in ((0, "probe"), (1, "probe"), (0, "random"), (1, "random")):
        raw = {**LORA, "head_init": init}
        assert trial.run(setup, rung(setup, vit, raw, repeat=repeat)).status == "ok"
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[2], heads[3])
    assert heads[0].abs().max() > 3 * heads[2].abs().max()


def test_frozen_states_are_computed_once_and_change_nothing(setup, vit, tmp_path):
    """With and without a store: equal scores, bit for bit, and all hits the second time."""
    raw = {**LORA, "blocks": 1, "drop_path": 0.1}
    outcomes, scores = [], []
    for number, size in enumerate((0, 2**24, 2**24)):  # the third starts again on the same disk
        cache = tmp_path / ("none" if size == 0 else "cache")
        mine = replace(
            setup, cache=str(cache), cache_bytes=size, run_dir=str(tmp_path / str(number))
        )
        outcomes.append(trial.run(mine, rung(mine, vit, raw)))
        with np.load(Path(mine.run_dir) / "predictions" / outcomes[-1].predictions) as stored:
            scores.append(stored["score"])
    assert (scores[0] == scores[1]).all()
    assert (scores[0] == scores[2]).all()
    (no_hits, asks), (some, _), (all_hits, _) = (o.extra["prefix"] for o in outcomes)
    assert no_hits == 0
    assert 0 < some < asks
    assert all_hits == asks
    first = trial.run(setup, rung(setup, vit, {**LORA, "blocks": "all"}))
    assert first.extra == {}  # the first block trains: nothing below is frozen but the stem


# ---- a step after training ----------------------------------------------------------------------


def post(raw, alpha):
    return {**raw, "post": {"method": "wise_ft", "alpha": alpha}}


def state_folder(setup, outcome):
    return Path(setup.run_dir) / "states" / outcome.state


def at(setup, folder):
    """The same run in another folder."""
    return replace(setup, run_dir=str(Path(setup.run_dir).parent / folder))


@pytest.fixture
def trainings(monkeypatch):
    """A list that grows with each stretch of gradient training."""
    calls, inner = [], trial.train_epochs
    monkeypatch.setattr(trial, "train_epochs", lambda *a: calls.append(a[2:4]) or inner(*a))
    return calls


@pytest.mark.parametrize(
    "raw", [LORA, {"method": "full", "blocks": 1, "lr": 1e-3}, {"method": "ssf", "blocks": 2}]
)
def test_what_is_scored_lies_between_frozen_and_trained_weights(setup, vit, world, raw):
    """By hand: a plain timm model with (1 - a) frozen + a trained weights, the probe's head."""
    alpha, rows = 0.3, setup.rows
    plain = trial.run(setup, rung(setup, vit, raw))
    stepped = trial.run(setup, rung(setup, vit, post(raw, alpha)))
    trained = merge(state_folder(setup, plain), network=vit)
    features = frozen_features(vit, world.store, rows["train"].index, [(6, "token")], "fp32")
    x, label = features[(6, "token")], rows["train"].label
    strength = best_strength(x, label, "binary", rows["train"].patient)
    probe = fit_probe(x, label, "binary", strength, np.ones(label.shape))
    frozen = {**vit.model.state_dict(), "head.weight": torch.from_numpy(probe.weight)}
    frozen["head.bias"] = torch.from_numpy(probe.bias)
    model = copy.deepcopy(vit.fork(1).model)
    model.load_state_dict({k: (1 - alpha) * frozen[k] + alpha * v for k, v in trained.items()})
    pixels = normalize(world.store.batch(rows["search"].index), vit.facts.mean, vit.facts.std)
    with torch.no_grad():
        want = model(pixels).numpy()
    got = scores(setup, stepped).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)
    assert np.abs(got - scores(setup, plain)).max() > 0.02
    loaded = load_adapter(state_folder(setup, stepped), network=vit)
    assert loaded.info["candidate"]["post"] == {"method": "wise_ft", "alpha": alpha}
    images = [world.folder / p for p in rows["search"].path]
    np.testing.assert_allclose(loaded.logits(images), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("raw", [LORA, {**LORA, "head_init": "random"}], ids=str)
def test_a_step_changes_nothing_about_the_training(setup, vit, raw):
    """Same initialization, same weights and optimizer at each rung as the plain twin."""
    states = []
    for number, one in enumerate((raw, post(raw, 0.5))):
        mine = at(setup, f"run{number}")
        outcome = trial.run(mine, rung(mine, vit, one, stop=1))
        states.append(load_file(state_folder(mine, outcome) / "state.safetensors"))
        more = trial.run(mine, rung(mine, vit, one, start=1, stop=2, state=outcome.state))
        assert more.extra.get("trained_as") is None
        states.append(load_file(state_folder(mine, more) / "state.safetensors"))
    for plain, stepped in ((states[0], states[2]), (states[1], states[3])):
        assert plain.keys() == stepped.keys()
        assert all(torch.equal(plain[name], stepped[name]) for name in plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("raw", [LORA, {"method": "gps", "blocks": 2}], ids=str)
def test_what_the_twin_or_a_sibling_trained_is_not_trained_again(
    setup, vit, trainings, raw, precision
):
    setup = replace(setup, precision=precision, epochs=2)
    alone = at(setup, "alone")
    want = trial.run(alone, rung(alone, vit, post(raw, 0.5), stop=2))
    assert len(trainings) == 1
    for number, first in enumerate((raw, post(raw, 0.9))):
        mine = at(setup, f"run{number}")
        before = trial.run(mine, rung(mine, vit, first, stop=2))
        outcome = trial.run(mine, rung(mine, vit, post(raw, 0.5), stop=2))
        assert len(trainings) == 2 + number
        assert outcome.extra["trained_as"] == before.state
        assert np.array_equal(scores(mine, outcome), scores(alone, want))
        assert outcome.train_loss == before.train_loss == want.train_loss
        assert outcome.cost.images == before.cost.images
        assert outcome.cost.train_seconds == before.cost.train_seconds
        files = [state_folder(s, o) for s, o in ((mine, outcome), (alone, want))]
        mine_is, alone_is = (load_file(f / "adapter_model.safetensors") for f in files)
        assert all(torch.equal(mine_is[name], alone_is[name]) for name in alone_is)


def test_a_rung_goes_on_from_what_a_sibling_trained(setup, vit, trainings):
    straight = trial.run(at(setup, "straight"), rung(setup, vit, post(LORA, 0.5)))
    trial.run(setup, rung(setup, vit, post(LORA, 0.9), stop=1))
    first = trial.run(setup, rung(setup, vit, post(LORA, 0.5), stop=1))
    assert trainings == [(0, 3), (0, 1)]
    last = trial.run(setup, rung(setup, vit, post(LORA, 0.5), start=1, state=first.state))
    assert trainings[2:] == [(1, 3)]
    assert np.array_equal(scores(setup, last), scores(at(setup, "straight"), straight))


def test_only_the_same_training_stands_for_another(setup, vit, trainings):
    plain = trial.run(setup, rung(setup, vit, stop=1))
    asked = post(LORA, 0.5)
    trial.run(setup, rung(setup, vit, asked, stop=1, micro_batch=3))
    trial.run(setup, rung(setup, vit, asked, stop=1, repeat=1))
    trial.run(setup, rung(setup, vit, asked, stop=2))
    trial.run(setup, rung(setup, vit, post({**LORA, "lr": 1e-3}, 0.5), stop=1))
    assert len(trainings) == 5
    (state_folder(setup, plain) / "state.safetensors").write_bytes(b"cut off")
    outcome = trial.run(setup, rung(setup, vit, asked, stop=1))
    assert outcome.status == "ok"
    assert len(trainings) == 6
    trial.run(setup, rung(setup, vit, LORA, stop=1))  # a plain candidate always trains
    assert len(trainings) == 7


def test_a_stepped_adapter_is_predicted_as_it_is_saved(setup, vit, world):
    raw = post(LORA, 0.5)
    outcome = trial.run(setup, rung(setup, vit, raw))
    rows = world.everyone.take(np.arange(28, 36)).blind()
    asked = replace(rung(setup, vit, raw), kind="test", state=outcome.state, rows=rows)
    predicted = trial.run(setup, replace(asked, split="test"))
    assert predicted.status == "ok", predicted.reason
    model = load_adapter(state_folder(setup, outcome), weights=setup.weights)
    images = [world.folder / p for p in rows.path]
    assert np.array_equal(model.logits(images), scores(setup, predicted))


# ---- what goes wrong ----------------------------------------------------------------------------


def test_a_job_of_another_setup_is_refused(setup, vit):
    outcome = trial.run(replace(setup, seed=1), rung(setup, vit))
    assert outcome.status == "error"
    assert setup.digest() in outcome.reason
    assert names_below(setup, "states") == []


def test_other_weights_than_the_driver_s_are_refused(setup, vit, monkeypatch):
    monkeypatch.setattr(trial, "load_backbone", load_backbone)  # the real one
    assert trial.run(setup, rung(setup, vit, {"method": "linear_probe"})).status == "ok"
    other = replace(setup, weights_sha256="0" * 64)
    outcome = guarded(trial.run, other, rung(other, vit))
    assert outcome.status == "error"
    assert "other backbone weights" in outcome.reason


def test_a_state_of_another_candidate_is_never_scored_as_this_one(setup, vit, world):
    outcome = trial.run(setup, rung(setup, vit))
    other = rung(setup, vit, {"method": "bitfit", "blocks": 1})
    asked = replace(
        other, kind="predict", state=outcome.state, rows=setup.rows["search"].blind(), start=0
    )
    with pytest.raises(RunError, match="holds another candidate"):
        trial.run(setup, asked)


def test_a_setup_of_a_simulation_trains_nothing(setup, vit):
    invented = replace(setup, simulated={"noise": 0.1})
    with pytest.raises(RunError, match="simulated worker"):
        trial.run(invented, rung(invented, vit))


def test_a_fold_is_a_training_of_its_patients_that_leaves_no_state(setup, vit, tmp_path):
    outcome = trial.run(setup, rung(setup, vit, part="fold:2"))
    assert (outcome.status, outcome.part, outcome.state) == ("ok", "fold:2", None)
    assert names_below(setup, "states") == []
    trained, judged = part_rows(setup.rows, "fold:2", setup.seed)
    assert outcome.cost.images == 3 * len(trained)
    alone = {"train": trained, "search": judged}
    other = replace(setup, rows=alone, run_dir=str(tmp_path / "other"))
    whole = trial.run(other, rung(other, vit))
    assert (whole.part, whole.state) == ("all", names_below(other, "states")[0])
    assert np.array_equal(scores(setup, outcome), scores(other, whole))


def test_a_part_that_is_not_known_is_refused_rather_than_trained_on_everyone(setup, vit):
    assert "fold:9" in trial.run(setup, rung(setup, vit, part="fold:9")).reason


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "oom"),
        (NotFiniteError("loss is nan at epoch 1, step 2"), "nan"),
        (RuntimeError("shapes do not\nmatch"), "error"),
        (KeyError("gone"), "error"),
    ],
)
def test_what_a_training_can_do_wrong_is_an_outcome(setup, vit, monkeypatch, error, status):
    def fail(*args):
        raise error

    monkeypatch.setattr(trial, "train_epochs", fail)
    outcome = guarded(trial.run, setup, rung(setup, vit, start=0, stop=1))
    assert outcome.status == status
    assert "\n" not in outcome.reason
    assert outcome.epoch == 0
    assert names_below(setup, "states") == names_below(setup, "predictions") == []


def test_scores_that_are_not_finite_are_nan(setup, vit, monkeypatch):
    monkeypatch.setattr(trial, "score_rows", lambda *a: np.full((8, 1), np.inf, np.float32))
    assert trial.run(setup, rung(setup, vit)).status == "nan"
    assert names_below(setup, "states") == []


def test_the_backbone_is_loaded_once(setup, vit, monkeypatch):
    loads, inner = [], trial.load_backbone
    monkeypatch.setattr(trial, "load_backbone", lambda *a: loads.append(a) or inner(*a))
    for repeat in range(3):
        raw = {"method": "linear_probe"}
        assert trial.run(setup, rung(setup, vit, raw, repeat=repeat)).status == "ok"
    assert len(loads) == 1


# ---- other jobs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_predict_is_the_saved_adapter_in_fp32(setup, vit, world, precision):
    setup = replace(setup, precision=precision)
    state = trial.run(setup, rung(setup, vit)).state
    rows = world.everyone.take(np.arange(28, 36)).blind()
    job = Job(
        "test", setup.digest(), rung(setup, vit).candidate, 0, "all", 0, 3, state, rows, "test"
    )
    outcome = trial.run(setup, job)
    assert outcome.status == "ok", outcome.reason
    got = scores(setup, outcome)
    assert got.dtype == np.float32
    assert outcome.predictions.endswith("-test.npz")
    folder = Path(setup.run_dir) / "states" / state
    model = load_adapter(folder, weights=setup.weights)
    paths = [world.folder / p for p in rows.path]
    assert np.array_equal(model.logits(paths), got)
    assert model.info["fit"] == "pad"
    assert model.info["pixels"] == {"channels": 1, "white": 0}
    np.testing.assert_allclose(model.predict(paths), 1 / (1 + np.exp(-got)), rtol=1e-6)


def test_readouts_are_scored_out_of_fold(setup, vit, monkeypatch):
    monkeypatch.setattr(probe, "SCAN_STRENGTHS", (0.1,))
    outcome = trial.run(setup, Job("readouts", setup.digest(), split="train"))
    assert outcome.status == "ok", outcome.reason
    rows = setup.rows["train"]
    with np.load(Path(setup.run_dir) / "predictions" / outcome.predictions) as stored:
        assert np.array_equal(stored["row"], rows.index)
        fold = stored["fold"]
        keys = set(stored.files) - {"row", "fold"}
        assert all(stored[k].shape == (20, 1) for k in keys)
        assert not np.array_equal(stored["2|avg|0.1"], stored["6|avg|0.1"])
    for patient in set(rows.patient):
        assert len(set(fold[rows.patient == patient])) == 1
    blocks = {int(k.split("|")[0]) for k in keys}
    assert blocks == set(range(2, 7))
    assert {k.split("|")[1] for k in keys} == set(vit.facts.pools)


def test_readouts_of_a_large_task_take_a_spread_of_rows(setup, monkeypatch):
    monkeypatch.setattr(probe, "SCAN_STRENGTHS", (0.1,))
    monkeypatch.setattr(readouts, "READOUT_ROWS", 8)
    outcome = trial.run(setup, Job("readouts", setup.digest(), split="train"))
    assert scores(setup, outcome, "row").tolist() == [0, 3, 6, 9, 12, 15, 18]


# ---- who sees what ------------------------------------------------------------------------------


def test_a_worker_s_setup_holds_no_confirm_and_no_test_patient(world, vit, tmp_path):
    facts = {}
    study = SimpleNamespace(fact=facts.get, fix=lambda k, v: facts.setdefault(k, v))
    ready = SimpleNamespace(
        task=world.task,
        network=vit,
        space=SimpleNamespace(plugins=()),
        images=world.store.folder,
        counted=SimpleNamespace(groups={}, labels={}),
        start=None,
        folds=False,
    )
    settings = Settings(backbone="test_vit", runs_dir=str(tmp_path), name="x", precision="fp32")
    setup = make_setup(settings, ready, study)
    assert set(setup.rows) == {"train", "search"}
    sent = pickle.dumps(setup)
    for i, split in enumerate(SPLITS):
        known = split in ("train", "search")
        path, patient = f"{i:02}.png", f"patient{i // 2}"
        assert (any(path in rows.path for rows in setup.rows.values())) == known
        assert (any(patient in rows.patient for rows in setup.rows.values())) == known
    for i in range(28, 36):
        assert f"{i:02}.png".encode("utf-32-le") not in sent
    assert "test" not in make_audience(settings, ready, setup.digest()).rows
    with pytest.raises(RuntimeError, match="sealed"):
        world.task.rows("test")


def test_what_depends_on_the_machine_is_decided_once(world, vit, tmp_path, monkeypatch):
    facts = {}
    study = SimpleNamespace(fact=facts.get, fix=lambda k, v: facts.setdefault(k, v))
    ready = SimpleNamespace(
        task=world.task,
        network=vit,
        space=SimpleNamespace(plugins=()),
        images=world.store.folder,
        start=None,
    )
    settings = Settings(backbone="test_vit", runs_dir=str(tmp_path), name="x", runner="ray")
    asked = []
    monkeypatch.setattr(memory, "available", lambda *a: asked.append(a) or 10**6)
    monkeypatch.setattr(memory, "bytes_per_image", lambda *a: 10**5)
    monkeypatch.setattr(number_format, "find_device", lambda: "cuda")  # no worker gets its share
    setup = make_setup(settings, ready, study)
    assert (setup.device, setup.micro_batch) == ("cpu", 8)
    assert facts["machine"]["micro_batch"] == 8
    assert asked == [(max(1, (os.cpu_count() or 1) // 2), "cpu")]
    monkeypatch.setattr(memory, "available", lambda *a: 10**9)
    again = make_setup(settings, ready, study)  # a run that goes on
    assert (again.digest(), again.micro_batch) == (setup.digest(), 8)
    assert make_setup(settings, ready).micro_batch == 0
    facts["machine"] = {"threads": 1, "precision": "fp32"}  # a run of an older version
    old = make_setup(settings, ready, study)
    assert (old.device, old.micro_batch) == ("cpu", 0)


def test_setup_fields_that_change_values_change_the_digest(setup):
    setup = replace(setup, init_adapter="here", init_mode="naive", init_sha256="0")
    places = {"weights", "images", "cache", "run_dir", "offline", "cache_bytes", "micro_batch"}
    places.add("init_adapter")
    changed = {
        str: lambda v: v + "x", int: lambda v: v + 1, bool: lambda v: not v,
        tuple: lambda v: (*v, "more"), type(None): lambda v: {"noise": 1.0},
    }  # fmt: skip
    for field in dataclasses.fields(setup):
        value = getattr(setup, field.name)
        if field.name == "rows":
            continue
        other = replace(setup, **{field.name: changed[type(value)](value)})
        assert (other.digest() == setup.digest()) == (field.name in places), field.name


def test_a_method_of_the_user_s_is_executed_from_the_text_that_was_declared(setup, vit):
    text = (Path(__file__).parents[1] / "examples" / "own_method.py").read_text()
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    sent = replace(setup, plugins=(("own_method", text, sha256),), epochs=1)
    assert sent.digest() != setup.digest()
    try:
        own.receive(sent.plugins)
        job = rung(sent, vit, {"method": "gate", "blocks": 2}, stop=1)
        forget = [METHODS.pop("gate"), own._EXECUTED.clear(), own._FILES.clear()]
        assert forget  # as in a worker that has just begun
        assert trial.run(sent, job).status == "ok"
        first = METHODS["gate"]
        assert trial.run(sent, job).status == "ok"
        assert METHODS["gate"] is first  # executed once
    finally:
        METHODS.pop("gate", None)
        own._EXECUTED.clear()
        own._FILES.clear()
    changed = replace(sent, plugins=(("own_method", text + "\n", sha256),))
    with pytest.raises(RunError, match="reached a worker changed"):
        trial.run(changed, replace(job, setup=changed.digest()))


def test_what_cannot_be_built_fails_alone(setup, vit, monkeypatch):
    def refuse(*args, **given):
        raise UserError("does not go together", "candidate")

    monkeypatch.setattr(trial, "build", refuse)
    candidate = canonical({"method": "lora", "blocks": 1}, vit.facts)
    job = Job("rung", setup.digest(), candidate, stop=1)
    outcome = guarded(trial.run, setup, job)
    assert outcome.status == "error"
    assert "does not go together" in outcome.reason


@pytest.mark.parametrize("name", ["svdiff", "road"])
def test_a_method_whose_effect_bf16_would_round_away_trains_in_fp32(setup, vit, name):
    raw = {"method": name, "blocks": 2, "lr": 1e-3, "head_init": "random"}
    found = []
    for precision in ("fp32", "bf16"):
        given = replace(setup, precision=precision)
        candidate = canonical(raw, vit.facts)
        outcome = trial.run(given, Job("rung", given.digest(), candidate, stop=1))
        assert outcome.status == "ok", outcome.reason
        found.append(scores(given, outcome))
    assert np.array_equal(*found)
    assert trial.number_format(given, canonical({"method": "lora"}, vit.facts)) == "bf16"
