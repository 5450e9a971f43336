"""A search whose candidates take a step after training, from space to saved winner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny

import autopeft
from autopeft.backbones.weights import load_backbone
from autopeft.training.images import normalize

SPACE = """
methods:
  lora:
    r: {choices: [4, 8]}
    last: {choices: [half]}
    lr: {type: float, low: 1e-3, high: 5e-3, log: true}
post: {wise_ft: {alpha: {choices: [0.3, 0.6]}}}
"""


@pytest.mark.slow
def test_the_winner_is_the_interpolated_adapter(tmp_path, monkeypatch):
    (tmp_path / "space.yaml").write_text(SPACE)
    # On so few images the linear probe would win; search's own pick is asked for instead.
    monkeypatch.setattr("autopeft.confirmation.last_two", lambda models, *_: models[:1])
    asked = tiny(tmp_path / "runs", space=str(tmp_path / "space.yaml"), name="step")
    result = autopeft.search(**asked)
    numbers = result.numbers
    assert numbers["best"]["config"]["post"]["method"] == "wise_ft"
    model = autopeft.load_adapter(result.folder / "best")
    alpha = numbers["best"]["config"]["post"]["alpha"]
    assert model.info["candidate"]["post"] == {"method": "wise_ft", "alpha": alpha}

    table = pd.read_csv(result.folder / "predictions.csv")
    table = table[(table.model == "winner") & (table.repeat == 0)]
    images = next(Path(asked["runs_dir"]).glob(".cache/phantom-*"))
    for split in ("search", "confirm", "test"):
        rows = table[table.split == split]
        found = model.predict([images / path for path in rows.path])[:, 0]
        np.testing.assert_allclose(found, rows.score, rtol=0, atol=1e-6, err_msg=split)

    merged = load_file(result.folder / "merged.safetensors")
    plain = load_backbone("autopeft_vit_nano", None, 28, True).fork(1).model
    plain.load_state_dict(merged, strict=True, assign=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    backbone = model.info["backbone"]
    x = normalize(pixels, backbone["mean"], backbone["std"])
    with torch.inference_mode():
        torch.testing.assert_close(
            plain(x), torch.from_numpy(model.logits(pixels)), rtol=1e-5, atol=1e-5
        )

    again = autopeft.search(**asked)  # a finished run answers at once, with the same numbers
    assert again.numbers == numbers
