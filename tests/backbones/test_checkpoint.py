"""Weights files of each flavour, made here from a small ViT and told apart by their names only."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file

from autopeft.backbones import nano
from autopeft.backbones.checkpoint import load_into
from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError


@pytest.fixture(scope="module")
def source():
    """A dinov2-shaped ViT: layer scale, 64 px, values that no fresh model has."""
    torch.manual_seed(7)
    model = timm.create_model("test_vit", img_size=64, num_classes=0, init_values=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def target(size=64, **options):
    return timm.create_model(
        "test_vit", img_size=size, num_classes=0, **{"init_values": 1e-5, **options}
    ).eval()


def load(model, path):
    return load_into(model, path, "test_vit", "head")


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def prefixed(prefix, state):
    return {prefix + k: v for k, v in state.items()}


def test_plain_safetensors(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = target()
    assert load(model, tmp_path / "w.safetensors") == ()
    assert same(source, model)


def test_classifier_of_the_file_is_left_out_without_a_word(source, tmp_path):
    state = source.state_dict() | {"head.weight": torch.zeros(9, 64), "head.bias": torch.zeros(9)}
    torch.save(state, tmp_path / "w.pth")
    model = target()
    assert load(model, tmp_path / "w.pth") == ()
    assert same(source, model)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_dino_training_checkpoint_takes_the_teacher(source, tmp_path, suffix):
    student = {k: torch.zeros_like(v) for k, v in source.state_dict().items()}
    projection = {"head.mlp.0.weight": torch.zeros(3)}
    content = {
        "student": prefixed("module.backbone.", student),
        "teacher": prefixed("backbone.", source.state_dict()) | projection,
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", lr=5e-4),
    }
    torch.save(content, tmp_path / f"w{suffix}")
    model = target()
    assert load(model, tmp_path / f"w{suffix}") == ()  # its head is a projection head
    assert same(source, model)


@pytest.mark.parametrize(
    ("plain", "averaged"), [("student.backbone.", "teacher.backbone."), ("model.", "model_ema.")]
)
def test_flat_file_takes_the_averaged_weights(source, tmp_path, plain, averaged):
    zeros = {k: torch.zeros_like(v) for k, v in source.state_dict().items()}
    state = prefixed(plain, zeros) | prefixed(averaged, source.state_dict())
    save_file(state, tmp_path / "w.safetensors")
    model = target()
    (line,) = load(model, tmp_path / "w.safetensors")
    assert same(source, model)
    assert plain.split(".")[0] in line


def test_dinov2_file_with_registers_mask_token_and_another_size(source, tmp_path):
    """Facebook's layout: register_tokens, a class position, blocks in FSDP chunks."""
    torch.manual_seed(0)
    goal = target(reg_tokens=4, no_embed_class=True)
    state = {}
    for key, value in goal.state_dict().items():
        value = torch.randn_like(value)
        number = key.split(".")[1] if key.startswith("blocks.") else ""
        chunk = int(number) // 3 if number else 0
        state[key.replace("blocks.", f"blocks.{chunk}.", 1)] = value
    cls_position = torch.randn(1, 1, 64)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], 1)
    state["mask_token"] = torch.zeros(1, 64)
    torch.save(state, tmp_path / "w.pth")
    assert load(goal, tmp_path / "w.pth") == ()
    assert torch.equal(goal.reg_token, state["register_tokens"])
    assert torch.equal(goal.cls_token, state["cls_token"] + cls_position)
    assert torch.equal(goal.pos_embed, state["pos_embed"][:, 1:])
    assert torch.equal(goal.blocks[5].mlp.fc2.weight, state["blocks.1.5.mlp.fc2.weight"])


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.encoder."])
def test_mae_checkpoint_without_its_decoder(source, tmp_path, prefix):
    decoder = {"decoder_embed.weight": torch.zeros(4, 64), "mask_token": torch.zeros(1, 1, 4)}
    decoder |= {f"decoder_blocks.{i}.norm1.weight": torch.zeros(4) for i in range(2)}
    torch.save({"model": prefixed(prefix, source.state_dict()) | decoder}, tmp_path / "w.pth")
    model = target()
    lines = load(model, tmp_path / "w.pth")
    assert same(source, model)
    assert len(lines) == 1
    assert "decoder_blocks.0, decoder_blocks.1, decoder_embed" in lines[0]


