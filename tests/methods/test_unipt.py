"""The side network: it reads frozen states, and nothing goes back into the backbone."""

import pytest
import torch

from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.conformance import check_method
from autopeft.methods.side import Side

from .precise import check_bf16, moved, pixels, some

EVERY = [
    {"method": "unipt"},
    {"method": "unipt", "blocks": 4, "every": 2, "f": 4},
    {"method": "unipt", "blocks": 1},
    {"method": "unipt", "blocks": [0, 1], "readout_block": 3},
]
VIT = [
    {"method": "unipt", "residual": False},
    {"method": "unipt", "blocks": 2, "readout": {"block": 5, "pool": "token+avg"}},
    {"strata": [{"method": "unipt", "blocks": [0, 1]}, {"method": "unipt", "blocks": [4, 5]}]},
    {
        "strata": [
            {"method": "unipt", "blocks": [1, 4]},
            {"method": "lora", "blocks": [3, 5]},
            {"method": "adapter_pfeiffer", "blocks": [2, 2], "r": 4},
        ]
    },
]


@pytest.mark.parametrize("raw", some([*EVERY, *VIT], 1, 2, 4, 6, 7), ids=str)
def test_vit_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_vit"], identity=raw.get("residual", True))


@pytest.mark.parametrize("raw", some(EVERY, 1, 3), ids=str)
def test_resnet_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_resnet"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_other_cnns_keep_the_contract(networks, name):
    check_method(EVERY[0], networks[name])


@pytest.mark.parametrize("raw", [*EVERY, *VIT], ids=str)
def test_bf16_on_a_vit(networks, raw):
    check_bf16(raw, networks["test_vit"])


def test_bf16_on_a_cnn(networks):
    check_bf16(EVERY[0], networks["test_resnet"])


def layer_norm(x, p, path):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-6).sqrt() * p[f"{path}.weight"] + p[f"{path}.bias"]


def by_hand(states, last, p, path):
    """The paper's formula, image by image and layer by layer."""

    def down(x, name):
        linear = x @ p[f"{path}.{name}.linear.weight"].T + p[f"{path}.{name}.linear.bias"]
        return layer_norm(linear, p, f"{path}.{name}.norm")

    out = []
    for image in range(len(last)):
        a = down(last[image], "anchor")
        ds = [down(state[image], f"taps.{i}") for i, state in enumerate(states)]
        logits = torch.stack([(a.mean(0) * d.mean(0)) @ p[f"{path}.gate.weight"][0] for d in ds])
        total = torch.zeros_like(a)
        for gate, d in zip(logits.softmax(0), ds, strict=True):
            w = (a @ d.T).clamp(min=0)
            w = w / w.sum(1, keepdim=True).clamp(min=1e-6) + torch.eye(len(d))
            total = total + gate * (w @ d)
        h = (a + down(total, "project")).clamp(min=0)
        out.append(h @ p[f"{path}.up.weight"].T + p[f"{path}.up.bias"])
    return torch.stack(out)


@pytest.mark.parametrize("residual", [True, False])
def test_it_computes_the_formula(networks, residual):
    vit = networks["test_vit"]
    raw = {"method": "unipt", "blocks": [1, 4], "every": 2, "residual": residual}
    adapted, x = moved(raw, vit, by=0.1), pixels(vit)
    with torch.no_grad():
        states = [vit.advance(0, x, i) for i in range(7)]
        side = by_hand([states[1], states[3]], states[6], adapted.trainable, "blocks.5.unipt_0")
        expected = vit.pooled(side + residual * states[6], 6, vit.facts.own_pool)
        torch.testing.assert_close(adapted.pooled(x), expected, rtol=1e-4, atol=1e-4)


def test_maps_are_averaged_to_the_readout_s_grid(networks):
    resnet = networks["test_resnet"]
    adapted, x = moved({"method": "unipt"}, resnet, by=0.1), pixels(resnet)
    depth = resnet.depth
    with torch.no_grad():
        states = [resnet.advance(0, x, i) for i in range(depth + 1)]
        last = states[-1]
        tokens = []
        for state in states:
            side = state.shape[2] // last.shape[2]
            pooled = torch.nn.functional.avg_pool2d(state, side)
            tokens.append(pooled.flatten(2).transpose(1, 2))
        path = f"{resnet.block_names(depth - 1)}.unipt_0"
        side = by_hand(tokens[:-1], tokens[-1], adapted.trainable, path)
        expected = last + side.transpose(1, 2).reshape(last.shape)
        found = adapted.network.advance(0, x, depth)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_backbone_needs_no_graph(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "unipt", "blocks": [2, 5]}, vit), pixels(vit)
    graphs = []
    for block in adapted.network.blocks:
        # Inside a block: what comes in, and what the MLP puts out, before the side network adds.
        block.register_forward_pre_hook(lambda m, a: graphs.append(a[0].requires_grad))
        block.mlp.register_forward_hook(lambda m, a, out: graphs.append(out.requires_grad))
    adapted.set_train(True)
    adapted.logits(x).sum().backward()
    assert graphs == [False] * 12
    assert adapted.first_block == 2
    assert all(p.grad is not None for p in adapted.trainable.values())


def test_what_trains_below_learns_through_the_side_network_too(networks):
    vit = networks["test_vit"]
    lora = {"method": "lora", "blocks": [1, 1]}
    mixed = {"strata": [lora, {"method": "unipt", "blocks": [2, 5], "residual": False}]}
    check_method(mixed, vit, identity=False)  # all that is declared moves


def test_gates_sum_to_1_and_one_layer_needs_none():
    torch.manual_seed(0)
    side = Side([6, 6, 6], 6, 4, zero=True)
    anchor, tapped = torch.randn(2, 5, 4), [torch.randn(2, 5, 4) for _ in range(3)]
    gates = side.gates(anchor, tapped)
    assert gates.shape == (2, 3)
    torch.testing.assert_close(gates.sum(1), torch.ones(2))
    one = Side([6], 6, 4, zero=True)
    assert one.gate is None
    assert torch.equal(one.gates(anchor, tapped[:1]), torch.ones(2, 1))


def test_nothing_is_kept_between_images(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "unipt"}, vit), pixels(vit, 3)
    with torch.no_grad():
        expected = adapted.logits(x)
        handle = adapted.network.model.blocks[3].mlp.register_forward_pre_hook(lambda m, a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adapted.logits(x)
        handle.remove()
        assert torch.equal(adapted.logits(x), expected)
        torch.testing.assert_close(adapted.logits(x[:1]), expected[:1])


def test_size_by_hand(networks):
    vit = networks["test_vit"]
    candidate = canonical({"method": "unipt", "f": 4, "blocks": 3}, vit.facts)
    m, d = 16, 64
    expected = 4 * (m * d + m + 2 * m) + (m * m + m + 2 * m) + m + (m * d + d)
    assert build(vit, candidate, 3, 0, 0).adapter_params == expected


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"method": "unipt", "f": 17}, "from 1 to 16"),
        ({"method": "unipt", "every": 4}, "from 1 to 3"),
        (
            {
                "strata": [
                    {"method": "unipt", "blocks": [0, 1], "residual": False},
                    {"method": "unipt", "blocks": [3, 3]},
                ]
            },
            "differ in residual",
        ),
    ],
)
def test_refusals(networks, raw, words):
    with pytest.raises(UserError, match=words):
        canonical(raw, networks["test_vit"].facts)
