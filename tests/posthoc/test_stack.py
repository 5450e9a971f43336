"""Stacked LoRA adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autopeft import load_adapter, posthoc
from autopeft.adapter import merge
from autopeft.errors import UserError

LORA = {"method": "lora", "blocks": [2, 5], "r": 4}
OTHER = {"method": "lora", "blocks": [4, 5], "r": 2, "lora_alpha": 5, "modules": ["qkv", "fc2"]}
STABLE = {"method": "lora", "blocks": [3, 5], "r": 3, "use_rslora": True}


def sum_of_changes(models, shares):
    """Frozen weights plus the weighted changes of merged weights."""
    base = models[0].base.model.state_dict()
    changes = [{k: v.double() - base[k].double() for k, v in s.items() if k in base}
               for s in (merge(m.adapted) for m in models)]  # fmt: skip
    return {
        name: (value.double() + sum(p * c[name] for p, c in zip(shares, changes, strict=True)))
        for name, value in base.items()
        if value.is_floating_point() and not name.startswith(("head.", "fc."))
    }


@pytest.mark.parametrize("shares", [None, [0.7, 0.2, 0.4], [1, -0.5, 0.25]])
def test_the_sum_of_the_changes(trained, shares):
    models = [trained(LORA), trained(OTHER, seed=1), trained(STABLE, seed=2)]
    found = posthoc.lora_stack(models, shares)
    got, p = merge(found.adapted), shares or [1 / 3] * 3
    for name, want in sum_of_changes(models, p).items():
        torch.testing.assert_close(got[name].double(), want, rtol=1e-5, atol=1e-6)
    heads = [m.adapted.head.weight.detach().double() for m in models]
    want = sum(q * h for q, h in zip(p, heads, strict=True)) / sum(p)
    torch.testing.assert_close(found.adapted.head.weight.double(), want, rtol=1e-5, atol=1e-6)


def test_ranks_add_site_by_site(trained):
    found = posthoc.lora_stack([trained(LORA), trained(OTHER)])
    rank = {k: t.shape[0] for k, t in found.adapted.tensors().items() if "lora_A" in k}
    assert rank["blocks.2.attn.qkv.lora_A.weight"] == 4
    assert rank["blocks.4.attn.qkv.lora_A.weight"] == 6
    assert rank["blocks.4.mlp.fc1.lora_A.weight"] == 4
    assert rank["blocks.5.mlp.fc2.lora_A.weight"] == 6
    assert len(rank) == 16


def test_averaging_the_factors_would_be_something_else(trained):
    models = [trained(LORA), trained(LORA, seed=1)]
    name = "blocks.3.attn.qkv"
    a = sum(m.adapted.tensors()[f"{name}.lora_A.weight"] for m in models) / 2
    b = sum(m.adapted.tensors()[f"{name}.lora_B.weight"] for m in models) / 2
    tensors = posthoc.lora_stack(models).adapted.tensors()
    stacked = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    assert np.abs((stacked - 2 * b @ a).numpy()).max() > 0.01


def test_a_cnn_and_a_reload(trained, resnet, tmp_path):
    raw = {"method": "lora", "blocks": 2, "r": 2}
    models = [trained(raw, network=resnet), trained({**raw, "r": 3}, seed=1, network=resnet)]
    found = posthoc.lora_stack(models)
    got = merge(found.adapted)
    for name, want in sum_of_changes(models, [0.5, 0.5]).items():
        torch.testing.assert_close(got[name].double(), want, rtol=1e-4, atol=1e-5)
    posthoc.save(found, tmp_path / "stack")
    loaded = load_adapter(tmp_path / "stack", network=resnet)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), found.model(x))


def test_refusals(trained):
    lora = trained(LORA)
    with pytest.raises(UserError, match="list of 2 adapters"):
        posthoc.lora_stack([lora])
    with pytest.raises(UserError, match="bitfit is not stacked"):
        posthoc.lora_stack([lora, trained({"method": "bitfit"})])
    with pytest.raises(UserError, match="DoRA"):
        posthoc.lora_stack([lora, trained({**LORA, "use_dora": True})])
    with pytest.raises(UserError, match="2 adapters and 1 shares"):
        posthoc.lora_stack([lora, lora], [1])
    with pytest.raises(UserError, match="no head is left"):
        posthoc.lora_stack([lora, lora], [1, -1])
    with pytest.raises(UserError, match="different readouts"):
        posthoc.lora_stack([lora, trained({**LORA, "blocks": 2, "readout_pool": "avg"})])
    with pytest.raises(UserError, match="ranks add up to 384"):
        posthoc.lora_stack([trained({**LORA, "r": 192, "blocks": 1})] * 2)
