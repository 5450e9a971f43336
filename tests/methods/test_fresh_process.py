"""Every method saved; one fresh process elsewhere loads all folders and computes the same bits."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autopeft.adapter import save
from autopeft.candidate import Candidate
from autopeft.errors import UserError
from autopeft.methods import METHODS, build, canonical
from autopeft.methods.scored import ToyScoring, has_scored, look

ROOT = Path(__file__).resolve().parents[2]
META = {"classes": ["a", "b", "c"], "kind": "multiclass", "weights": "backbone.safetensors"}
SEED, REPEAT = 5, 3  # loading builds with 0 and 0: what is drawn has to come from the file
NOISE = 0.2
MORE = {
    "dora": {"method": "lora", "blocks": 2, "use_dora": True},
    "pissa": {"method": "lora", "blocks": 2, "init": "pissa"},
    "olora": {"method": "lora", "blocks": 2, "init": "olora"},
    "orthogonal": {"method": "lora", "blocks": 2, "init": "orthogonal"},
    "rotated": {"method": "lora_b_only", "blocks": 2, "a_init": "kaiming"},
    "early": {"method": "ssf", "blocks": 2, "readout_block": 4, "readout_pool": "avg"},
    "mixed": {
        "strata": [
            {"method": "lora", "blocks": [1, 2], "r": 2},
            {"method": "vera", "blocks": [3, 3], "r": 16},
            {"method": "gps", "blocks": [4, 5]},
            {"method": "bitfit", "blocks": [5, 5]},
        ]
    },
}
# The child knows the folders and the backbone's file alone. Its generators stand elsewhere and it
# loads in the opposite order, so nothing may hang on what was drawn or loaded before.
CHILD = """
import sys
from pathlib import Path
import numpy, torch
from autopeft import load_adapter

torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(987654321)
numpy.random.seed(4)
torch.randn(1000)
place = Path(sys.argv[1])
x = torch.from_numpy(numpy.load(place / "x.npy"))
found = {}
for folder in sorted((p for p in place.iterdir() if p.is_dir()), reverse=True):
    model = load_adapter(folder, weights=str(place / "backbone.safetensors"))
    with torch.inference_mode():
        found[folder.name] = model.model(x).numpy()
numpy.savez(place / "found.npz", **found)
"""


def trained(network, candidate: Candidate, noise: float):
    """An adapter of another seed and repeat whose every number has moved, the head's too."""
    size = network.facts.image_size
    generator = torch.Generator().manual_seed(3)
    label = torch.arange(6) % 3
    x = torch.randn(6, 3, size, size, generator=generator) + label.view(-1, 1, 1, 1)
    fixed = None
    if has_scored(candidate):
        fixed = look(candidate, ToyScoring(network, candidate, x, label, 3))
    adapted = build(network, candidate, 3, SEED, REPEAT, fixed)
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return adapted


def candidates(network) -> dict[str, Candidate]:
    """All that the backbone can have."""
    asked = {name: {"method": name, "blocks": 2} for name in METHODS} | MORE
    found = {}
    for name, raw in asked.items():
        with contextlib.suppress(UserError):  # not on this backbone; the test counts the rest
            found[name] = canonical(raw, network.facts)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "at_least"), [("test_vit", 74), ("test_resnet", 39), ("test_convnext", 60)]
)
def test_one_fresh_process_loads_every_method(networks, tmp_path, backbone, at_least):
    network = networks[backbone]
    place = tmp_path / "adapters"
    place.mkdir()
    save_file(network.model.state_dict(), place / "backbone.safetensors")
    size = network.facts.image_size
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(9))
    np.save(place / "x.npy", x.numpy())
    want, heads = {}, {}
    for name, candidate in candidates(network).items():
        adapted = trained(network, candidate, NOISE)
        folder = place / name
        folder.mkdir()
        save(adapted, folder, META)
        with torch.inference_mode():
            want[name] = adapted.logits(x).numpy()
            heads[name] = adapted.head(_frozen(network, candidate, x)).numpy()
    assert len(want) >= at_least

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, place, "1"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    with np.load(place / "found.npz") as found:
        assert set(found) == set(want)
        unequal = {
            n: float(abs(found[n] - want[n]).max()) for n in want if (found[n] != want[n]).any()
        }
    assert not unequal
    for name in want.keys() - {"linear_probe"}:
        assert abs(want[name] - heads[name]).max() > 1e-3, f"{name} was saved without effect"


def _frozen(network, candidate: Candidate, x):
    """Features of the frozen backbone at the candidate's readout."""
    raw = {"method": "linear_probe", "readout": vars(candidate.readout)}
    return build(network, canonical(raw, network.facts), 3, 0, 0).pooled(x)
