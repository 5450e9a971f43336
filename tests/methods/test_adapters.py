"""Bottleneck adapters: where they sit and what they compute."""

import pytest
import torch
from torch.nn import functional

from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.conformance import check_method

from .precise import check_bf16, moved, pixels, some

VIT = [
    {"method": "adapter_houlsby"},
    {"method": "adapter_houlsby", "blocks": 2, "r": 4, "norm_in": True, "learn_scale": True},
    {"method": "adapter_pfeiffer", "blocks": 2, "scale": 0.5, "learn_scale": True},
    {"method": "adapter_parallel", "scale": 1.0},
    {"method": "adapter_parallel", "scale": 1.0, "norm_in": True, "where": "attn", "dropout": 0.1},
    {"method": "multiway_adapter", "blocks": 3, "enhancer": True},
    {"method": "adapter_houlsby", "readout": {"block": 3, "pool": "token+avg"}},
    {
        "strata": [
            {"method": "adapter_houlsby", "blocks": [1, 4], "r": 4},
            {"method": "adapter_pfeiffer", "blocks": [3, 5], "r": 4},
            {"method": "lora", "blocks": [2, 5]},
            {"method": "bitfit", "which": "norm", "blocks": [4, 5]},
        ]
    },
    {
        "strata": [
            {"method": "adapter_pfeiffer", "blocks": [1, 2], "r": 4},
            {"method": "adapter_pfeiffer", "blocks": [4, 5], "r": 2},
            {"method": "full", "blocks": [3, 3]},
        ]
    },
]
CNN = [
    {"method": "adapter_pfeiffer", "norm_in": True, "learn_scale": True},
    {"method": "adapter_parallel", "scale": 1.0},
    {"method": "multiway_adapter", "blocks": 2, "r": 16, "enhancer": True},
    {"method": "adapter_parallel", "scale": 1.0, "blocks": 2, "readout_block": 3},
    {
        "strata": [
            {"method": "adapter_pfeiffer", "blocks": [1, 2], "r": 4},
            {"method": "lora", "blocks": [0, 2], "r": 4},
        ]
    },
]


@pytest.mark.parametrize("raw", some(VIT, 1, 2, 4, 5, 7), ids=str)
def test_vit_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_vit"])


@pytest.mark.parametrize("raw", some(CNN, 0, 1, 3), ids=str)
def test_resnet_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_resnet"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_other_cnns_keep_the_contract(networks, name):
    check_method(CNN[0], networks[name])
    check_method(CNN[1], networks[name])


@pytest.mark.parametrize("raw", [*VIT[:6], VIT[7]], ids=str)
def test_bf16_on_a_vit(networks, raw):
    check_bf16(raw, networks["test_vit"])


@pytest.mark.parametrize("raw", CNN[:3], ids=str)
def test_bf16_on_a_cnn(networks, raw):
    check_bf16(raw, networks["test_resnet"])


def bottleneck(x, p, path, act, scale, norm=False):
    """s (U act(V n(x)) + c), written out."""
    if norm:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        x = (x - mean) / (var + 1e-6).sqrt() * p[f"{path}.norm.weight"] + p[f"{path}.norm.bias"]
    x = act(x @ p[f"{path}.down.weight"].T + p[f"{path}.down.bias"])
    return scale * (x @ p[f"{path}.up.weight"].T + p[f"{path}.up.bias"])


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def relu(x):
    return x.clamp(min=0)


@pytest.mark.parametrize(
    "raw",
    [
        {"method": "adapter_houlsby", "r": 4, "norm_in": True},
        {"method": "adapter_pfeiffer", "r": 4, "scale": 0.3},
        {"method": "adapter_parallel", "r": 4, "scale": 0.7, "norm_in": True},
        {"method": "adapter_parallel", "r": 4, "scale": 0.7, "where": "attn"},
        {"method": "multiway_adapter", "r": 4, "enhancer": True},
    ],
    ids=str,
)
def test_a_block_computes_the_formula(networks, raw):
    vit = networks["test_vit"]
    adapted = moved({**raw, "blocks": [2, 2]}, vit)
    name, p, block = raw["method"], adapted.trainable, vit.model.blocks[2]
    s, path = raw.get("scale", 1.0), f"blocks.2.{raw['method']}"
    with torch.no_grad():
        x = vit.advance(0, pixels(vit), 2)
        attn = block.ls1(block.attn(block.norm1(x)))
        if name == "adapter_houlsby":
            attn = attn + bottleneck(attn, p, f"{path}_attn", gelu, s, True)
        if raw.get("where") == "attn":
            attn = attn + bottleneck(x, p, f"{path}_attn", relu, s)
        y = x + attn
        mlp = block.ls2(block.mlp(block.norm2(y)))
        if name in ("adapter_houlsby", "adapter_pfeiffer"):
            mlp = mlp + bottleneck(mlp, p, f"{path}_mlp", gelu, s, "norm_in" in raw)
        elif name == "adapter_parallel" and "where" not in raw:
            mlp = mlp + bottleneck(y, p, f"{path}_mlp", relu, s, True)
        elif name == "multiway_adapter":
            mlp = mlp + bottleneck(y, p, f"{path}_mlp", relu, 0.6, True)
        out = y + mlp
        if name == "multiway_adapter":
            out = out + bottleneck(out, p, f"{path}_enhancer", relu, 1.0, True)
        torch.testing.assert_close(adapted.network.run(x, 2, 3), out, rtol=1e-4, atol=1e-5)


