"""Model Stock."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autopeft import posthoc
from autopeft.adapter import merge
from autopeft.errors import UserError
from autopeft.posthoc.averaging import stock_share, stocked

FULL = {"method": "full", "blocks": 1}


def test_identical_changes_go_all_the_way_and_orthogonal_ones_nowhere():
    change = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert stock_share([change, change.clone(), change.clone()]) == pytest.approx(1)
    eye = torch.eye(3)
    assert stock_share([eye[0], eye[1], eye[2]]) == 0
    assert stock_share([eye[0], -eye[0]]) == 0  # opposite: clipped
    assert stock_share([eye[0], 0 * eye[0]]) == 0  # frozen in one


@pytest.mark.parametrize("degrees", [30, 60, 80])
def test_two_changes_at_an_angle(degrees):
    w = math.radians(degrees)
    one, two = torch.tensor([5.0, 0.0]), torch.tensor([math.cos(w), math.sin(w)])
    want = 2 * math.cos(w) / (1 + math.cos(w))
    assert stock_share([one, two]) == pytest.approx(want, rel=1e-6)


def test_the_share_is_where_the_mean_is_nearest_to_the_middle_of_the_plane():
    """The paper's picture: w_H is the foot of the perpendicular from w0 to the plane of the w_i.

    For changes of one length and one pairwise angle c the foot's share of the mean is not t; t is
    chosen so that w_H - w0 is orthogonal to w_H - the center of which the w_i are samples:
    solved here from moments, mu.mu = c |d|^2: t = mu.mean / mean.mean.
    """
    rng, k, n, noise = np.random.default_rng(0), 3, 200_000, 2.0
    mu = rng.normal(size=n)
    changes = [mu + noise * rng.normal(size=n) for _ in range(k)]
    mean = np.mean(changes, axis=0)
    want = mu @ mean / (mean @ mean)
    assert stock_share([torch.from_numpy(c) for c in changes]) == pytest.approx(want, abs=0.01)


def test_each_tensor_has_its_own_share_and_counters_stay():
    base = {"a": torch.zeros(2), "b": torch.zeros(2), "n": torch.tensor(3)}
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([2.0, 2.0]), "n": torch.tensor(3)}
    two = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([2.0, 2.0]), "n": torch.tensor(3)}
    found = stocked(base, [one, two])
    assert found["a"].tolist() == [0, 0]
    assert found["b"].tolist() == [2, 2]
    assert found["n"].tolist() == 3


def test_of_adapters(trained, vit, tmp_path):
    models = [trained(FULL, seed=s) for s in range(3)]
    same = posthoc.model_stock([models[0], models[0]])
    for name, value in merge(models[0].adapted).items():
        torch.testing.assert_close(same[name], value, rtol=1e-6, atol=1e-7)
    state, frozen = posthoc.model_stock(models), vit.model.state_dict()
    assert torch.equal(state["blocks.0.attn.qkv.weight"], frozen["blocks.0.attn.qkv.weight"])
    heads = torch.stack([m.adapted.head.weight.detach() for m in models])
    torch.testing.assert_close(state["head.weight"], heads.mean(0))
    given = posthoc.model_stock(models, head=(torch.zeros(3, 64), torch.zeros(3)))
    assert float(given["head.weight"].norm()) < float(state["head.weight"].norm())

    found = posthoc.as_adapter(state, models[0])
    again = posthoc.weights_of(found)
    assert all(torch.equal(again[k], v) for k, v in state.items())
    posthoc.save(state, tmp_path / "stock.safetensors")
    assert (tmp_path / "stock.safetensors").stat().st_size > 1000


def test_refusals(trained, resnet):
    one = trained(FULL)
    with pytest.raises(UserError, match="list of 2 adapters"):
        posthoc.model_stock([one])
    two = trained(FULL, classes=["a", "b", "c"])
    with pytest.raises(UserError, match="different classes"):
        posthoc.model_stock([one, two])
    with pytest.raises(UserError, match="different backbone weights"):
        posthoc.model_stock([one, trained(FULL, network=resnet)])
    with pytest.raises(UserError, match="vpt_deep cannot be merged"):
        posthoc.model_stock([one, trained({"method": "vpt_deep"})])
    lora = trained({"method": "lora", "blocks": 1})
    with pytest.raises(UserError, match="lora has no place for 'blocks.5"):
        posthoc.as_adapter(posthoc.model_stock([one, one]), lora)
    probe = posthoc.weights_of(trained({"method": "linear_probe"}))
    with pytest.raises(UserError, match="of lora is no weight of the model"):
        posthoc.as_adapter(probe, lora)
    wider = posthoc.weights_of(trained({"method": "full", "blocks": 2}))
    with pytest.raises(UserError, match="has no place for 'blocks.4"):
        posthoc.as_adapter(wider, one)
