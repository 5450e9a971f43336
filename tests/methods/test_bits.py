"""Masks that the outer search gives: FairTune's parts of blocks, MemControl's blocks."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional

from autopeft.backbones.describe import network_of
from autopeft.errors import UserError
from autopeft.methods import METHODS, build, canonical
from autopeft.methods.bits import ALL, PARTS, FairTuneMask, as_number
from autopeft.methods.conformance import check_method
from autopeft.space import read_space
from autopeft.training.fast import Casts, speed_up

VIT = [
    {"method": "fairtune_mask"},
    {"method": "fairtune_mask", "attn": "010010", "norm1": 0, "mlp": 0, "norm2": "000011"},
    {"method": "fairtune_mask", "every": [0, 0, 1, 0, 1, 0], "norm1": 0},
    {"method": "fairtune_mask", "blocks": 3, "readout_block": 5},
    {"method": "memcontrol_bits", "inner": "lora", "bits": "010100"},
    {"method": "memcontrol_bits", "inner": "bitfit", "bits": "000110"},
    {"method": "memcontrol_bits", "inner": "svdiff", "bits": "000101", "blocks": [2, 5]},
    {"method": "memcontrol_bits", "inner": "difffit", "bits": "000001"},
]


@pytest.mark.parametrize("raw", VIT, ids=str)
def test_vit(networks, raw):
    check_method(raw, networks["test_vit"])


@pytest.mark.parametrize("inner", ["lora", "bitfit"])
def test_resnet(networks, inner):
    raw = {"method": "memcontrol_bits", "inner": inner, "bits": "0101"}
    check_method(raw, networks["test_resnet"])


@pytest.mark.parametrize("raw", [VIT[1], VIT[4]], ids=str)
def test_bf16(networks, raw):
    network = networks["test_vit"]
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = [build(network, canonical(raw, network.facts), 2, 0, 0) for _ in range(2)]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for a, b in zip(*(m.trainable.values() for m in made), strict=True):
            b.copy_(a.add_(torch.randn(a.shape, generator=generator), alpha=0.01))
    low, plain = made
    speed_up(low, "bf16", Casts(network.model))
    with torch.autocast("cpu", torch.bfloat16):
        got = low.logits(x)
    want = plain.logits(x)
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()
    functional.cross_entropy(got.float(), torch.tensor([0, 1, 0])).backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in low.trainable.values())


# ---- FairTune -----------------------------------------------------------------------------------


def test_bits_name_what_trains_and_back(networks):
    network = networks["test_vit"]
    masks = {"norm1": 0b100001, "attn": 0b010010, "norm2": 0b001100, "mlp": 0b100000}
    candidate = canonical({"method": "fairtune_mask", **masks}, network.facts)
    names = set(build(network, candidate, 2, 0, 0).trainable) - {"head.weight", "head.bias"}
    found = dict.fromkeys(PARTS, 0)
    for name in names:
        _, block, part, *_ = name.split(".")
        part = {"ls1": "attn", "ls2": "mlp"}.get(part, part)
        found[part] |= 1 << int(block)
    assert found == masks
    plain = {n for n, _ in network.model.named_parameters()}
    want = {
        n for n in plain for part, mask in masks.items() for b in range(6)
        if mask >> b & 1 and n.startswith(f"blocks.{b}.{part}.")
    }  # fmt: skip
    assert names == want


def test_no_bit_is_the_probe_and_all_bits_are_full_without_its_ends(networks):
    facts = networks["test_vit"].facts
    probe = canonical({"method": "linear_probe"}, facts)
    assert canonical({"method": "fairtune_mask", "every": 0}, facts).strata == probe.strata == ()
    nothing = dict.fromkeys(PARTS, 0)
    assert canonical({"method": "fairtune_mask", **nothing}, facts).strata == ()
    stratum = canonical({"method": "fairtune_mask"}, facts).strata[0]
    whole = FairTuneMask(**stratum.options)
    count = whole.parameter_count(facts, stratum, canonical({"method": "full"}, facts).readout)
    assert count == sum(facts.block_params)


def test_two_spellings_are_one_candidate(networks):
    facts = networks["test_vit"].facts
    one = canonical({"method": "fairtune_mask", "every": "000110"}, facts)
    word = dict.fromkeys(PARTS, "000110")
    number = dict.fromkeys(PARTS, 0b011000)
    for other in (word, number, {**number, "every": ALL}, dict.fromkeys(PARTS, 0b011000 | 1 << 9)):
        assert canonical({"method": "fairtune_mask", **other}, facts) == one
    assert one.strata[0].blocks == (3, 4)
    assert as_number("0011") == as_number([0, 0, 1, 1]) == 12


def test_the_lowest_bit_is_the_first_block(networks):
    network = networks["test_vit"]
    raw = {"method": "fairtune_mask", "every": "000101"}
    adapted = build(network, canonical(raw, network.facts), 2, 0, 0)
    assert adapted.first_block == 3
    assert not any(n.startswith("blocks.4.") for n in adapted.trainable)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"init_values": 0.1}),
        ("vit_tiny_patch16_224", {"qkv_bias": False}),
        ("vit_tiny_patch16_224", {"qk_norm": True}),
    ],
)
def test_the_formula_knows_layer_scale_and_missing_biases(name, options):
    model = timm.create_model(name, num_classes=0, img_size=32, depth=2, **options)
    network = network_of(model, name)
    for part in PARTS:
        masks = {**dict.fromkeys(PARTS, 0), part: 0b10}
        candidate = canonical({"method": "fairtune_mask", **masks}, network.facts)
        stratum = candidate.strata[0]
        formula = FairTuneMask(**stratum.options).parameter_count(
            network.facts, stratum, candidate.readout
        )
        adapted = build(network, candidate, 2, 0, 0)
        assert adapted.adapter_params == formula > 0


def test_refusals(networks):
    facts = networks["test_vit"].facts
    with pytest.raises(UserError, match="test_resnet is a CNN, whose blocks have no attention"):
        canonical({"method": "fairtune_mask"}, networks["test_resnet"].facts)
    with pytest.raises(UserError, match="attn = -1 is not possible"):
        canonical({"method": "fairtune_mask", "attn": -1}, facts)
    with pytest.raises(UserError, match="attn = '0102' is not possible"):
        canonical({"method": "fairtune_mask", "attn": "0102"}, facts)
    strata = [{"method": "fairtune_mask", "blocks": 2}, {"method": "lora", "blocks": 2}]
    with pytest.raises(UserError, match="cannot share block"):
        canonical({"strata": strata}, facts)
    with pytest.raises(UserError, match="inner = 'gps' is not possible"):
        canonical({"method": "memcontrol_bits", "inner": "gps"}, facts)


# ---- MemControl ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["lora", "bitfit", "svdiff", "difffit"])
def test_a_block_without_its_bit_is_the_backbone_s(networks, inner):
    network = networks["test_vit"]
    raw = {"method": "memcontrol_bits", "inner": inner, "bits": "010100"}
    adapted = build(network, canonical(raw, network.facts), 2, 0, 0)
    assert adapted.first_block == 1
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(0.05)
        state = network.advance(0, torch.randn(2, 3, 32, 32), 2)
        for block in range(6):
            ours = adapted.network.run(state, block, block + 1)
            same = torch.equal(ours, network.run(state, block, block + 1))
            assert same == (block not in (1, 3))


def test_it_is_the_inner_method_on_a_mask(networks):
    network = networks["test_vit"]
    raw = {"method": "memcontrol_bits", "inner": "lora", "bits": "010100"}
    ours = build(network, canonical(raw, network.facts), 2, 0, 0)
    mask = {"method": "lora", "blocks": {"mask": [0, 1, 0, 1, 0, 0]}}
    theirs = build(network, canonical(mask, network.facts), 2, 0, 0)
    assert {n: p.shape for n, p in ours.trainable.items()} == {
        n: p.shape for n, p in theirs.trainable.items()
    }


# ---- in YAML ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["000111", "111", "[000111]", "{choices: [000111, '111000']}"])
def test_a_mask_that_yaml_reads_as_a_number_is_refused(mask):
    """YAML 1.1 reads 000111 as 73."""
    if mask.startswith("["):
        mask = "{choices: " + mask + "}"
    space = read_space(f"methods:\n  fairtune_mask:\n    attn: {mask}", "space.yaml")
    with pytest.raises(UserError) as caught:
        space.check_names(METHODS)
    assert "read as a number, but attn is a mask" in str(caught.value)
    assert "Quote it, block 0 first: '000111'." in str(caught.value)


@pytest.mark.parametrize("mask", ["'000111'", "{choices: ['000111']}", "each"])
def test_masks_as_words(mask):
    read_space(f"methods:\n  fairtune_mask:\n    attn: {mask}", "space.yaml").check_names(METHODS)


def test_masks_as_a_range_of_numbers():
    bits = "{type: int, low: 0, high: 63}"
    text = f"methods:\n  memcontrol_bits:\n    bits: {bits}"
    read_space(text, "space.yaml").check_names(METHODS)