def test_positions_are_resampled_as_timm_does(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = target(96)
    assert load(model, tmp_path / "w.safetensors") == ()
    grown = timm.layers.resample_abs_pos_embed(source.pos_embed, (6, 6), (4, 4))
    assert torch.equal(model.pos_embed, grown)
    assert torch.equal(model.blocks[0].norm1.weight, source.blocks[0].norm1.weight)


def test_half_precision_is_resampled_as_timm_does(source, tmp_path):
    half = {k: v.half() for k, v in source.state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    model = target(96)
    load(model, tmp_path / "w.safetensors")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.norm.weight, source.norm.weight.half().float())
    grown = timm.layers.resample_abs_pos_embed(half["pos_embed"], (6, 6), (4, 4))
    assert torch.equal(model.pos_embed, grown.float())


def test_quantized_file_of_the_wheel_is_turned_back(source, tmp_path):
    stored = nano.quantize(source.state_dict())
    save_file(stored, tmp_path / "w.safetensors")
    model = target()
    assert load(model, tmp_path / "w.safetensors") == ()
    expected = nano.dequantize(stored)
    assert torch.equal(model.blocks[2].attn.qkv.weight, expected["blocks.2.attn.qkv.weight"])


def test_cnn_files(tmp_path):
    for name, head in (("test_efficientnet", "classifier"), ("test_resnet", "fc")):
        torch.manual_seed(1)
        source = timm.create_model(name, num_classes=3)
        save_file(prefixed("module.", source.state_dict()), tmp_path / f"{name}.safetensors")
        model = timm.create_model(name, num_classes=0)
        assert load_into(model, tmp_path / f"{name}.safetensors", name, head) == ()
        assert same(model, source)


def test_a_few_missing_tensors_are_listed(source, tmp_path):
    state = source.state_dict()
    del state["norm.weight"], state["norm.bias"]
    save_file(state, tmp_path / "w.safetensors")
    (line,) = load(target(), tmp_path / "w.safetensors")
    assert line == (
        "w.safetensors: 2 tensors are missing and stay at their random start: norm (2)"
    )


def test_a_file_that_lacks_much_is_refused(source, tmp_path):
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("blocks.4")}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"lacks 14 of the 90 .*blocks\.4 \(14\)"):
        load(target(), tmp_path / "w.safetensors")


def test_missing_layer_scale_is_refused(source, tmp_path):
    """At its start value of 1e-5 every block would be the identity."""
    state = {k: v for k, v in source.state_dict().items() if ".ls" not in k}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="lacks 12"):
        load(target(), tmp_path / "w.safetensors")


def test_another_width_names_both_shapes(tmp_path):
    wide = random_backbone("vit_tiny_patch16_224").model
    save_file(wide.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"\(1, 1, 192\).*needs \(1, 1, 64\)"):
        load(target(), tmp_path / "w.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path):
    state = {"embeddings.word.weight": torch.zeros(3, 3), "lm.bias": torch.zeros(3)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="matches nothing of 'test_vit'; it holds embeddings, lm"):
        load(target(), tmp_path / "w.safetensors")


class Surprise:
    """What a hostile file would do on unpickling."""

    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path, capsys):
    torch.save({"model": Surprise()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="besides tensors"):
        load(target(), tmp_path / "w.pth")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"not a file of tensors", "cannot be read"),
        ("w.pth", b"", "cannot be read"),
        ("w.pth", b"garbage", "besides tensors|cannot be read"),
        ("w.npz", b"", "type '.npz'"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(target(), tmp_path / name)


def test_a_file_without_tensors_or_no_file(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict"):
        load(target(), tmp_path / "w.pt")
    with pytest.raises(UserError, match="no such weights file"):
        load(target(), tmp_path / "absent.pt")
