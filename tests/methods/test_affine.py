"""Scales and shifts of ssf, difffit and bitfit: contract, formulas, folding, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.affine import scaled
from autopeft.methods.conformance import check_method
from autopeft.methods.merge import merged_state
from autopeft.methods.registry import METHODS

from .precise import check_bf16, moved, pixels
from .vit_by_hand import block

BOTH = [
    {"method": "ssf"},
    {"method": "ssf", "ops": "norm", "blocks": 2},
    {"method": "difffit"},
    {"method": "difffit", "per_channel": True, "blocks": 2},
    {"method": "difffit", "readout_block": 3},
    {"method": "bitfit", "which": "norm", "blocks": 2},
]
VIT = [
    {"method": "ssf", "ops": "linear", "blocks": 2},
    {"method": "ssf", "with_embed": True, "blocks": 2},
    {"method": "ssf", "readout": {"block": 3, "pool": "avg"}},
    {"method": "bitfit", "which": "linear", "blocks": 2},
    {"method": "bitfit", "which": "query_only"},
    {"strata": [{"method": "difffit", "blocks": [1, 4]}, {"method": "ssf", "blocks": [5, 5]}]},
]
CONVNEXT = [{"method": "bitfit", "which": "linear", "blocks": 2}]


@pytest.fixture(scope="module")
def scaled_vit():
    """With layer scale and mean pooling, as DINOv2 and MAE have them."""
    return random_backbone("test_vit2", 32)


def of(raw, network, seed=0):
    return build(network, canonical(raw, network.facts), 3, seed, 0)


@pytest.mark.parametrize("raw", [*BOTH, *VIT], ids=str)
def test_vit(vit, raw):
    check_method(raw, vit)
    check_bf16(raw, vit)


@pytest.mark.parametrize("raw", [BOTH[0], BOTH[2], BOTH[3], VIT[4]], ids=str)
def test_vit_with_layer_scale(scaled_vit, raw):
    check_method(raw, scaled_vit)
    check_bf16(raw, scaled_vit)


@pytest.mark.parametrize("raw", BOTH, ids=str)
def test_resnet(resnet, raw):
    check_method(raw, resnet)
    check_bf16(raw, resnet)


@pytest.mark.parametrize("raw", [*BOTH[:4], *CONVNEXT], ids=str)
def test_convnext(networks, raw):
    check_method(raw, networks["test_convnext"])
    check_bf16(raw, networks["test_convnext"])


@pytest.mark.parametrize("raw", [BOTH[0], BOTH[2]], ids=str)
def test_norms_that_hold_their_activation(networks, raw):
    check_method(raw, networks["test_efficientnet"])


def test_ssf_is_what_the_paper_says(vit):
    adapted, i = moved({"method": "ssf", "blocks": [3, 3]}, vit), 3
    plain = vit.model.state_dict()
    own = adapted.trainable

    def op(name, x, y):
        path = f"blocks.{i}.{name}"
        return own[f"{path}.ssf_scale"] * y + own[f"{path}.ssf_shift"]

    with torch.no_grad():
        x = vit.advance(0, pixels(vit), i)
        torch.testing.assert_close(
            adapted.network.run(x, i, i + 1), block(plain, i, x, vit.facts.heads, op)
        )


def test_ssf_counts(vit):
    d, m = 64, 192
    one = 2 * (3 * d + d + m + d) + 4 * d
    assert of({"method": "ssf", "blocks": [1, 2]}, vit).adapter_params == 2 * one
    assert of({"method": "ssf", "blocks": 2}, vit).adapter_params == 2 * one + 2 * d  # final norm
    more = {"method": "ssf", "blocks": [1, 2], "with_embed": True}
    assert of(more, vit).adapter_params == 2 * one + 2 * d
    assert of({"method": "ssf", "blocks": 2, "ops": "norm"}, vit).adapter_params == 10 * d


def test_ssf_with_the_embedding_leaves_no_prefix(vit):
    adapted = moved({"method": "ssf", "blocks": 1, "with_embed": True}, vit)
    assert adapted.first_block == 0
    assert not adapted.prefix_ok
    adapted.logits(pixels(vit)).square().sum().backward()
    assert adapted.trainable["patch_embed.proj.ssf_scale"].grad.abs().sum() > 0


def test_the_papers_init_moves_the_output_and_depends_on_the_repeat(vit):
    raw = {"method": "ssf", "init": "paper", "blocks": 2}
    check_method(raw, vit, identity=False)
    candidate = canonical(raw, vit.facts)
    first, again, other = (build(vit, candidate, 3, 0, repeat) for repeat in (0, 0, 1))
    name = "blocks.5.mlp.fc1.ssf_scale"
    assert torch.equal(first.trainable[name], again.trainable[name])
    assert not torch.equal(first.trainable[name], other.trainable[name])
    values = torch.cat([p for n, p in first.trainable.items() if n.endswith("scale")])
    assert abs(float(values.detach().mean()) - 1) < 0.005
    assert abs(float(values.detach().std()) - 0.02) < 0.003


def test_ssf_folds_each_of_two_consecutive_layers_for_itself(vit):
    adapted = moved({"method": "ssf", "blocks": [2, 2], "ops": "linear"}, vit)
    state, plain = merged_state(adapted), vit.model.state_dict()
    for name in ("blocks.2.mlp.fc1", "blocks.2.mlp.fc2"):
        scale, shift = (adapted.trainable[f"{name}.ssf_{w}"] for w in ("scale", "shift"))
        weight = scale[:, None] * plain[f"{name}.weight"]
        torch.testing.assert_close(state[f"{name}.weight"], weight)
        torch.testing.assert_close(state[f"{name}.bias"], scale * plain[f"{name}.bias"] + shift)


def test_after_folding_nothing_of_the_method_is_left(vit, resnet):
    for raw, network in (({"method": "ssf"}, vit), ({"method": "difffit"}, resnet)):
        adapted = moved(raw, network)
        fork = adapted.network.fork()
        METHODS[raw["method"]].fold(fork)
        assert fork.model.state_dict().keys() == adapted.network.fork(
            3
        ).model.state_dict().keys() - {
            n for n in adapted.trainable if "ssf_" in n or "difffit_" in n
        }
        assert not any(m._forward_hooks or "norm_changes" in vars(m) for m in fork.model.modules())
        x = pixels(network)
        with torch.no_grad():
            torch.testing.assert_close(fork.model(x), adapted.logits(x), rtol=1e-4, atol=1e-5)


def test_on_a_cnn_all_is_norm(resnet):
    spelled = [canonical({"method": "ssf", "ops": ops}, resnet.facts) for ops in ("all", "norm")]
    assert spelled[0] == spelled[1]
    adapted = of({"method": "ssf"}, resnet)
    assert all(".bn" in name or ".downsample.2." in name for name in list(adapted.trainable)[:-2])


def test_difffit_is_what_the_paper_says(vit):
    adapted, i = moved({"method": "difffit", "blocks": [3, 3]}, vit), 3
    state = dict(adapted.network.model.state_dict())
    factors = {
        n: adapted.trainable[f"blocks.3.{n}.difffit_scale"] for n in ("attn.proj", "mlp.fc2")
    }
    assert all(f.shape == (1,) for f in factors.values())

    def op(name, x, y):
        return factors[name] * y if name in factors else y

    with torch.no_grad():
        x = vit.advance(0, pixels(vit), i)
        torch.testing.assert_close(
            adapted.network.run(x, i, i + 1), block(state, i, x, vit.facts.heads, op)
        )


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet", "test_convnext"])
def test_factors_of_zero_make_the_branches_vanish(networks, scaled_vit, name):
    network = networks.get(name, scaled_vit)
    block = 0  # without a change of size
    adapted = of({"method": "difffit", "blocks": [block, block]}, network)
    zero = [p for n, p in adapted.trainable.items() if n.endswith("difffit_scale")]
    assert len(zero) == (2 if network.facts.family == "vit" else 1)
    with torch.no_grad():
        for factor in zero:
            factor.zero_()
        x = adapted.network.stem(pixels(network))
        shortcut = x.relu() if name == "test_resnet" else x
        torch.testing.assert_close(adapted.network.run(x, 0, 1), shortcut)


def test_difffit_folds_into_layer_scale_where_there_is_one(scaled_vit):
    adapted = moved({"method": "difffit", "blocks": [3, 3], "per_channel": True}, scaled_vit)
    factor = adapted.trainable["blocks.3.ls1.difffit_scale"]
    plain = scaled_vit.model.state_dict()["blocks.3.ls1.gamma"]
    state = merged_state(adapted)
    torch.testing.assert_close(state["blocks.3.ls1.gamma"], plain * factor)
    unchanged = scaled_vit.model.state_dict()["blocks.3.attn.proj.weight"]
    assert torch.equal(state["blocks.3.attn.proj.weight"], unchanged)


def test_difffit_counts(vit):
    d, m = 64, 192
    one = (3 * d + d + m + d) + 4 * d
    assert of({"method": "difffit", "blocks": 2}, vit).adapter_params == 2 * (one + 2)
    wide = {"method": "difffit", "blocks": 2, "per_channel": True}
    assert of(wide, vit).adapter_params == 2 * (one + 2 * d)


def test_query_only_leaves_the_keys_alone_and_is_a_bias(vit):
    adapted = moved({"method": "bitfit", "which": "query_only", "blocks": [3, 3]}, vit)
    (name,) = [n for n in adapted.trainable if not n.startswith("head")]
    vector, d = adapted.trainable[name].detach(), 64
    assert vector.shape == (2 * d,)
    state, plain = merged_state(adapted), vit.model.state_dict()
    changed = {
        n for n in plain if not n.startswith("head") and not torch.equal(state[n], plain[n])
    }
    assert changed == {"blocks.3.attn.qkv.bias"}
    moved_by = state["blocks.3.attn.qkv.bias"] - plain["blocks.3.attn.qkv.bias"]
    torch.testing.assert_close(moved_by[:d], vector[:d])
    torch.testing.assert_close(moved_by[2 * d :], vector[d:])
    assert not moved_by[d : 2 * d].any()


@pytest.mark.parametrize("which", ["all", "linear", "norm", "query_only"])
def test_bitfit_changes_no_matrix(vit, which):
    adapted = of({"method": "bitfit", "which": which}, vit)
    names = [n for n in adapted.trainable if not n.startswith("head")]
    assert all(adapted.trainable[n].ndim == 1 for n in names)
    if which in ("norm", "linear"):
        assert all((".norm" in n) == (which == "norm") for n in names)


def test_bitfit_on_a_network_with_biases_in_its_norms_only(resnet):
    spelled = [canonical({"method": "bitfit", "which": w}, resnet.facts) for w in ("all", "norm")]
    assert spelled[0] == spelled[1]


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("test_resnet", {"method": "ssf", "ops": "linear"}, "test_resnet is a CNN"),
        ("test_resnet", {"method": "ssf", "with_embed": True}, "test_resnet is a CNN"),
        ("test_vit", {"method": "ssf", "ops": "nrom"}, "all, linear, norm"),
        ("test_vit", {"method": "ssf", "init": "theirs"}, "ours, paper"),
        ("test_vit", {"method": "difffit", "per_channel": 1}, "true, false"),
        ("test_vit", {"method": "difffit", "modules": ["qkv"]}, "whole blocks"),
        ("test_resnet", {"method": "bitfit", "which": "query_only"}, "needs a qkv bias"),
    ],
)
def test_refusals(networks, name, raw, words):
    with pytest.raises(UserError, match=words):
        canonical(raw, networks[name].facts)


def test_refuses_norms_without_a_bias():
    facts = random_backbone("test_vit4", 32).facts
    with pytest.raises(UserError, match="without a bias"):
        canonical({"method": "ssf"}, facts)
    assert canonical({"method": "ssf", "ops": "linear"}, facts).strata


def test_refuses_the_embedding_in_two_strata(vit):
    strata = [
        {"method": "ssf", "with_embed": True, "blocks": [0, 1], "ops": "norm"},
        {"method": "ssf", "with_embed": True, "blocks": [2, 3]},
    ]
    with pytest.raises(UserError, match="one range of blocks"):
        of({"strata": strata}, vit)


def test_bf16_keeps_small_steps_of_a_scale():
    out = torch.full((4, 2), 100.0, dtype=torch.bfloat16)
    scale = torch.tensor([1.003, 1.0])  # 1.003 is 1 in bf16
    found = scaled(out, scale, torch.tensor([0.0, 1.0]))
    assert found.dtype == torch.bfloat16
    assert found[0].tolist() == [100.5, 101.0]
    conv = nn.Conv2d(1, 2, 1)
    torch.testing.assert_close(
        scaled(conv(torch.ones(1, 1, 3, 3)), scale, scale, 1),
        (conv(torch.ones(1, 1, 3, 3)).permute(0, 2, 3, 1) * scale + scale).permute(0, 3, 1, 2),
    )
