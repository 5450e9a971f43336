"""Dynamic prompts: made from each image, given back to its tokens."""

import pytest
import torch

from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.conformance import check_method

from .precise import check_bf16, moved, pixels, some

VIT = [
    {"method": "dvpt"},
    {"method": "dvpt", "share": True, "blocks": 3, "r": 8, "p": 3, "scale": 0.5},
    {"method": "dvpt", "r": 8, "readout": {"block": 3, "pool": "token+avg"}},
    {
        "strata": [
            {"method": "dvpt", "blocks": [1, 2], "r": 4, "share": True},
            {"method": "dvpt", "blocks": [4, 5], "r": 4},
            {"method": "lora", "blocks": [2, 5]},
            {"method": "vpt_deep", "blocks": [3, 4], "p": 2},
        ]
    },
]
CNN = [{"method": "dvpt", "r": 8}, {"method": "dvpt", "blocks": 2, "readout_block": 3}]


@pytest.mark.parametrize("raw", some(VIT, 1, 3), ids=str)
def test_vit_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_vit"], identity="strata" not in raw)


@pytest.mark.parametrize("raw", some(CNN, 0), ids=str)
@pytest.mark.parametrize(
    "name", ["test_resnet", pytest.param("test_convnext", marks=pytest.mark.slow)]
)
def test_cnns_keep_the_contract(networks, name, raw):
    check_method(raw, networks[name])


@pytest.mark.parametrize("raw", VIT, ids=str)
def test_bf16_on_a_vit(networks, raw):
    check_bf16(raw, networks["test_vit"])


def test_bf16_on_a_cnn(networks):
    check_bf16(CNN[0], networks["test_resnet"])


def given_back(x, p, path, scale):
    """The formula, image by image."""
    rows = []
    for tokens in x:
        z = torch.nn.functional.gelu(tokens @ p[f"{path}.down.weight"].T + p[f"{path}.down.bias"])
        r = z.shape[1]
        e = torch.softmax(p[f"{path}.queries"] @ z.T / r**0.5, 1) @ z
        a = torch.softmax(z @ e.T / r**0.5, 1) @ e
        rows.append(tokens + scale * (a @ p[f"{path}.up.weight"].T + p[f"{path}.up.bias"]))
    return torch.stack(rows)


def test_a_block_computes_the_formula(networks):
    vit, resnet = networks["test_vit"], networks["test_resnet"]
    raw = {"method": "dvpt", "r": 8, "p": 3, "scale": 0.5, "blocks": [2, 2]}
    for network in (vit, resnet):
        adapted = moved(raw, network, by=0.1)
        path = f"{network.block_names(2)}.dvpt"
        with torch.no_grad():
            x = network.advance(0, pixels(network), 2)
            plain = network.run(x, 2, 3)
            tokens = plain if plain.ndim == 3 else plain.flatten(2).transpose(1, 2)
            expected = given_back(tokens, adapted.trainable, path, 0.5)
            if plain.ndim == 4:
                expected = expected.transpose(1, 2).reshape(plain.shape)
            found = adapted.network.run(x, 2, 3)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_image_has_prompts_of_its_own(networks):
    vit = networks["test_vit"]
    adapted = moved({"method": "dvpt", "p": 3, "r": 8, "blocks": 1}, vit)
    module, z = adapted.network.model.blocks[5].dvpt, torch.randn(2, 17, 8)
    with torch.no_grad():
        found = module.prompts(z)
        assert found.shape == (2, 3, 8)
        assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_a_shared_module_is_one_object_for_its_blocks(networks):
    vit = networks["test_vit"]
    shared = build(vit, canonical({"method": "dvpt", "share": True}, vit.facts), 3, 0, 0)
    alone = build(vit, canonical({"method": "dvpt"}, vit.facts), 3, 0, 0)
    one = 2 * 64 * 32 + 8 * 32 + 32 + 64
    assert (shared.adapter_params, alone.adapter_params) == (one, 6 * one)
    # R0: the shared module acts in the last block too.
    with torch.no_grad():
        state = vit.advance(0, pixels(vit), 5)
        plain = vit.run(state, 5, 6)
        shared.trainable["blocks.0.dvpt.up.bias"].fill_(1.0)
        torch.testing.assert_close(shared.network.run(state, 5, 6), plain + 1)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("test_vit", {"method": "dvpt", "r": 0}, "from 1 to 512"),
        ("test_vit", {"method": "dvpt", "p": 0}, "from 1 to 128"),
        ("test_vit", {"method": "dvpt", "shared": True}, "unknown option 'shared'"),
        ("test_resnet", {"method": "dvpt", "share": True}, "needs blocks of one width"),
    ],
)
def test_refusals(networks, name, raw, words):
    with pytest.raises(UserError, match=words):
        canonical(raw, networks[name].facts)
