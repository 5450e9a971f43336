"""Every method keeps the contract on a ViT and on CNNs; a broken one is caught."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import pytest
import timm
import torch

from autopeft.backbones.describe import network_of, random_backbone
from autopeft.errors import UserError
from autopeft.methods import METHODS, build, canonical
from autopeft.methods.bitfit import BitFit
from autopeft.methods.conformance import check_method
from autopeft.methods.lora import Lora
from autopeft.methods.lora_variants import LoraBOnly
from autopeft.methods.method import Injection
from autopeft.training.fast import Casts, speed_up

EVERY = [
    {"method": "linear_probe"},
    {"method": "lora"},
    {"method": "lora", "blocks": 2, "r": 3, "use_dora": True},
    {"method": "lora", "blocks": 2, "use_rslora": True, "lora_dropout": 0.1, "drop_path": 0.2},
    {"method": "bitfit"},
    {"method": "bitfit", "blocks": 2},
    {"method": "full"},
    {"method": "full", "blocks": {"first_block": 1}, "drop_path": 0.2},
    {"method": "full", "blocks": [1, 1]},
    {"method": "lora", "readout_block": 3},
    {"method": "full", "blocks": 1, "readout_block": 3},
    {"method": "bitfit", "blocks": 1, "readout_block": 3},
]
VIT = [
    {"method": "lora", "modules": ["qkv"], "readout_pool": "token+avg"},
    {"method": "lora", "modules": "fc1+fc2", "blocks": [1, 2], "readout": {"block": 4}},
    {"method": "bitfit", "which": "norm", "blocks": 2},
    {"method": "bitfit", "which": "linear", "blocks": 2},
    {"method": "full", "blocks": 2, "readout_pool": "avg"},
    {
        "strata": [
            {"method": "lora", "blocks": [1, 2], "r": 2},
            {"method": "lora", "blocks": [3, 3], "modules": ["qkv"], "r": 4, "lora_alpha": 3},
            {"method": "bitfit", "blocks": [4, 5]},
        ]
    },
    {"strata": [{"method": "lora", "blocks": [2, 5]}, {"method": "bitfit", "blocks": [1, 4]}]},
    {"strata": [{"method": "full", "blocks": [5, 5]}, {"method": "lora", "blocks": [2, 4]}]},
]
CNN = [
    {"strata": [{"method": "lora", "blocks": [0, 1], "r": 4}, {"method": "bitfit", "blocks": 2}]},
]


@pytest.mark.parametrize("raw", [*EVERY, *VIT], ids=str)
def test_vit(networks, raw):
    check_method(raw, networks["test_vit"])


@pytest.mark.parametrize("raw", [*EVERY, *CNN], ids=str)
def test_resnet(networks, raw):
    check_method(raw, networks["test_resnet"])


@pytest.mark.parametrize("raw", [EVERY[1], EVERY[2], EVERY[4], EVERY[7], EVERY[9]], ids=str)
def test_convnext(networks, raw):
    check_method(raw, networks["test_convnext"])


@pytest.mark.parametrize("raw", [EVERY[1], EVERY[4], EVERY[6]], ids=str)
def test_efficientnet_leaves_depthwise_convolutions_alone(networks, raw):
    check_method(raw, networks["test_efficientnet"])


# The suite itself: each broken method must fail, and for the stated reason.


def _broken(monkeypatch, cls, attribute, value):
    monkeypatch.setattr(cls, attribute, value)


def test_finds_a_parameter_that_is_shared_with_the_resident_network(monkeypatch):
    def shared(cls, network, strata, readout):
        own = dict(network.model.named_parameters())
        return Injection({n: p for n, p in own.items() if n == "blocks.5.norm1.bias"})

    _broken(monkeypatch, BitFit, "inject", classmethod(shared))
    _broken(monkeypatch, BitFit, "parameter_count", lambda *a: 64)
    with pytest.raises(AssertionError, match="resident backbone changed"):
        check_method({"method": "bitfit", "blocks": [5, 5]}, random_backbone("test_vit", 32))


def test_finds_a_wrong_formula(networks, monkeypatch):
    _broken(monkeypatch, Lora, "parameter_count", lambda *a: 1)
    with pytest.raises(AssertionError):
        check_method({"method": "lora", "blocks": 1}, networks["test_vit"])


def test_finds_a_fresh_adapter_that_changes_the_output(networks, monkeypatch):
    inject = Lora.inject.__func__

    def loud(cls, network, strata, readout):
        injection = inject(cls, network, strata, readout)
        with torch.no_grad():
            for parameter in injection.trainable.values():
                parameter.add_(0.1)
        return injection

    _broken(monkeypatch, Lora, "inject", classmethod(loud))
    with pytest.raises(AssertionError, match="fresh adapter"):
        check_method({"method": "lora", "blocks": 1}, networks["test_vit"])


def test_finds_a_block_too_low(networks, monkeypatch):
    _broken(monkeypatch, BitFit, "first_block", lambda self, stratum: 4)
    with pytest.raises(AssertionError):
        check_method({"method": "bitfit", "blocks": [2, 5]}, networks["test_vit"])


def test_finds_a_merge_that_forgets_the_adapter(networks, monkeypatch):
    def forget(cls, network):
        from peft.tuners.lora import LoraLayer

        for path, layer in list(network.model.named_modules()):
            if isinstance(layer, LoraLayer):
                parent, _, leaf = path.rpartition(".")
                setattr(network.model.get_submodule(parent), leaf, layer.get_base_layer())

    _broken(monkeypatch, Lora, "fold", classmethod(forget))
    with pytest.raises(AssertionError, match="merged and unmerged"):
        check_method({"method": "lora", "blocks": 1}, networks["test_vit"])


def test_finds_an_adapter_without_effect():
    """timm's own first weights end each residual branch with zeros: nothing inside is seen."""
    model = timm.create_model("test_convnext", num_classes=0)
    assert float(model.stages[0].blocks[0].gamma.detach().abs().max()) <= 1e-5
    with pytest.raises(AssertionError, match="no effect"):
        check_method({"method": "ia3", "blocks": 1}, network_of(model, "test_convnext", 64))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet", "test_convnext"])
