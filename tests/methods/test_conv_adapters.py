"""Adapters with a convolution between tokens."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.added import over_grid
from autopeft.methods.conformance import check_method

from .precise import check_bf16, moved, pixels, some

VIT = [
    {"method": "adapter_convpass"},
    {"method": "adapter_convpass", "where": "mlp", "init": "xavier", "blocks": 2},
    {"method": "adapter_conformer"},
    {"method": "adapter_conformer", "conv": "grid5", "where": "attn", "blocks": 3, "dropout": 0.1},
    {"method": "adapter_conformer", "readout": {"block": 3, "pool": "avg"}},
    {
        "strata": [
            {"method": "adapter_convpass", "blocks": [1, 4], "r": 4},
            {"method": "adapter_conformer", "blocks": [3, 5], "r": 4, "kernel": 5},
            {"method": "lora", "blocks": [2, 5]},
        ]
    },
]
CNN = [
    {"method": "adapter_convpass"},
    {"method": "adapter_conformer"},
    {"method": "adapter_conformer", "conv": "grid5", "blocks": 2, "readout_block": 4},
]


@pytest.mark.parametrize("raw", some(VIT, 1, 3, 5), ids=str)
def test_vit_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_vit"])


@pytest.mark.parametrize("raw", some(CNN, 0, 1), ids=str)
def test_resnet_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_resnet"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_other_cnns_keep_the_contract(networks, name):
    check_method(CNN[0], networks[name])
    check_method(CNN[1], networks[name])


@pytest.mark.parametrize("raw", VIT, ids=str)
def test_bf16_on_a_vit(networks, raw):
    check_bf16(raw, networks["test_vit"])


@pytest.mark.parametrize("raw", CNN[:2], ids=str)
def test_bf16_on_a_cnn(networks, raw):
    check_bf16(raw, networks["test_resnet"])


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("grid", [(2, 3), (4, 4)])
def test_the_convolution_runs_over_patches_and_leaves_other_tokens_alone(grid, first, depthwise):
    torch.manual_seed(0)
    height, width = grid
    x = torch.randn(2, first + height * width, 6)
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6 if depthwise else 1)
    with torch.no_grad():
        out = over_grid(x, grid, conv.weight, conv.bias, conv.groups)
        assert out.shape == x.shape
        for image in range(2):
            for token in range(first):  # an image of one pixel
                alone = conv(x[image, token].view(1, 6, 1, 1)).flatten()
                torch.testing.assert_close(out[image, token], alone)
            for row in range(height):  # the kernel written out, neighbor by neighbor
                for column in range(width):
                    total = conv.bias.clone()
                    for i in range(-1, 2):
                        for j in range(-1, 2):
                            if 0 <= row + i < height and 0 <= column + j < width:
                                near = x[image, first + (row + i) * width + column + j]
                                kernel = conv.weight[:, :, i + 1, j + 1]
                                total += (kernel[:, 0] * near) if depthwise else kernel @ near
                    torch.testing.assert_close(out[image, first + row * width + column], total)


def test_the_identity_kernel_gives_every_grid_back():
    weight = nn.init.dirac_(torch.empty(6, 6, 3, 3))
    for first in (0, 1, 5):
        x = torch.randn(2, first + 6, 6)
        assert torch.allclose(over_grid(x, (2, 3), weight, torch.zeros(6), 1), x, atol=1e-6)


def test_convpass_computes_the_formula_beside_both_branches(networks):
    vit = networks["test_vit"]
    adapted = moved({"method": "adapter_convpass", "r": 4, "scale": 0.5, "blocks": [2, 2]}, vit)
    p, block, grid = adapted.trainable, vit.model.blocks[2], vit.model.patch_embed.grid_size

    def bypass(x, branch):
        get = {
            n: p[f"blocks.2.adapter_convpass_{branch}.{n}"]
            for n in (
                "down.weight",
                "down.bias",
                "conv.weight",
                "conv.bias",
                "up.weight",
                "up.bias",
            )
        }
        h = functional.gelu(x @ get["down.weight"].T + get["down.bias"])
        image = h[:, 1:].transpose(1, 2).unflatten(2, grid)
        kernel = get["conv.weight"], get["conv.bias"]
        image = functional.conv2d(image, *kernel, padding=1).flatten(2).transpose(1, 2)
        token = functional.conv2d(h[:, :1].transpose(1, 2)[..., None], *kernel, padding=1)
        h = functional.gelu(torch.cat([token[..., 0].transpose(1, 2), image], 1))
        return 0.5 * (h @ get["up.weight"].T + get["up.bias"])

    with torch.no_grad():
        x = vit.advance(0, pixels(vit), 2)
        n = block.norm1(x)
        y = x + block.ls1(block.attn(n)) + bypass(n, "attn")
        n = block.norm2(y)
        expected = y + block.ls2(block.mlp(n)) + bypass(n, "mlp")
        torch.testing.assert_close(adapted.network.run(x, 2, 3), expected, rtol=1e-4, atol=1e-5)


def test_conformer_computes_the_formula_along_the_tokens(networks):
    vit = networks["test_vit"]
    raw = {"method": "adapter_conformer", "r": 4, "kernel": 3, "where": "mlp", "blocks": [2, 2]}
    adapted = moved(raw, vit)
    p, block = adapted.trainable, vit.model.blocks[2]
    path = "blocks.2.adapter_conformer_mlp"
    assert p[f"{path}.conv.weight"].shape == (4, 1, 3)

    def norm(x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-6).sqrt() * p[f"{path}.{name}.weight"] + p[
            f"{path}.{name}.bias"
        ]

    with torch.no_grad():
        x = vit.advance(0, pixels(vit), 2)
        y = x + block.ls1(block.attn(block.norm1(x)))
        h = norm(y, "norm") @ p[f"{path}.down.weight"].T + p[f"{path}.down.bias"]
        h = h[..., :4] * h[..., 4:].sigmoid()
        zero = torch.zeros_like(h[:, :1])
        padded = torch.cat([zero, h, zero], 1)
        kernel = p[f"{path}.conv.weight"][:, 0]
        h = sum(padded[:, i : i + h.shape[1]] * kernel[:, i] for i in range(3))
        h = norm(h + p[f"{path}.conv.bias"], "mid")
        h = (h * h.sigmoid()) @ p[f"{path}.up.weight"].T + p[f"{path}.up.bias"]
        expected = y + block.ls2(block.mlp(block.norm2(y))) + h
        torch.testing.assert_close(adapted.network.run(x, 2, 3), expected, rtol=1e-4, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "adapter_conformer"}, vit), pixels(vit, 3)
    with torch.no_grad():
        torch.testing.assert_close(adapted.logits(x)[:1], adapted.logits(x[:1]))


def test_gradients_reach_the_convolution_which_tells_two_grids_apart(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "adapter_convpass", "blocks": 2}, vit), pixels(vit)
    block = adapted.network.block_names(vit.depth - 2)
    adapted.pooled(x).sum().backward()
    found = adapted.trainable[f"{block}.adapter_convpass_attn.conv.weight"].grad
    assert (found.abs().sum((0, 1)) > 0).all()  # the neighbors too, not the center alone


def test_sizes_by_hand(networks):
    facts = networks["test_vit"].facts
    for raw, expected in (
        ({"method": "adapter_convpass", "r": 8}, 2 * (2 * 64 * 8 + 9 * 64 + 8 + 8 + 64)),
        (
            {"method": "adapter_conformer", "r": 8, "where": "mlp", "kernel": 7},
            2 * 64 + (2 * 8 * 64 + 2 * 8) + (8 * 7 + 8) + 2 * 8 + (8 * 64 + 64),
        ),
    ):
        candidate = canonical({**raw, "blocks": [0, 0]}, facts)
        assert build(networks["test_vit"], candidate, 3, 0, 0).adapter_params == expected


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"method": "adapter_conformer", "kernel": 8}, "odd number from 3 to 63"),
        ({"method": "adapter_conformer", "conv": "grid7"}, "Choose: line, grid3, grid5"),
        ({"method": "adapter_convpass", "scale": 20}, "from 0.01 to 10"),
        ({"method": "adapter_convpass", "r": 0}, "from 1 to 256"),
    ],
)
def test_a_wrong_option_is_refused_with_its_range(networks, raw, words):
    with pytest.raises(UserError, match=words):
        canonical(raw, networks["test_vit"].facts)


def test_fields_without_effect_are_not_told_apart(networks):
    def mark(name, **raw):
        return canonical({"method": "adapter_conformer", **raw}, networks[name].facts).fingerprint

    assert mark("test_vit", conv="grid3", kernel=7) == mark("test_vit", conv="grid3", kernel=9)
    assert mark("test_vit", kernel=7) != mark("test_vit", kernel=9)
    assert mark("test_resnet", where="mlp") == mark("test_resnet", conv="grid3", kernel=9)
