"""Adapter folders: reload, peft's reading of them, another base refused, prediction, merging."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from autopeft.adapter import load_adapter, merge, save
from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError
from autopeft.methods import build, canonical

META = {"classes": ["effusion", "mass", "nodule"], "kind": "multilabel"}
LORA = {"method": "lora", "blocks": [2, 5], "r": 4}
OTHERS = [
    {"method": "linear_probe"},
    {"method": "bitfit", "blocks": 2},
    {"method": "full", "blocks": 1},
    {"method": "lora", "readout_block": 4, "readout_pool": "token+avg"},
    {"strata": [{"method": "lora", "blocks": [2, 4]}, {"method": "bitfit", "blocks": [4, 5]}]},
]
MIXED_RANKS = {
    "strata": [
        {"method": "lora", "blocks": [1, 2], "r": 2, "modules": ["qkv"]},
        {"method": "lora", "blocks": [3, 5], "r": 4, "lora_alpha": 4, "modules": ["fc1", "proj"]},
    ]
}


@pytest.fixture(scope="module")
def vit():
    return random_backbone("test_vit", 32)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)


def trained(network, raw, outputs=3):
    """An adapter whose every number has moved."""
    adapted = build(network, canonical(raw, network.facts), outputs, 0, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return adapted


def plain_timm(network, outputs=3):
    """A fresh timm model on the same frozen weights, made without our Network."""
    name, size = network.facts.name, network.facts.image_size
    sized = {"img_size": size} if network.facts.family == "vit" else {}
    model = timm.create_model(name, num_classes=outputs, **sized).eval()
    missing = model.load_state_dict(network.model.state_dict(), strict=False)
    assert all(k.startswith(network.facts.classifier) for k in missing.missing_keys)
    assert not missing.unexpected_keys
    return model


def pixels(network, n=4):
    size = network.facts.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("raw", [LORA, MIXED_RANKS, *OTHERS], ids=str)
def test_reload_gives_the_same_bits(vit, raw, tmp_path):
    adapted = trained(vit, raw)
    save(adapted, tmp_path, META)
    model = load_adapter(tmp_path, network=vit)
    assert model.candidate == adapted.candidate
    assert model.classes == ("effusion", "mass", "nodule")
    with torch.no_grad():
        want = adapted.logits(pixels(vit))
        assert torch.equal(model.adapted.logits(pixels(vit)), want)
        assert torch.equal(model.model(pixels(vit)), want)
    assert {p.name for p in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "autopeft.json",
        "README.md",
    }
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert adapted.adapter_bytes <= size <= adapted.adapter_bytes + 20_000


@pytest.mark.parametrize(
    "raw",
    [LORA, MIXED_RANKS, {**LORA, "use_dora": True}, {**LORA, "use_rslora": True}],
    ids=str,
)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_peft_alone_reproduces_the_logits(name, raw, tmp_path):
    network = random_backbone(name, 32 if name == "test_vit" else 64)
    if name != "test_vit":
        raw = {k: v for k, v in raw.items() if k != "strata"} | {"method": "lora", "blocks": 2}
    adapted = trained(network, raw)
    save(adapted, tmp_path, META)
    loaded = peft.PeftModel.from_pretrained(plain_timm(network), tmp_path).eval()
    with torch.no_grad():
        want, got = adapted.logits(pixels(network)), loaded(pixels(network))
        assert (want - plain_timm(network)(pixels(network))).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"timm/{name}"
    assert config["peft_type"] == "LORA"


@pytest.mark.parametrize("raw", [LORA, *OTHERS[:3], OTHERS[4], {"method": "full"}], ids=str)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_merged_weights_are_a_plain_timm_model(name, raw, tmp_path):
    network = random_backbone(name, 32 if name == "test_vit" else 64)
    if name == "test_resnet" and "strata" in raw:
        raw = {"strata": [{"method": "lora", "blocks": [1, 2]}, {"method": "bitfit", "blocks": 1}]}
    elif name == "test_resnet":
        raw = {"method": raw["method"]}
    adapted = trained(network, raw)
    save(adapted, tmp_path, META)
    state = merge(tmp_path, network=network)
    plain = plain_timm(network)
    shapes = {k: v.shape for k, v in plain.state_dict().items()}
    assert {k: v.shape for k, v in state.items()} == shapes
    plain.load_state_dict(state, strict=True)
    with torch.no_grad():
        want, got = adapted.logits(pixels(network)), plain(pixels(network))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    again = merge(adapted)
    assert all(torch.equal(state[k], again[k]) for k in state)


def test_another_base_is_refused(vit, tmp_path):
    save(trained(vit, LORA), tmp_path, META)
    with pytest.raises(UserError, match="was trained on test_vit with weights"):
        load_adapter(tmp_path, network=random_backbone("test_vit", 32, seed=1))
    with pytest.raises(UserError, match="this is test_resnet"):
        load_adapter(tmp_path, network=random_backbone("test_resnet", 64))


def test_damaged_folders_are_refused(vit, tmp_path):
    with pytest.raises(UserError, match="no adapter folder"):
        load_adapter(tmp_path, network=vit)
    save(trained(vit, LORA), tmp_path, META)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(tmp_path, network=vit)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights)
    with pytest.raises(UserError, match="1 tensors do not fit"):
        load_adapter(tmp_path, network=vit)
    (tmp_path / "autopeft.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_adapter(tmp_path, network=vit)


def test_weights_file_is_asked_for_and_used(vit, pictures, tmp_path):
    file = tmp_path / "base.safetensors"
    save_file({k: v.contiguous() for k, v in vit.model.state_dict().items()}, file)
    adapted, folder = trained(vit, LORA), tmp_path / "best"
    folder.mkdir()
    save(adapted, folder, {**META, "weights": "base.safetensors"})
    with pytest.raises(UserError, match=r"weights file base\.safetensors"):
        load_adapter(folder)
    resident = load_adapter(folder, network=vit).predict(pictures)
    assert np.array_equal(load_adapter(folder, weights=str(file)).predict(pictures), resident)


def test_predict_on_paths_and_arrays(vit, pictures, tmp_path):
    save(trained(vit, LORA), tmp_path, META)
    model = load_adapter(tmp_path, network=vit)
    scores = model.predict(pictures)
    assert scores.shape == (5, 3)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-model.logits(pictures))), rtol=1e-6)
    cold = load_adapter(tmp_path, network=vit)
    assert np.array_equal(cold.predict(pictures, calibrated=True), scores)  # none was fitted
    cold.temperatures = (2.0, None, 0.5)
    halves = 1 / (1 + np.exp(-model.logits(pictures) / [2, 1, 0.5]))
    np.testing.assert_allclose(cold.predict(pictures, calibrated=True), halves, rtol=1e-6)
    assert np.array_equal(cold.predict(pictures), scores)
    files = []
    for i, picture in enumerate(pictures):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(picture[:, :, 0]).save(files[-1])
    np.testing.assert_allclose(model.predict(files), scores, rtol=1e-6)
    np.testing.assert_allclose(model.predict(files, batch_size=2), scores, rtol=1e-5)
    x = (np.repeat(pictures, 3, 3) / 255 - vit.facts.mean) / vit.facts.std
    x = torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(model.model(x), model.logits(pictures), rtol=1e-4, atol=1e-5)
    assert model.predict([]).shape == (0, 3)
    with pytest.raises(UserError, match="32, 32"):
        model.predict(np.zeros((1, 16, 16, 3), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.png"):
        model.predict([tmp_path / "bad.png"])


def test_multiclass_probabilities_sum_to_one(vit, pictures, tmp_path):
    save(trained(vit, LORA), tmp_path, {**META, "kind": "multiclass"})
    scores = load_adapter(tmp_path, network=vit).predict(pictures)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)


def test_the_card_says_what_a_reader_must_know(vit, tmp_path):
    meta = {**META, "thresholds": [0.25, 0.5, 0.75], "license": ["Images: CC BY 4.0"]}
    save(trained(vit, LORA), tmp_path, meta)
    card = (tmp_path / "README.md").read_text()
    assert "num_classes=3, img_size=32" in card
    for words in ("Not a medical device", "CC BY 4.0", vit.facts.sha256, "effusion", "0.25"):
        assert words in card
    assert load_adapter(tmp_path, network=vit).thresholds == (0.25, 0.5, 0.75)


@pytest.mark.slow
def test_a_fresh_process_gives_equal_outputs(vit, pictures, tmp_path):
    file = tmp_path / "base.safetensors"
    save_file({k: v.contiguous() for k, v in vit.model.state_dict().items()}, file)
    np.save(tmp_path / "pictures.npy", pictures)
    want = []
    for i, raw in enumerate([LORA, MIXED_RANKS, *OTHERS]):
        folder = tmp_path / f"adapter{i}"
        folder.mkdir()
        save(trained(vit, raw), folder, {**META, "weights": file.name})
        want.append(load_adapter(folder, network=vit).logits(pictures))
    code = """
import sys, numpy as np, torch
from pathlib import Path
from autopeft import load_adapter
torch.set_num_threads(int(sys.argv[2]))
here = Path(sys.argv[1])
for folder in sorted(here.glob("adapter*")):
    model = load_adapter(folder, weights=str(here / "base.safetensors"))
    np.save(here / f"{folder.name}.npy", model.logits(np.load(here / "pictures.npy")))
"""
    command = [sys.executable, "-c", code, str(tmp_path), str(torch.get_num_threads())]
    subprocess.run(command, check=True, timeout=300, cwd=Path(__file__).parents[1])
    for i, scores in enumerate(want):
        assert np.array_equal(np.load(tmp_path / f"adapter{i}.npy"), scores)