def test_a_cnn_block_computes_the_formula_with_its_stride(networks):
    resnet = networks["test_resnet"]
    block = next(
        b for b in range(1, resnet.depth) if resnet.facts.shapes[b] != resnet.facts.shapes[b + 1]
    )
    raw = {"method": "adapter_parallel", "r": 4, "scale": 0.7, "blocks": [block, block]}
    adapted = moved(raw, resnet)
    path = f"{resnet.block_names(block)}.adapter_parallel_block"
    p = adapted.trainable
    with torch.no_grad():
        x = resnet.advance(0, pixels(resnet), block)
        plain = resnet.run(x, block, block + 1)
        stride = x.shape[2] // plain.shape[2]
        assert stride == 2
        v, u = (p[f"{path}.{n}.weight"][..., None, None] for n in ("down", "up"))
        h = functional.conv2d(x, v, p[f"{path}.down.bias"], stride=stride).relu()
        expected = plain + 0.7 * functional.conv2d(h, u, p[f"{path}.up.bias"])
        found = adapted.network.run(x, block, block + 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_there_are_one_or_two_modules_a_block(networks):
    vit = networks["test_vit"]
    for name, expected in (("adapter_houlsby", 2), ("adapter_pfeiffer", 1)):
        adapted = build(vit, canonical({"method": name, "blocks": 3}, vit.facts), 3, 0, 0)
        assert sum(n.endswith("down.weight") for n in adapted.trainable) == 3 * expected
        assert adapted.adapter_params == 3 * expected * (2 * 64 * 16 + 16 + 64)


def test_a_scale_of_zero_is_the_backbone_whatever_was_trained(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "adapter_parallel", "blocks": 2}, vit), pixels(vit)
    with torch.no_grad():
        plain = vit.advance(0, x, vit.depth)
        assert not torch.allclose(adapted.network.advance(0, x, vit.depth), plain)
        for block in (4, 5):
            adapted.network.model.blocks[block].adapter_parallel_mlp.scale = 0.0
        assert torch.equal(adapted.network.advance(0, x, vit.depth), plain)


def test_multiway_is_a_preset_of_the_parallel_adapter(networks):
    vit = networks["test_vit"]
    preset = moved({"method": "multiway_adapter", "r": 8}, vit)
    raw = {"method": "adapter_parallel", "r": 8, "norm_in": True, "scale": 0.6}
    explicit = moved(raw, vit)
    explicit.load_tensors(
        {k.replace("multiway_adapter", "adapter_parallel"): v for k, v in preset.tensors().items()}
    )
    with torch.no_grad():
        assert torch.equal(preset.logits(pixels(vit)), explicit.logits(pixels(vit)))


def test_dropout_acts_in_training_only(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "adapter_pfeiffer", "dropout": 0.5}, vit, by=0.3), pixels(vit)
    with torch.no_grad():
        assert torch.equal(adapted.logits(x), adapted.logits(x))
        adapted.set_train(True)
        assert not torch.equal(adapted.logits(x), adapted.logits(x))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"method": "adapter_houlsby", "r": 0}, "from 1 to 1024"),
        ({"method": "adapter_parallel", "scale": 0}, "from 0.01 to 10"),
        ({"method": "adapter_parallel", "where": "both"}, "Choose: mlp, attn"),
        ({"method": "adapter_pfeiffer", "dropout": 1}, "from 0 to 0.9"),
        ({"method": "multiway_adapter", "scale": 1}, "unknown option 'scale'"),
    ],
)
def test_a_wrong_option_is_refused_with_its_range(networks, raw, words):
    with pytest.raises(UserError, match=words):
        canonical(raw, networks["test_vit"].facts)


def test_houlsby_is_refused_on_a_cnn_and_where_is_idle_there(networks):
    facts = networks["test_resnet"].facts
    with pytest.raises(UserError, match="no attention and MLP. Choose adapter_pfeiffer"):
        canonical({"method": "adapter_houlsby"}, facts)
    one, other = (
        canonical({"method": "adapter_parallel", "where": w}, facts) for w in ("mlp", "attn")
    )
    assert one.fingerprint == other.fingerprint
