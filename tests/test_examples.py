"""Every example runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.objective import load_objective

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [p for p in sorted((ROOT / "examples").glob("*.py")) if "def main" in p.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_example_runs(script, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "is ready" in done.stdout


def test_own_objective_loads_by_path():
    objective = load_objective(str(ROOT / "examples" / "own_objective.py"))
    assert [t.name for t in objective.terms] == ["auroc", "trainable_params"]
    assert objective.directions == ("maximize", "minimize")
