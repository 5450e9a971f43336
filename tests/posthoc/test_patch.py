"""Adapters on other weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from autopeft import load_adapter, posthoc
from autopeft.adapter import Model, merge
from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError
from autopeft.methods import build, canonical

LORA = {"method": "lora", "blocks": [2, 5], "r": 4}
MIXED = {"strata": [{"method": "lora", "blocks": [2, 4]}, {"method": "bitfit", "blocks": [4, 5]}]}
KINDS = [LORA, MIXED, {"method": "full", "blocks": 1}, {"method": "ln_tuning"}, {"method": "beft"}]


@pytest.mark.parametrize("raw", KINDS, ids=str)
def test_the_change_is_carried_over(trained, vit, other_vit, raw):
    model = trained(raw)
    found = posthoc.portable_patch(model, other_vit)
    old, new = vit.model.state_dict(), other_vit.model.state_dict()
    was, now = merge(model.adapted), merge(found.adapted)
    for name, frozen in old.items():
        want = new[name].double() + was[name].double() - frozen.double()
        torch.testing.assert_close(now[name].double(), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(now["head.weight"], was["head.weight"])


@pytest.mark.parametrize("raw", KINDS, ids=str)
def test_onto_the_same_weights_it_is_exact(trained, vit, pixels, raw):
    model = trained(raw)
    found = posthoc.portable_patch(model, vit)
    with torch.no_grad():
        assert torch.equal(found.model(pixels), model.model(pixels))


def test_a_weights_file_a_new_head_and_a_reload(trained, other_vit, pixels, tmp_path):
    file = tmp_path / "next.safetensors"
    save_file({k: v.contiguous() for k, v in other_vit.model.state_dict().items()}, file)
    probe = trained({"method": "linear_probe"}, seed=7, network=other_vit)
    found = posthoc.portable_patch(trained(LORA), file, head=probe)
    posthoc.save(found, tmp_path / "moved")
    loaded = load_adapter(tmp_path / "moved", weights=str(file))
    assert loaded.info["weights"] == "next.safetensors"
    assert loaded.info["backbone"]["sha256"] == other_vit.facts.sha256
    assert torch.equal(loaded.adapted.head.weight, probe.adapted.head.weight)
    want = posthoc.portable_patch(trained(LORA), other_vit, head=probe)
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels), want.model(pixels))


def test_another_pretraining_is_said(trained, other_vit, monkeypatch):
    model = trained(LORA)
    tagged = dataclasses.replace(other_vit.facts, name="test_vit.mae")
    monkeypatch.setattr(other_vit, "facts", tagged)
    with pytest.warns(UserWarning, match="from test_vit to test_vit.mae"):
        found = posthoc.portable_patch(model, other_vit)
    assert found.info["backbone"]["name"] == "test_vit.mae"


def test_refusals(trained, resnet, other_vit):
    with pytest.raises(UserError, match="Shapes must be equal"):
        posthoc.portable_patch(trained(LORA), resnet)
    for raw, reason in (
        ({"method": "ia3"}, "ia3 multiplies the frozen weights"),
        ({"method": "ssf"}, "ssf multiplies the frozen weights"),
        ({"method": "oft"}, "oft is not known"),
        ({**LORA, "init": "pissa"}, "taken out of the frozen weights"),
        ({"method": "vpt_deep"}, "no weight of the plain model"),
    ):
        with pytest.raises(UserError, match=reason):
            posthoc.portable_patch(trained(raw), other_vit)


@pytest.mark.parametrize("method", ["ln_tuning", "bitfit"])
def test_the_new_backbone_keeps_its_own_batchnorm_statistics(method):
    old, new = (random_backbone("test_resnet", 64, seed) for seed in (0, 1))
    with torch.no_grad():
        for name, buffer in new.model.named_buffers():
            if "running_mean" in name:
                buffer.add_(0.7)
    adapted = build(old, canonical({"method": method}, old.facts), 2, 0, 0)
    keys = ("name", "image_size", "mean", "std", "interpolation", "sha256")
    info = {
        "classes": ["a", "b"], "kind": "multiclass", "thresholds": [], "weights": None,
        "backbone": {k: getattr(old.facts, k) for k in keys},
    }  # fmt: skip
    found = posthoc.portable_patch(Model(adapted, info, torch.device("cpu"), old), new)
    plain = build(new, canonical({"method": "linear_probe"}, new.facts), 2, 0, 0)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # untrained: nothing may change
        torch.testing.assert_close(found.adapted.pooled(x), plain.pooled(x))