def test_the_backbones_of_these_tests_let_their_blocks_through(name):
    network = random_backbone(name, 32 if "vit" in name else 64)
    weights = {k: v for k, v in network.model.named_parameters() if v.ndim == 1}
    scales = [k for k in weights if k.endswith((".gamma", ".weight"))]
    assert scales
    assert all(float(weights[k].detach().abs().mean()) > 0.3 for k in scales)
    x = torch.randn(2, 3, network.facts.image_size, network.facts.image_size)
    with torch.no_grad():
        for block in range(network.depth):
            below = network.advance(0, x, block)
            above = network.run(below, block, block + 1)
            if above.shape == below.shape:
                assert (above - below).abs().max() > 1e-2, block


def test_finds_what_changes_without_being_declared(monkeypatch):
    inject = BitFit.inject.__func__

    def drifts(cls, network, strata, readout):
        norm = dict(network.model.named_buffers())["layer4.0.bn1.running_mean"]
        injection = inject(cls, network, strata, readout)
        return replace(injection, after_step=lambda step, total: norm.add_(1e-7))

    _broken(monkeypatch, BitFit, "inject", classmethod(drifts))
    with pytest.raises(AssertionError, match="changed that are not declared"):
        check_method({"method": "bitfit", "blocks": 2}, random_backbone("test_resnet", 64))


def test_finds_what_is_declared_and_never_trains(networks, monkeypatch):
    inject = BitFit.inject.__func__

    def idle(cls, network, strata, readout):
        injection = inject(cls, network, strata, readout)
        next(iter(injection.trainable.values())).register_hook(torch.zeros_like)
        return injection

    _broken(monkeypatch, BitFit, "inject", classmethod(idle))
    with pytest.raises(AssertionError, match="never changed"):
        check_method({"method": "bitfit", "blocks": 2}, networks["test_vit"])


def test_finds_a_draw_that_is_not_saved(networks, monkeypatch):
    inject = LoraBOnly.inject.__func__

    def forgets(cls, network, strata, readout):
        return replace(inject(cls, network, strata, readout), fixed={})

    _broken(monkeypatch, LoraBOnly, "inject", classmethod(forgets))
    with pytest.raises(AssertionError, match="reloaded outputs differ"):
        check_method({"method": "lora_b_only", "blocks": 2}, networks["test_vit"])


