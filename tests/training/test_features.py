"""Frozen features equal the network's own, are kept, and are found again only when equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from autopeft.backbones.describe import random_backbone
from autopeft.training import features
from autopeft.training.features import frozen_features
from autopeft.training.images import ImageStore, normalize

READOUTS = [(6, "token"), (2, "token+avg"), (4, "avg"), (6, "avg")]


def by_hand(network, store, index, block, pool):
    x = normalize(store.batch(index), network.facts.mean, network.facts.std)
    with torch.no_grad():
        return network.pooled(network.run(network.stem(x), 0, block), block, pool).numpy()


def test_one_pass_gives_every_readout(vit, store, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 5)
    index, steps = np.array([7, 0, 0, 23, 4, 9, 11]), []
    got = frozen_features(
        vit, store, index, READOUTS, "fp32", progress=lambda *step: steps.append(step)
    )
    assert list(got) == READOUTS or set(got) == set(READOUTS)
    assert steps == [(5, 7), (7, 7)]
    for block, pool in READOUTS:
        want = by_hand(vit, store, index, block, pool)
        assert got[(block, pool)].shape == (7, vit.facts.width(block, pool))
        assert got[(block, pool)].dtype == np.float32
        np.testing.assert_allclose(got[(block, pool)], want, rtol=1e-5, atol=1e-5)


def test_bf16_is_near(vit, store):
    index = np.arange(8)
    (full,) = frozen_features(vit, store, index, [(6, "avg")], "fp32").values()
    (low,) = frozen_features(vit, store, index, [(6, "avg")], "bf16").values()
    assert low.dtype == np.float32
    assert not np.array_equal(full, low)
    assert np.abs(full - low).mean() < 0.05 * np.abs(full).mean()


def test_kept_features_are_read_not_computed(vit, store, tmp_path, monkeypatch):
    index = np.arange(6)
    first = frozen_features(vit, store, index, READOUTS[:2], "fp32", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    computed = []
    inner = features._compute
    monkeypatch.setattr(features, "_compute", lambda *a: computed.append(tuple(a[3])) or inner(*a))
    again = frozen_features(vit, store, index, READOUTS[:2], "fp32", tmp_path)
    assert computed == []
    for readout, value in first.items():
        assert np.array_equal(again[readout], value)
    frozen_features(vit, store, index, READOUTS, "fp32", tmp_path)
    assert computed == [tuple(READOUTS[2:])]  # only what was missing


@pytest.mark.parametrize("change", ["rows", "store", "weights", "precision"])
def test_other_inputs_are_never_taken_for_equal(vit, store, tmp_path, monkeypatch, change):
    given = {"network": vit, "store": store, "index": np.arange(6), "precision": "fp32"}
    frozen_features(**given, readouts=[(6, "avg")], cache=tmp_path)
    given |= {
        "rows": {"index": np.arange(6)[::-1].copy()},
        "store": {"store": ImageStore(tmp_path / "images-other", store.array, store.rule)},
        "weights": {"network": random_backbone("test_vit", 32, seed=1)},
        "precision": {"precision": "bf16"},
    }[change]
    frozen_features(**given, readouts=[(6, "avg")], cache=tmp_path)
    assert len(list(tmp_path.glob("features-*"))) == 2


def test_two_architectures_with_the_same_tensors_share_no_features(vit, store, tmp_path):
    """They may differ in what is no tensor: normalization, activation, an epsilon."""
    index = np.arange(4)
    (mine,) = frozen_features(vit, store, index, [(6, "avg")], "fp32", tmp_path).values()
    facts, steps = vit.facts, []
    for number, change in enumerate([{"name": "another"}, {"mean": (0.0, 0.0, 0.0)}], 1):
        vit.facts = replace(facts, **change)
        try:
            frozen_features(
                vit, store, index, [(6, "avg")], "fp32", tmp_path, lambda *s: steps.append(s)
            )
        finally:
            vit.facts = facts
        assert len(steps) == number, change
    (again,) = frozen_features(vit, store, index, [(6, "avg")], "fp32", tmp_path).values()
    assert (mine == again).all()
