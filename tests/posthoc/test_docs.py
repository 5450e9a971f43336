"""The example of docs/posthoc.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from autopeft import load_adapter, posthoc
from autopeft.adapter import save
from autopeft.backbones.catalog import OWN
from autopeft.backbones.weights import load_backbone
from autopeft.files import new_folder
from autopeft.methods import build, canonical

PAGE = Path(__file__).parents[2] / "docs" / "posthoc.md"
META = {"classes": ["effusion"], "kind": "binary"}
LORA = {"method": "lora", "blocks": 2, "r": 2, "modules": ["qkv"]}


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = load_backbone(OWN, None, None, True)
    for folder, raw in (("best", LORA), ("baselines/linear_probe", {"method": "linear_probe"})):
        adapted = build(network, canonical(raw, network.facts), 1, 0, 0)
        with torch.no_grad():
            for parameter in adapted.trainable.values():
                parameter.add_(0.01)
        with new_folder(Path("runs/first") / folder) as temporary:
            save(adapted, temporary, META)
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    size = network.facts.image_size
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 1), np.uint8)
    scores = [load_adapter(f, network=network).logits(images) for f in ("runs/first/best", "half")]
    assert np.abs(scores[0] - scores[1]).max() > 1e-4
    assert Path("stock.safetensors").exists()


def test_the_page_names_every_step():
    for name in posthoc.__all__:
        assert name.removesuffix("_restored").removesuffix("_of") in PAGE.read_text(), name
