"""load_backbone: names, sizes, files, the wheel's own, and no network."""

import socket

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from autopeft.backbones.catalog import OWN
from autopeft.backbones.conformance import check_backbone
from autopeft.backbones.weights import load_backbone
from autopeft.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(2)
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict() | {"extra.bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


def test_file_at_another_size(weights):
    network = load_backbone("test_vit", weights, 64, offline=True)
    assert network.facts.image_size == 64
    assert network.facts.name == "test_vit"
    assert network.warnings == ("w.safetensors: 1 tensors were not used: extra",)
    assert network.fork().warnings == network.warnings
    check_backbone(network)


def test_default_size_is_the_models_own(weights):
    assert load_backbone("test_vit", weights).facts.image_size == 160


def test_cnn_file_at_another_size(tmp_path):
    model = timm.create_model("test_resnet", num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    network = load_backbone("test_resnet", str(tmp_path / "w.safetensors"), 48)
    assert network.facts.image_size == 48
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        assert torch.equal(network.forward_from(0, x), expected)


def test_the_wheels_own_needs_no_network():
    network = load_backbone(OWN, offline=True, image_size=56)
    assert (network.facts.depth, network.facts.image_size, network.facts.patch) == (6, 56, 14)
    assert network.facts.sha256 == load_backbone(OWN, image_size=56).facts.sha256
    check_backbone(network)


@pytest.mark.parametrize(
    ("size", "near"), [(100, "96 or 112"), (8, "Take 16"), (161, "160 or 176")]
)
def test_size_off_the_patch_grid(size, near, weights):
    with pytest.raises(UserError, match=f"--image-size: {size} is not a multiple.*{near}"):
        load_backbone("test_vit", weights, size)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_small_patch14_dinov", "Did you mean vit_small_patch14_dinov2"),
        ("autopeft_vit_nan", "Did you mean autopeft_vit_nano"),
        ("%%", "'autopeft_vit_nano' always works"),
    ],
)
def test_unknown_name_offers_the_nearest(name, hint):
    with pytest.raises(UserError, match=hint):
        load_backbone(name)


def test_unknown_tag_lists_the_known_ones():
    with pytest.raises(UserError, match=r"vit_small_patch14_dinov2\.lvd142m"):
        load_backbone("vit_small_patch14_dinov2.foo")


def test_structure_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="Families that work: ViT"):
        load_backbone("swin_tiny_patch4_window7_224")


def test_offline_without_a_file_names_the_way_out():
    with pytest.raises(UserError, match=f"--offline.*--weights.*{OWN}"):
        load_backbone("resnet18", offline=True)


def test_silent_hub_names_the_way_out(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known\nmore lines")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    with pytest.raises(
        UserError, match=r"does not answer \(Name or service not known\).*--weights"
    ):
        load_backbone("resnet18")


def test_what_was_downloaded_before_is_used_offline(monkeypatch, weights, tmp_path):
    model = timm.create_model("test_vit", num_classes=1000)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    cached = {"model.safetensors": str(tmp_path / "model.safetensors")}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repo, file: cached.get(file)
    )
    network = load_backbone("test_vit", offline=True, image_size=96)
    assert torch.equal(network.model.norm.weight, model.norm.weight)
    assert torch.equal(network.model.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight)
