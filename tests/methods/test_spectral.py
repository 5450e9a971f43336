"""svdiff, the spectral adapters and clover: contract, spectra by numpy, folding, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from autopeft.backbones.describe import network_of, random_backbone
from autopeft.errors import UserError
from autopeft.methods import build, canonical, singular
from autopeft.methods.conformance import check_method
from autopeft.methods.merge import merged_state
from autopeft.methods.singular import decompose, svd_of

from .precise import check_bf16, moved, pixels

BOTH = [
    {"method": "svdiff"},
    {"method": "spectral_additive", "blocks": 2, "r": 4},
    {"method": "spectral_rotational", "blocks": 2},
]
VIT = [
    {"method": "svdiff", "modules": "qkv+fc2", "blocks": [1, 2]},
    {"method": "spectral_rotational", "r": 2, "modules": ["qkv", "proj"]},
    {"method": "clover"},
    {"method": "clover", "core": "diag", "blocks": 2},
    {"strata": [{"method": "clover", "blocks": [4, 5]}, {"method": "svdiff", "blocks": [2, 3]}]},
]
PATH = "blocks.4.attn.qkv"


def of(raw, network):
    return build(network, canonical(raw, network.facts), 3, 0, 0)


def matrix(state, path):
    return state[f"{path}.weight"].detach().flatten(1).double().numpy()


def spectrum(state, path):
    return np.linalg.svd(matrix(state, path), compute_uv=False)


@pytest.mark.parametrize("raw", [*BOTH, *VIT], ids=str)
def test_vit(vit, raw):
    check_method(raw, vit)
    check_bf16(raw, vit)


@pytest.mark.parametrize("raw", VIT[2:4], ids=str)
def test_attention_without_a_class_token(raw):
    network = random_backbone("test_vit4", 32)
    check_method(raw, network)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize("raw", [{**raw, "blocks": 2} for raw in BOTH], ids=str)
def test_cnn(networks, name, raw):
    check_method(raw, networks[name], noise=0.02)
    check_bf16(raw, networks[name])


def test_svdiff_changes_the_singular_values_and_nothing_else(vit):
    raw = {"method": "svdiff", "modules": ["qkv"], "blocks": [4, 4]}
    adapted, plain = moved(raw, vit, by=0.5), vit.model.state_dict()
    u, s, vt = np.linalg.svd(matrix(plain, PATH), full_matrices=False)
    d = adapted.trainable[f"{PATH}.svdiff_d"].detach().numpy()
    expected = np.maximum(s + d, 0)
    assert (expected == 0).any()  # the rectifier is needed
    state = merged_state(adapted)
    np.testing.assert_allclose(spectrum(state, PATH), np.sort(expected)[::-1], atol=2e-5)
    np.testing.assert_allclose(matrix(state, PATH), (u * expected) @ vt, atol=1e-5)


def test_svdiff_is_exact_at_first(vit):
    adapted = of({"method": "svdiff"}, vit)
    plain = build(vit, canonical({"method": "linear_probe"}, vit.facts), 3, 0, 0)
    with torch.no_grad():
        assert torch.equal(adapted.pooled(pixels(vit)), plain.pooled(pixels(vit)))


def test_the_vectors_stay_when_it_trains(vit):
    adapted = of({"method": "svdiff", "blocks": [4, 4]}, vit)
    module = adapted.network.model.get_submodule(PATH)
    frozen = {n: b.clone() for n, b in module.named_buffers()}
    assert set(frozen) == {"svdiff_u", "svdiff_s", "svdiff_vt"}
    optimizer = torch.optim.SGD(adapted.param_groups(0.1, 0.1))
    adapted.logits(pixels(vit)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(b, frozen[n]) for n, b in module.named_buffers())
    assert not set(frozen) & {n.rpartition(".")[2] for n in adapted.tensors()}


def test_additive_is_what_the_paper_says(vit):
    raw = {"method": "spectral_additive", "modules": ["qkv"], "blocks": [4, 4], "r": 4}
    adapted, plain = moved(raw, vit), matrix(vit.model.state_dict(), PATH)
    u, s, vt = np.linalg.svd(plain, full_matrices=False)
    sign = np.sign(np.take_along_axis(u, np.abs(u).argmax(0)[None], 0))[0]
    u, v = (u * sign)[:, :4], (vt.T * sign)[:, :4]
    au, av = (
        adapted.trainable[f"{PATH}.spectral_{n}"].detach().double().numpy() for n in ("au", "av")
    )
    expected = plain + ((u + au) * s[:4]) @ (v + av).T - (u * s[:4]) @ v.T
    found = matrix(merged_state(adapted), PATH)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.linalg.matrix_rank(found - plain, tol=1e-4) == 2 * 4


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_rotations_keep_the_singular_values(networks, name):
    network = networks[name]
    path = {"test_vit": PATH, "test_resnet": "layer4.0.conv2"}[name]
    raw = {"method": "spectral_rotational", "blocks": "all", "r": 6}
    adapted = moved(raw, network, by=0.5)
    plain, state = network.model.state_dict(), merged_state(adapted)
    assert np.abs(matrix(state, path) - matrix(plain, path)).max() > 0.05
    np.testing.assert_allclose(spectrum(state, path), spectrum(plain, path), atol=1e-5)
    assert np.linalg.matrix_rank(matrix(state, path) - matrix(plain, path), tol=1e-4) <= 6


def test_a_rank_above_the_layers_own_is_its_own(vit):
    adapted = of({"method": "spectral_additive", "r": 128, "modules": ["proj"]}, vit)
    assert adapted.trainable["blocks.0.attn.proj.spectral_au"].shape == (64, 64)
    assert adapted.adapter_params == 6 * 64 * (64 + 64)


def test_decompositions_are_made_once_and_their_signs_are_fixed(vit, monkeypatch):
    monkeypatch.setattr(singular, "_CACHE", {})
    calls = []
    monkeypatch.setattr(singular, "decompose", lambda weight: calls.append(1) or decompose(weight))
    for _ in range(2):
        u, s, vt = svd_of(vit, PATH)
    assert len(calls) == 1
    weight = vit.model.get_submodule(PATH).weight
    torch.testing.assert_close((u * s) @ vt, weight.detach(), atol=1e-6, rtol=1e-5)
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()
    flipped = decompose(-weight.detach())
    torch.testing.assert_close(flipped[0], u)
    monkeypatch.setattr(singular, "LIMIT_BYTES", 1)
    svd_of(vit, "blocks.3.attn.qkv")
    assert list(singular._CACHE) == [(vit.facts.sha256, "blocks.3.attn.qkv")]


@pytest.mark.parametrize("core", ["full", "diag"])
def test_clover_is_what_the_paper_says(vit, core):
    """Logits and outputs of one block's attention from numpy's own factors of the products."""
    adapted = moved({"method": "clover", "core": core, "blocks": [4, 4]}, vit, by=0.1)
    plain, merged = vit.model.state_dict(), merged_state(adapted)
    heads, width = vit.facts.heads, 64
    dh = width // heads

    def products(state):
        w, b = (matrix(state, PATH), state[f"{PATH}.bias"].double().numpy())
        q, k, v = np.concatenate([w, b[:, None]], 1).reshape(3, heads, dh, width + 1)
        out = matrix(state, "blocks.4.attn.proj").reshape(width, heads, dh).transpose(1, 0, 2)
        return q.transpose(0, 2, 1) @ k, out @ v

    cores = [
        adapted.trainable[f"blocks.4.attn.{n}.clover_core"].detach().double().numpy()
        for n in ("qkv", "proj")
    ]
    assert [c.size for c in cores] == [heads * (dh * dh if core == "full" else dh)] * 2
    for before, after, change in zip(products(plain), products(merged), cores, strict=True):
        for h in range(heads):
            u, s, vt = np.linalg.svd(before[h])
            u, s, vt = u[:, :dh], s[:dh], vt[:dh]
            sign = np.sign(np.take_along_axis(u, np.abs(u).argmax(0)[None], 0))[0]
            u, vt = u * sign, vt * sign[:, None]
            delta = change[h] if core == "full" else np.diag(change.reshape(heads, dh)[h])
            np.testing.assert_allclose(after[h], u @ (np.diag(s) + delta) @ vt, atol=1e-5)
    assert torch.equal(merged["blocks.4.attn.proj.bias"], plain["blocks.4.attn.proj.bias"])


def test_clover_counts(vit):
    d, dh = 64, 64 // vit.facts.heads
    assert of({"method": "clover", "core": "diag", "blocks": 2}, vit).adapter_params == 2 * 2 * d
    assert of({"method": "clover", "blocks": 2}, vit).adapter_params == 2 * 2 * d * dh


def test_weight_decay_pulls_clover_to_the_pretrained_weights(vit):
    adapted = of({"method": "clover", "core": "diag", "blocks": 1}, vit)
    decays = {
        id(p) for g in adapted.param_groups(1, 0.1) if g["weight_decay"] for p in g["params"]
    }
    cores = [p for n, p in adapted.trainable.items() if n.endswith("clover_core")]
    assert not decays & {id(p) for p in cores}
    full = of({"method": "clover", "blocks": 1}, vit)
    assert all(not p.any() for n, p in full.trainable.items() if n.endswith("clover_core"))


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("test_resnet", {"method": "clover"}, "no attention"),
        ("test_vit", {"method": "clover", "core": "half"}, "full, diag"),
        ("test_vit", {"method": "spectral_additive", "r": 0}, "1 to 128"),
        ("test_vit", {"method": "spectral_rotational", "r": 1}, "2 to 128"),
        ("test_vit", {"method": "svdiff", "r": 4}, "unknown option"),
        ("test_vit", {"method": "svdiff", "modules": ["conv1"]}, "no module"),
        (
            "test_vit",
            {"strata": [{"method": "svdiff"}, {"method": "bitfit", "blocks": [1, 2]}]},
            "cannot share block",
        ),
    ],
)
def test_refusals(networks, name, raw, words):
    with pytest.raises(UserError, match=words):
        canonical(raw, networks[name].facts)


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"scale_attn_norm": True}])
def test_clover_refuses_norms_inside_the_attention(options):
    model = timm.create_model("test_vit", num_classes=0, img_size=32, **options)
    network = network_of(model, "test_vit")
    with pytest.raises(UserError, match=r"normalizes|norms"):
        of({"method": "clover", "blocks": 1}, network)
