"""Head, seeds, modes, parameter groups and state of a built candidate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.lora import Lora
from autopeft.methods.merge import merged_state


def make(network, raw, outputs=3, seed=0, repeat=0):
    return build(network, canonical(raw, network.facts), outputs, seed, repeat)


def pixels(network, n=2, seed=0):
    size = network.facts.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_logits_at_timms_own_readout_are_timms_own(networks):
    for network in networks.values():
        adapted, x = make(network, {"method": "lora", "blocks": 2}), pixels(network)
        assert adapted.head is adapted.network.classifier
        with torch.no_grad():
            assert torch.equal(adapted.logits(x), adapted.network.model(x))


def test_an_early_readout_has_a_head_of_its_own_and_no_later_blocks(vit):
    adapted = make(vit, {"method": "lora", "readout_block": 4, "readout_pool": "token+avg"})
    assert adapted.head.weight.shape == (3, 128)
    assert not adapted.is_own_readout
    assert [type(b) for b in adapted.network.model.blocks[4:]] == [nn.Identity] * 2
    x = pixels(vit)
    with torch.no_grad():
        state = vit.advance(0, x, 4)
        want = vit.pooled(state, 4, "token+avg")
        assert torch.equal(adapted.pooled(x), want)
        assert torch.equal(adapted.logits(x), adapted.head(want))


def test_heads_depend_on_seed_repeat_and_shape_alone(vit):
    one = make(vit, {"method": "lora"}).head.weight
    assert torch.equal(one, make(vit, {"method": "bitfit", "lr": 0.1}).head.weight)
    avg = make(vit, {"method": "bitfit", "readout": {"block": 5, "pool": "avg"}}).head.weight
    assert torch.equal(one, avg)  # same shape, own module or not
    for other in ({"seed": 1}, {"repeat": 1}, {"outputs": 2}):
        assert not torch.equal(one[:2], make(vit, {"method": "lora"}, **other).head.weight[:2])
    assert 0.005 < one.std() < 0.02
    assert make(vit, {"method": "lora"}).head.bias.abs().max() == 0


def test_adapters_depend_on_seed_repeat_and_fingerprint(vit):
    def first(raw, **how):
        tensors = make(vit, raw, **how).tensors()
        return tensors["blocks.5.attn.qkv.lora_A.weight"]

    one = first({"method": "lora", "blocks": 1})
    assert torch.equal(one, first({"method": "lora", "blocks": [5, 5]}))
    assert not torch.equal(one, first({"method": "lora", "blocks": 1, "lr": 0.1}))
    assert not torch.equal(one, first({"method": "lora", "blocks": 1}, repeat=1))
    assert not torch.equal(one, first({"method": "lora", "blocks": 1}, seed=1))


def test_building_leaves_the_global_generator_alone(vit):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    make(vit, {"method": "lora"})
    make(vit, {"method": "lora", "readout_block": 3})
    assert torch.equal(torch.rand(3), want)


def test_first_block_and_prefix(vit):
    def where(raw):
        adapted = make(vit, raw)
        return adapted.first_block, adapted.prefix_ok

    assert where({"method": "linear_probe"}) == (6, True)
    assert where({"method": "linear_probe", "readout_block": 4}) == (4, True)
    assert where({"method": "lora"}) == (0, True)
    assert where({"method": "bitfit", "blocks": 2}) == (4, True)
    assert where({"method": "full", "blocks": [1, 5]}) == (1, True)
    assert where({"method": "full"}) == (0, False)
    strata = [{"method": "lora", "blocks": [3, 3]}, {"method": "bitfit", "blocks": [2, 5]}]
    assert where({"strata": strata}) == (2, True)


def test_starting_inside_the_trained_blocks_is_refused(vit):
    adapted, x = make(vit, {"method": "lora", "blocks": 2}), pixels(vit)
    state = vit.advance(0, x, 5)
    with pytest.raises(ValueError, match="cannot start at 5"):
        adapted.logits(state, start=5)


def test_dropout_acts_above_first_block_in_training_only(vit):
    adapted = make(vit, {"method": "lora", "blocks": 3, "lora_dropout": 0.5})
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(0.05)
        x = pixels(vit)
        quiet = adapted.logits(x)
        assert torch.equal(quiet, adapted.logits(x))
        adapted.set_train(True)
        modes = [block.training for block in adapted.network.blocks]
        assert modes == [False, False, False, True, True, True]
        assert not torch.equal(adapted.logits(x), adapted.logits(x))
        adapted.set_train(False)
        assert torch.equal(quiet, adapted.logits(x))


def test_drop_path_acts_above_first_block_in_training_only(vit):
    adapted = make(vit, {"method": "bitfit", "blocks": 3, "drop_path": 0.9})
    x = pixels(vit, 8)
    with torch.no_grad():
        quiet, below = adapted.logits(x), vit.advance(0, x, 3)
        adapted.set_train(True)
        assert torch.equal(adapted.network.advance(0, x, 3), below)
        torch.manual_seed(0)
        assert not torch.equal(adapted.logits(x), quiet)
        adapted.set_train(False)
        assert torch.equal(adapted.logits(x), quiet)


def test_batchnorm_never_moves(resnet):
    adapted = make(resnet, {"method": "full"})
    before = {k: v.clone() for k, v in adapted.network.model.named_buffers()}
    adapted.set_train(True)
    adapted.logits(pixels(resnet, 4) * 3 + 1)
    adapted.network.model.train()
    adapted.logits(pixels(resnet, 4) * 3 + 1)
    after = dict(adapted.network.model.named_buffers())
    assert any("running_mean" in k for k in after)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_groups_cover_each_parameter_once_and_spare_vectors(vit):
    adapted = make(vit, {"method": "full", "blocks": [3, 5]})
    groups = adapted.param_groups(1.0, 0.1, 0.5)
    seen = [id(p) for g in groups for p in g["params"]]
    assert sorted(seen) == sorted(id(p) for p in adapted.trainable.values())
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for name, parameter in adapted.trainable.items():
        block = int(name.split(".")[1]) if name.startswith("blocks.") else 6
        assert rate[id(parameter)] == 0.5 ** (6 - block), name
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0), name


def test_the_stem_has_the_lowest_rate(vit):
    adapted = make(vit, {"method": "full"})
    groups = adapted.param_groups(1.0, 0.0, 0.5)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rate[id(adapted.trainable["pos_embed"])] == 0.5**7
    assert rate[id(adapted.trainable["norm.weight"])] == 1.0


def test_parameter_counts_of_the_papers(vit):
    d, m = 64, 192  # test_vit: width and MLP width
    lora = make(vit, {"method": "lora", "blocks": 1, "modules": ["qkv", "proj"], "r": 4})
    assert lora.adapter_params == 4 * ((d + 3 * d) + (d + d))
    bitfit = make(vit, {"method": "bitfit", "blocks": 1})
    assert bitfit.adapter_params == 3 * d + d + m + d + 2 * d
    probe = make(vit, {"method": "linear_probe"})
    assert (probe.adapter_params, probe.trainable_params) == (0, 3 * d + 3)
    assert probe.adapter_bytes == 4 * (3 * d + 3)


def test_lora_update_is_low_rank_and_scales_with_alpha(vit):
    def update(alpha):
        raw = {"method": "lora", "blocks": 1, "modules": ["fc1"], "r": 2, "lora_alpha": alpha}
        adapted = make(vit, raw)
        with torch.no_grad():
            for name, parameter in adapted.trainable.items():
                if "lora" in name:
                    seed = torch.Generator().manual_seed(len(name))
                    parameter.copy_(torch.randn(parameter.shape, generator=seed))
        name = "blocks.5.mlp.fc1.weight"
        return merged_state(adapted)[name] - vit.model.state_dict()[name]

    one, two = update(2), update(4)
    assert torch.linalg.matrix_rank(one, atol=1e-4) == 2
    torch.testing.assert_close(two, 2 * one, rtol=1e-4, atol=1e-5)


def test_lora_config_is_one_config_with_patterns(vit):
    strata = [
        {"method": "lora", "blocks": [2, 3], "r": 2, "modules": ["qkv"]},
        {"method": "lora", "blocks": [4, 5], "r": 4, "lora_alpha": 4, "modules": ["qkv", "proj"]},
    ]
    candidate = canonical({"strata": strata}, vit.facts)
    adapted = build(vit, candidate, 3, 0, 0)
    config = Lora.peft_config(vit, candidate.strata, candidate.readout)
    assert (config.r, config.modules_to_save) == (2, ["head"])
    assert list(config.rank_pattern.values()) == [4]
    layers = dict(adapted.network.model.named_modules())
    assert layers["blocks.3.attn.qkv"].scaling["default"] == 2
    assert layers["blocks.4.attn.proj"].scaling["default"] == 1
    assert adapted.trainable["blocks.5.attn.proj.lora_A.weight"].shape == (4, 64)
    assert "blocks.3.attn.proj.lora_A.weight" not in adapted.trainable
    assert not hasattr(layers["patch_embed.proj"], "lora_A")


def test_set_head_and_load_tensors(vit):
    adapted = make(vit, {"method": "lora", "blocks": 1})
    weight, bias = torch.randn(3, 64), torch.randn(3)
    adapted.set_head(weight, bias)
    assert torch.equal(adapted.tensors()["head.weight"], weight)
    fresh = make(vit, {"method": "lora", "blocks": 1}, repeat=1)
    fresh.load_tensors(adapted.tensors())
    assert torch.equal(fresh.head.bias, bias)
    with pytest.raises(UserError, match="do not fit"):
        make(vit, {"method": "lora", "blocks": 1}, outputs=2).load_tensors(adapted.tensors())
    with pytest.raises(UserError, match="do not fit"):
        make(vit, {"method": "lora", "blocks": 2}).load_tensors(adapted.tensors())


def test_merging_needs_timms_own_readout(vit):
    with pytest.raises(UserError, match="not timm's own"):
        merged_state(make(vit, {"method": "lora", "readout_block": 5}))
    with pytest.raises(UserError, match="not timm's own"):
        merged_state(make(vit, {"method": "lora", "readout_pool": "avg"}))


def test_names_are_plain_also_where_lora_wraps_the_module(vit):
    strata = [{"method": "lora", "blocks": [4, 5], "modules": ["qkv"]}, {"method": "bitfit"}]
    names = list(make(vit, {"strata": strata}).trainable)
    assert "blocks.5.attn.qkv.bias" in names
    assert "blocks.5.attn.qkv.lora_B.weight" in names
    assert not [n for n in names if "base_layer" in n or "default" in n]
    assert names[-2:] == ["head.weight", "head.bias"]