# The list: a method is in it by being registered. What moves the output at the start by its
# definition (prompts, shared banks), and what N(0, 0.01) on its few numbers hardly moves.
NOT_EXACT = {"vpt_shallow", "vpt_deep", "unilora", "vblora"}
LOUDER = {"adalora", "c3a", "hira", "pvera", "unilora", "vera"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(networks, name):
    noise = 0.1 if name in LOUDER else 0.01
    raw = {"method": name, "blocks": 2}
    check_method(raw, networks["test_vit"], identity=name not in NOT_EXACT, noise=noise)


MIXABLE = (
    "lora", "ssf", "difffit", "bitfit", "ln_tuning", "ia3", "lora_qv", "spectral_additive", "gps",
    "adapter_parallel", "vpt_deep", "spafit", "lora_b_only",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(itertools.combinations(MIXABLE, 2)), ids="+".join)
def test_two_methods_on_the_same_blocks_conform_or_are_refused(networks, pair):
    raw = {"strata": [{"method": name, "blocks": [2, 4]} for name in pair]}
    with contextlib.suppress(UserError):
        check_method(raw, networks["test_vit"], identity="vpt_deep" not in pair)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "name"),
    [(o, n) for o in ("ssf", "gps", "lora_qv") for n in METHODS if n != o],
)
def test_what_hangs_on_a_layer_is_heard_by_every_other_method_or_refused(networks, name, other):
    raw = {"strata": [{"method": m, "blocks": [4, 5]} for m in (name, other)]}
    noise = 0.1 if name in LOUDER else 0.01
    with contextlib.suppress(UserError):
        check_method(raw, networks["test_vit"], identity=name not in NOT_EXACT, noise=noise)


@pytest.mark.parametrize(
    "pair",
    [
        ("ssf", "shira"),
        ("gps", "hra"),
        ("lora", "hira"),
        ("lora_qv", "frod"),
        ("ssf", "adalora"),
        ("bitfit", "svdiff"),
    ],
)
def test_what_would_be_passed_by_is_refused_when_the_candidate_is_made(networks, pair):
    raw = {"strata": [{"method": name, "blocks": [4, 5]} for name in pair]}
    with pytest.raises(UserError, match="cannot share block 4"):
        canonical(raw, networks["test_vit"].facts)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init": "pissa"}])
def test_lora_that_reads_the_weight_stays_alone(networks, options):
    lora = {"method": "lora", "blocks": [4, 5], **options}
    raw = {"strata": [lora, {"method": "ssf", "blocks": [5, 5]}]}
    with pytest.raises(UserError, match="cannot share block 5"):
        canonical(raw, networks["test_vit"].facts)


@pytest.mark.parametrize(
    "raw", [{"method": "peanut", "depth": 8}, {"method": "peanut", "depth": 2, "r": 4}]
)
def test_hidden_layers_are_counted(networks, raw):
    check_method({**raw, "blocks": 1}, networks["test_vit"], noise=0.1)


@pytest.mark.parametrize(
    "pair",
    [("ssf", "ln_tuning"), ("difffit", "bitfit"), ("difffit", "gps"), ("bitfit", "spafit")],
    ids="+".join,
)
def test_two_owners_of_the_same_numbers_are_refused(networks, pair):
    raw = {"strata": [{"method": name, "blocks": [2, 4]} for name in pair]}
    with pytest.raises(UserError, match="cannot share block 2"):
        canonical(raw, networks["test_vit"].facts)


@pytest.mark.parametrize("pair", [("lora", "ssf"), ("ssf", "difffit"), ("lora_qv", "gps")])
def test_methods_on_one_layer_are_folded_in_the_order_of_their_injection(networks, pair):
    raw = {"strata": [{"method": name, "blocks": [4, 5]} for name in pair]}
    check_method(raw, networks["test_vit"])


def test_a_hook_on_a_layer_is_not_passed_by_when_lora_is_fast(networks):
    network = networks["test_vit"]
    raw = {"strata": [{"method": name, "blocks": [4, 5]} for name in ("lora", "ssf")]}
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for quick in (False, True):
        adapted = build(network, canonical(raw, network.facts), 2, 0, 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in adapted.trainable.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
            if quick:
                speed_up(adapted, "fp32", Casts(network.model))
            found.append(adapted.logits(x))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("blocks", [[0, 1], [2, 3]])
def test_frozen_blocks_above_a_trained_one_run_in_bf16(blocks):
    network = random_backbone("test_vit2", 32)  # with layer scale
    raw = {"method": "full", "blocks": blocks}
    adapted = build(network, canonical(raw, network.facts), 2, 0, 0)
    speed_up(adapted, "bf16", Casts(network.model))
    with torch.autocast("cpu", torch.bfloat16):
        logits = adapted.logits(torch.randn(2, 3, 32, 32))
    logits.float().sum().backward()
    assert all(p.grad is not None for p in adapted.trainable.values())
