"""Every method keeps the contract on a ViT and on CNNs; a broken one is caught."""

from __future__ import annotations

import pytest
import torch

from autopeft.backbones.describe import random_backbone
from autopeft.methods import METHODS
from autopeft.methods.bitfit import BitFit
from autopeft.methods.conformance import check_method
from autopeft.methods.lora import Lora
from autopeft.methods.method import Injection

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


def test_every_method_is_checked():
    assert {raw["method"] for raw in EVERY} == set(METHODS)
