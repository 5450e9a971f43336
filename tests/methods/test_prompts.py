"""Prompts: where they enter, where they leave, what a block computes with them."""

import math

import pytest
import timm
import torch

from autopeft.backbones.describe import network_of
from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.conformance import check_method
from autopeft.methods.hooks import carry

from .precise import check_bf16, moved, pixels, some

PLAIN = [
    {"method": "vpt_shallow"},
    {"method": "vpt_shallow", "blocks": [2, 3], "p": 3, "dropout": 0.1},
    {"method": "vpt_deep"},
    {"method": "vpt_deep", "blocks": 2, "p": 1, "readout": {"block": 5, "pool": "token+avg"}},
    {"method": "vpt_shallow", "readout": {"block": 3, "pool": "avg"}},
    {"method": "vpt_deep", "blocks": {"mask": [1, 0, 0, 1, 1, 0]}, "drop_path": 0.1},
]
MIXED = [
    {
        "strata": [
            {"method": "vpt_shallow", "blocks": [1, 4], "p": 3},
            {"method": "vpt_deep", "blocks": [3, 5], "p": 2},
            {"method": "lora", "blocks": [2, 5]},
            {"method": "adapter_convpass", "blocks": [2, 4], "r": 4},
            {"method": "unipt", "blocks": [2, 5]},
            {"method": "bitfit", "which": "norm", "blocks": [4, 5]},
        ]
    },
]


@pytest.mark.parametrize("raw", some([*PLAIN, *MIXED], 1, 3, 5, 6), ids=str)
def test_it_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_vit"], identity=False)


@pytest.mark.parametrize("raw", [*PLAIN, *MIXED], ids=str)
def test_bf16(networks, raw):
    check_bf16(raw, networks["test_vit"])


def tokens_inside(adapted, x):
    """Tokens that each block's attention sees, and those between blocks."""
    inside, between = {}, {}
    for i, block in enumerate(adapted.network.blocks):

        def see(module, args, i=i):
            inside[i] = args[0].shape[1]

        def leave(module, args, out, i=i):
            between[i] = out.shape[1]

        block.attn.register_forward_pre_hook(see)
        block.register_forward_hook(leave)
    with torch.no_grad():
        adapted.pooled(x)
    return inside, between


def test_prompts_are_inside_their_blocks_and_nowhere_else(networks):
    vit = networks["test_vit"]
    n = vit.facts.shapes[0][0]
    for name in ("vpt_shallow", "vpt_deep"):
        adapted = moved({"method": name, "p": 7, "blocks": [1, 3]}, vit)
        inside, between = tokens_inside(adapted, pixels(vit))
        assert inside == {0: n, 1: n + 7, 2: n + 7, 3: n + 7, 4: n, 5: n}
        assert set(between.values()) == {n}
    inside, between = tokens_inside(moved(MIXED[0], vit), pixels(vit))
    assert inside == {0: n, 1: n + 3, 2: n + 3, 3: n + 5, 4: n + 5, 5: n + 2}
    assert set(between.values()) == {n}


def by_hand(network, x, prompts, stop):
    """The paper's forward pass; prompts: block -> what is put in (None: what came out below)."""
    state, carried, first = network.stem(x), None, network.model.num_prefix_tokens
    for i in range(stop):
        if i not in prompts:
            state = network.model.blocks[i](state)
            continue
        new = prompts[i]
        carried = carried if new is None else new.expand(len(x), -1, -1)
        p = carried.shape[1]
        state = torch.cat([state[:, :first], carried, state[:, first:]], 1)
        state = network.model.blocks[i](state)
        carried = state[:, first : first + p]
        state = torch.cat([state[:, :first], state[:, first + p :]], 1)
    return state


def test_shallow_computes_the_paper_s_forward_pass(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "vpt_shallow", "p": 4}, vit, by=0.3), pixels(vit)
    prompts = {0: adapted.trainable["blocks.0.vpt_shallow"]} | dict.fromkeys(range(1, 6))
    with torch.no_grad():
        expected = by_hand(vit, x, prompts, 6)
        torch.testing.assert_close(adapted.network.advance(0, x, 6), expected)
        # Carried prompts matter: without them blocks above the first compute something else.
        alone = by_hand(vit, x, {0: prompts[0]}, 6)
        assert not torch.allclose(alone, expected, atol=1e-3)


