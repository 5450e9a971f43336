"""LoRA's starting values: what they are, and that the resident backbone never sees them."""

from __future__ import annotations

from functools import partial

import numpy as np
import peft
import pytest
import timm
import torch

from autopeft.adapter import load_adapter, save
from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.conformance import check_method
from autopeft.methods.scored import ToyScoring, has_scored, look

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


@pytest.mark.parametrize("init", [*INITS, "eva"])
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
    ("test_vit", {"init": "corda"}, "Choose: default, gaussian"),
    ("test_vit", {"init": "eva", "r": 100}, "eva needs r of at most 64, not 100"),
    ("test_resnet", {"init": "eva"}, "not for convolutions; conv1 of block 0"),
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


def looked(network, images=6, **options):
    """A fresh adapter that has looked at toy images, which come back beside it."""
    raw = {"method": "lora", "init": "eva", **options}
    candidate = canonical(raw, network.facts)
    size = network.facts.image_size
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    label = torch.arange(images) % 3
    fixed = look(candidate, ToyScoring(network, candidate, x, label, 3))
    return build(network, candidate, 3, 0, 0, fixed), x


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_eva_takes_the_largest_right_singular_vectors_of_a_layer_s_inputs(networks, name):
    network, r = networks[name], 4
    modules = ["qkv", "proj", "fc2"] if name == "test_vit" else ["fc1", "fc2"]
    adapted, x = looked(network, blocks=2, r=r, modules=modules)
    plain, inputs = network.fork(), {}
    paths = [n.removesuffix(".lora_A.weight") for n in adapted.trainable if ".lora_A" in n]
    assert len(paths) == 2 * len(modules)
    for path in paths:
        module = plain.model.get_submodule(path)
        keep = partial(inputs.__setitem__, path)
        module.register_forward_pre_hook(lambda m, args, keep=keep: keep(args[0]))
    with torch.no_grad():
        plain.advance(0, x, network.depth)
    for path in paths:
        rows = inputs[path].reshape(-1, inputs[path].shape[-1]).double().numpy()
        _, size, right = np.linalg.svd(rows, full_matrices=False)
        assert (size[:r] > 1.001 * size[1 : r + 1]).all(), "the vectors can be told apart"
        ours = adapted.trainable[f"{path}.lora_A.weight"].detach().double().numpy()
        cosine = np.abs((ours * right[:r]).sum(1))
        assert np.allclose(cosine, 1, atol=1e-5), path
        assert not adapted.trainable[f"{path}.lora_B.weight"].any()


def test_eva_keeps_the_contract_and_looks_once_for_all_ranks(vit):
    check_method({"method": "lora", "init": "eva", "blocks": 2}, vit)
    candidate = canonical({"method": "lora", "init": "eva"}, vit.facts)
    scoring = ToyScoring(vit, candidate, torch.randn(4, 3, 32, 32), torch.arange(4) % 3, 3)
    seen = []
    batches = scoring.batches
    scoring.batches = lambda *args: (seen.append(1), batches(*args))[1]
    one = look(candidate, scoring)
    less = look(canonical({"method": "lora", "init": "eva", "r": 2}, vit.facts), scoring)
    assert len(seen) == 1
    assert all(torch.equal(one[name][:2], value) for name, value in less.items())
    assert not has_scored(canonical({"method": "lora"}, vit.facts))


def test_eva_s_strata_may_have_other_ranks_and_its_state_holds_no_more_than_lora_s(vit):
    strata = [
        {"method": "lora", "init": "eva", "blocks": [b, b], "r": r} for b, r in ((2, 4), (4, 2))
    ]
    candidate = canonical({"strata": strata}, vit.facts)
    scoring = ToyScoring(vit, candidate, torch.randn(4, 3, 32, 32), torch.arange(4) % 3, 3)
    adapted = build(vit, candidate, 3, 0, 0, look(candidate, scoring))
    assert adapted.trainable["blocks.2.attn.qkv.lora_A.weight"].shape == (4, 64)
    assert adapted.trainable["blocks.4.attn.qkv.lora_A.weight"].shape == (2, 64)
    assert not adapted.fixed
    again = build(vit, candidate, 3, 0, 0, adapted.tensors())
    again.load_tensors(adapted.tensors())
    for name, value in adapted.tensors().items():
        assert torch.equal(again.tensors()[name], value)
