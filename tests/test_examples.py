"""Every example runs as it stands."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.objective import load_objective
from autopeft.space import load_space

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = [p for p in sorted(EXAMPLES.glob("*.py")) if "def main" in p.read_text()]
STARTS_RAY = [p for p in SCRIPTS if "ray.init" in p.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [pytest.param(p, marks=[pytest.mark.ray] if p in STARTS_RAY else []) for p in SCRIPTS],
    ids=lambda p: p.stem,
)
def test_example_runs(script, tmp_path):
    # A Ray of their own, whatever cluster somebody left behind here.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "is ready" in done.stdout


def test_own_objective_loads_by_path():
    objective = load_objective(str(EXAMPLES / "own_objective.py"))
    assert [t.name for t in objective.terms] == ["auroc", "trainable_params"]
    assert objective.directions == ("maximize", "minimize")


def test_the_tune_example_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.tune", None)  # as where only ray itself is installed
    with pytest.raises(SystemExit, match=r'needs Ray Tune .*pip install "ray\[tune\]"'):
        runpy.run_path(str(EXAMPLES / "tune_run_rung.py"))


def test_own_method_space_is_a_space_of_its_own_file():
    """It runs on Ray in test_own_method; its method keeps the contract in methods/test_own."""
    space = load_space(str(EXAMPLES / "own_method_space.yaml"))
    assert [file.path.name for file in space.plugins] == ["own_method.py"]
    assert set(space.methods) == {"gate", "lora"}
    first = space.plugins[0].text.splitlines()[2]
    assert first == "autopeft search --space examples/own_method_space.yaml"