def test_deep_replaces_the_prompts_at_each_block(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "vpt_deep", "p": 4, "blocks": [2, 4]}, vit, by=0.3), pixels(vit)
    prompts = {i: adapted.trainable[f"blocks.{i}.vpt_deep"] for i in (2, 3, 4)}
    with torch.no_grad():
        expected = by_hand(vit, x, prompts, 6)
        torch.testing.assert_close(adapted.network.advance(0, x, 6), expected)


def test_no_prompts_change_nothing(networks):
    vit = networks["test_vit"]
    x, fork = pixels(vit), networks["test_vit"].fork()
    for block in fork.blocks:
        carried = [torch.empty(0, 64)]
        carry(block, carried, 1, 0.0)
    with torch.no_grad():
        assert torch.equal(fork.advance(0, x, 6), vit.advance(0, x, 6))


def test_the_mean_over_patches_holds_no_prompt(networks):
    vit = networks["test_vit"]
    raw = {"method": "vpt_deep", "readout": {"block": 4, "pool": "avg"}}
    adapted, x = moved(raw, vit, by=0.3), pixels(vit)
    prompts = {i: adapted.trainable[f"blocks.{i}.vpt_deep"] for i in range(4)}
    with torch.no_grad():
        state = by_hand(vit, x, prompts, 4)
        expected = vit.model.fc_norm(vit.model.norm(state)[:, 1:].mean(1))
        torch.testing.assert_close(adapted.pooled(x), expected)


@pytest.mark.parametrize("extra", [{"class_token": False}, {"reg_tokens": 4}])
def test_other_counts_of_first_tokens(extra):
    torch.manual_seed(0)
    pool = "avg" if extra.get("class_token") is False else "token"
    model = timm.create_model("test_vit", num_classes=0, img_size=32, global_pool=pool, **extra)
    network = network_of(model, "test_vit")
    adapted, x = moved({"method": "vpt_shallow", "p": 4}, network, by=0.3), pixels(network)
    prompts = {0: adapted.trainable["blocks.0.vpt_shallow"]} | dict.fromkeys(range(1, 6))
    with torch.no_grad():
        expected = network.pooled(by_hand(network, x, prompts, 6), 6, pool)
        torch.testing.assert_close(adapted.pooled(x), expected)


def test_fresh_prompts_are_uniform_within_the_paper_s_bound(networks):
    vit = networks["test_vit"]
    raw = {"method": "vpt_deep", "p": 50}
    adapted = build(vit, canonical(raw, vit.facts), 3, 0, 0)
    values = torch.cat([p.flatten() for n, p in adapted.trainable.items() if "vpt" in n]).detach()
    bound = math.sqrt(6 / (3 * vit.facts.patch**2 + 64))
    assert 0.99 * bound < values.abs().max() <= bound
    assert abs(float(values.std()) - bound / math.sqrt(3)) < 0.01 * bound


def test_dropout_acts_in_training_only(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "vpt_deep", "dropout": 0.5}, vit, by=0.3), pixels(vit)
    with torch.no_grad():
        assert torch.equal(adapted.logits(x), adapted.logits(x))
        adapted.set_train(True)
        assert not torch.equal(adapted.logits(x), adapted.logits(x))


def test_a_broken_run_leaves_no_token_behind(networks):
    vit = networks["test_vit"]
    adapted, x = moved({"method": "vpt_shallow", "p": 4}, vit), pixels(vit)
    with torch.no_grad():
        expected = adapted.logits(x)
        handle = adapted.network.model.blocks[3].mlp.register_forward_pre_hook(lambda m, a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adapted.logits(x)
        handle.remove()
        assert torch.equal(adapted.logits(x), expected)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("test_vit", {"method": "vpt_deep", "p": 0}, "from 1 to 200"),
        ("test_vit", {"method": "vpt_deep", "modules": "qkv"}, "works on whole blocks"),
        ("test_resnet", {"method": "vpt_deep"}, "is a CNN: it has no tokens"),
        ("test_convnext", {"method": "vpt_shallow"}, "is a CNN: it has no tokens"),
    ],
)
def test_refusals(networks, name, raw, words):
    with pytest.raises(UserError, match=words):
        canonical(raw, networks[name].facts)
