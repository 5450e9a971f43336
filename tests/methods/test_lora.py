"""LoRA's starting values: what they are, and that the resident backbone never sees them."""

from __future__ import annotations

import peft
import pytest
import timm
import torch

from autopeft.adapter import load_adapter, save
from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.conformance import check_method

INITS = ["gaussian", "orthogonal", "pissa", "olora"]
QKV = "blocks.5.attn.qkv"


def adapter(network, **options):
    raw = {"method": "lora", "blocks": 1, **options}
    return build(network, canonical(raw, network.facts), 3, 0, 0)


def parts(adapted):
    """Base weight, A, B and s of one layer."""
    layer = adapted.network.model.get_submodule(QKV)
    tensors = adapted.tensors()
    a, b = (tensors[f"{QKV}.lora_{k}.weight"] for k in "AB")
    return layer.get_base_layer().weight, a, b, layer.scaling["default"]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"use_rslora": True, "r": 4}])
def test_keeps_the_contract(vit, init, more):
    check_method({"method": "lora", "blocks": 1, "r": 2, "init": init, **more}, vit)


def test_gaussian_on_a_cnn_and_pissa_on_its_linear_layers(networks):
    check_method({"method": "lora", "blocks": 1, "init": "gaussian"}, networks["test_resnet"])
    check_method({"method": "lora", "blocks": 1, "init": "pissa"}, networks["test_convnext"])


@pytest.mark.parametrize("init", ["default", *INITS])
def test_who_rewrites_the_base_weight(vit, init):
    """The resident weight never changes; the fork's own copy does where the init says so."""
    resident = vit.model.get_submodule(QKV).weight
    before = resident.clone()
    weight, a, b, s = parts(adapter(vit, init=init))
    assert torch.equal(resident, before)
    rewritten = init in ("pissa", "olora")
    assert (weight.data_ptr() != resident.data_ptr()) == rewritten
    assert torch.equal(weight, resident) == (not rewritten)
    assert torch.allclose(weight + s * b @ a, resident, atol=1e-6)
    assert bool(b.any()) == (init not in ("default", "gaussian"))


def test_pissa_takes_the_largest_directions(vit):
    weight, a, b, s = parts(adapter(vit, init="pissa", r=4))
    u, size, v = torch.linalg.svd(vit.model.get_submodule(QKV).weight.double())
    best = (u[:, :4] * size[:4]) @ v[:4]
    assert torch.allclose(s * (b @ a).double(), best, atol=1e-5)
    assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(float(size[4]), rel=1e-4)


def test_orthogonal_halves_cancel(vit):
    _, a, b, _ = parts(adapter(vit, init="orthogonal", r=4))
    assert a.any()
    assert b.any()
    assert (b @ a).abs().max() < 1e-6


@pytest.mark.parametrize("init", INITS)
def test_peft_and_autopeft_load_the_folder(vit, init, tmp_path):
    """The rewritten base is computed again, so it must not depend on chance."""
    adapted = adapter(vit, init=init)
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    save(adapted, tmp_path, {"classes": ["a", "b", "c"], "kind": "multiclass"})
    x = torch.randn(2, 3, 32, 32)
    base = timm.create_model("test_vit", num_classes=3, img_size=32)
    base.load_state_dict(vit.fork(3).model.state_dict())
    with torch.no_grad():
        want = adapted.logits(x)
        ours = load_adapter(tmp_path, network=vit).adapted.logits(x)
        theirs = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()(x)
    assert torch.equal(ours, want)
    assert torch.allclose(theirs, want, atol=1e-6)


BAD = [
    ("test_vit", {"init": "orthogonal", "r": 3}, "needs an even r, not 3"),
    ("test_vit", {"init": "pissa", "r": 100}, "needs r of at most 64, not 100"),
    ("test_vit", {"init": "eva"}, "Choose: default, gaussian"),
    ("test_resnet", {"init": "olora"}, "not for convolutions; conv1 of block 0"),
]


@pytest.mark.parametrize(("name", "options", "reason"), BAD, ids=str)
def test_bad_inits_are_refused(networks, name, options, reason):
    with pytest.raises(UserError, match=reason):
        canonical({"method": "lora", **options}, networks[name].facts)


def test_strata_share_the_init(vit):
    strata = [
        {"method": "lora", "blocks": [b, b], "init": i} for b, i in ((3, "pissa"), (5, "olora"))
    ]
    with pytest.raises(UserError, match="differ in init"):
        canonical({"strata": strata}, vit.facts)
