"""kNN, demographics and thumbnail as a run gets them: a job without labels, then predictions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from autopeft import baselines, trial
from autopeft.backbones.describe import random_backbone
from autopeft.bench import Audience
from autopeft.job import Job, Rows, Setup
from autopeft.methods import canonical
from autopeft.metrics.classification import auroc
from autopeft.training.features import frozen_features
from autopeft.training.images import build_store
from autopeft.training.neighbors import best_k, knn_scores

N, TRAIN = 72, 48


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vit():
    return random_backbone("test_vit", 32)


def everyone(groups):
    label = (np.arange(N) % 2).astype(np.float32)[:, None]
    return Rows(
        np.array([f"{i:02}.png" for i in range(N)]),
        np.arange(N),
        np.array([f"patient{i // 2:02}" for i in range(N)]),
        label,
        groups,
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory, vit):
    """Bright pictures are positive; women's have a bright corner."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(N):
        picture = rng.integers(0, 120, (32, 32)) + 60 * (i % 2)
        picture[:8, :8] += 70 * (i // 4 % 2)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i:02}.png")
    save_file(
        {k: v.contiguous() for k, v in vit.model.state_dict().items()}, folder / "w.safetensors"
    )
    names = [f"{i:02}.png" for i in range(N)]
    return folder, build_store(folder, names, 32, "pad", folder / "cache")


def world(images, vit, tmp_path, monkeypatch, groups):
    monkeypatch.setattr(trial, "load_backbone", lambda *args: vit)
    folder, store = images
    rows = everyone(groups)
    setup = Setup(
        kind="binary", classes=("bright",), backbone="test_vit",
        weights=str(folder / "w.safetensors"), weights_sha256=vit.facts.sha256, image_size=32,
        fit="pad", images=str(store.folder), cache=str(folder / "cache"),
        run_dir=str(tmp_path / "run"),
        rows={"train": rows.take(np.arange(TRAIN)), "search": rows.take(np.arange(TRAIN, 60))},
        epochs=3, batch_size=8, views=1, precision="fp32", threads=1, seed=0, offline=True,
    )  # fmt: skip
    audience = Audience(
        tmp_path / "run", ("bright",), "binary", {"confirm": rows.take(np.arange(60, N))}, {},
        0.01, setup.digest(), 3,
    )  # fmt: skip
    asked = []

    def ask(job, bar):
        asked.append(job)
        return trial.run(setup, job)

    return setup, SimpleNamespace(audience=audience, ask=ask), asked


SEX = {"sex": np.array(["sex=M", "sex=F"])[np.arange(N) // 4 % 2]}


def test_a_run_s_simple_baselines(images, vit, tmp_path, monkeypatch):
    groups = {"sex": SEX["sex"].astype("<U7")}
    groups["sex"][[0, 60]] = "unknown"
    setup, bench, asked = world(images, vit, tmp_path, monkeypatch, groups)
    probe = canonical(
        {"method": "linear_probe", "readout": {"block": 4, "pool": "avg"}}, vit.facts
    )
    found = baselines.simple(bench, probe, "confirm", lambda done, total: None)
    assert tuple(found.models) == baselines.SIMPLE
    for p in found.models.values():
        assert (p.split, p.score.shape, p.classes) == ("confirm", (12, 1), ("bright",))
    assert auroc(found.models["thumbnail"]) == 1
    assert auroc(found.models["demographics"]) == pytest.approx(0.5, abs=0.2)
    (job,) = asked
    assert (job.kind, job.rows.label) == ("simple", None)  # labels stay with the driver
    # kNN written out.
    train, rows = setup.rows["train"], bench.audience.rows["confirm"]
    place = (4, "avg")
    base, x = (
        frozen_features(vit, images[1], r.index, [place], "fp32")[place] for r in (train, rows)
    )
    k = best_k(base, train.label, "binary", train.patient)
    assert found.k == k
    want = knn_scores(base, train.label, x, k)
    np.testing.assert_allclose(found.models["knn"].score, want, atol=1e-4)
    # The groups, by a probe on the same features.
    assert found.groups.classes == ("sex=F", "sex=M")
    assert np.isnan(found.groups.target[0]).all()
    assert found.groups.target[1:].sum(axis=1).tolist() == [1] * 11
    assert auroc(found.groups) > 0.8


def test_without_groups_there_are_no_demographics(images, vit, tmp_path, monkeypatch):
    _, bench, _ = world(images, vit, tmp_path, monkeypatch, {})
    probe = canonical({"method": "linear_probe"}, vit.facts)
    found = baselines.simple(bench, probe, "confirm", lambda done, total: None)
    assert set(found.models) == {"knn", "thumbnail"}
    assert found.groups is None


def test_jobs_of_one_candidate_write_other_files(vit):
    probe = canonical({"method": "linear_probe"}, vit.facts)
    kinds = ("simple", "null", "predict")
    names = {Job(kind, "s", probe, split="search").name for kind in kinds}
    names |= {Job("simple", "s", probe, split="test").name, Job("rung", "s", probe).name}
    assert len(names) == 4  # null and predict differ by the epoch at which a state was saved
