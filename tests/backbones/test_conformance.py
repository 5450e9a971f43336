"""Every family keeps the contract, and the conformance check notices when one does not."""

import pytest
import torch
from torch import nn

from autopeft.backbones.conformance import check_backbone
from autopeft.backbones.describe import random_backbone


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_vit", 64),
        ("test_vit2", 64),
        ("test_resnet", 64),
        ("test_convnext", 64),
        ("test_efficientnet", 64),
        ("resnet18", 32),
        ("convnext_atto", 32),
        ("mobilenetv3_small_050", 32),
        ("regnety_002", 32),
    ],
)
def test_small_backbones(name, size):
    check_backbone(random_backbone(name, size))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", None),
        ("vit_small_patch14_dinov2", 112),
        ("vit_small_patch14_reg4_dinov2", 112),
        ("resnet50", 64),
        ("convnextv2_atto", 64),
        ("efficientnet_b0", 64),
        ("tf_efficientnet_lite0", 64),
        ("deit3_small_patch16_224", 96),
    ],
)
def test_larger_backbones(name, size):
    check_backbone(random_backbone(name, size))


def test_half_precision_is_exact_in_itself():
    network = random_backbone("test_vit", 64)
    network.model.to(torch.bfloat16)
    check_backbone(network)


def test_a_forgotten_module_is_noticed(monkeypatch):
    network = random_backbone("test_efficientnet", 64)
    object.__setattr__(network._layout, "final", ("conv_head",))
    try:
        with pytest.raises((AssertionError, RuntimeError)):
            check_backbone(network)
    finally:
        object.__setattr__(network._layout, "final", ("conv_head", "bn2"))


def test_a_moving_batchnorm_is_noticed():
    network = random_backbone("test_resnet", 64)
    for module in network.model.modules():
        module.__dict__.pop("train", None)
    network.fork = lambda *args: _unfrozen(type(network).fork(network, *args))
    with pytest.raises(AssertionError, match="training"):
        check_backbone(network)


def _unfrozen(fork):
    for module in fork.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__dict__.pop("train", None)
    return fork
