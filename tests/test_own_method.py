"""The example of a user's own method, end to end: searched on Ray, saved, loaded elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny

import autopeft
from autopeft import plugins
from autopeft.errors import UserError
from autopeft.methods import METHODS, own

ROOT = Path(__file__).resolve().parent.parent
LOAD = """
import sys, numpy, autopeft
folder, file = sys.argv[1:]
try:
    autopeft.load_adapter(folder)
except autopeft.UserError as error:
    print(error)
print(autopeft.register_methods(file))
model = autopeft.load_adapter(folder)
print(model.candidate.method, numpy.isfinite(model.predict(numpy.zeros((2, 28, 28, 1), 'uint8'))))
"""


@pytest.fixture
def _forgotten():
    yield
    METHODS.pop("gate", None)
    own._EXECUTED.clear()
    own._FILES.clear()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("_forgotten")
def test_a_method_of_one_s_own_is_searched_on_ray(tmp_path, monkeypatch):
    for name in ("own_method.py", "own_method_space.yaml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    file = tmp_path / "own_method.py"
    # The states of single trials are kept, to be looked at: a worker wrote them.
    monkeypatch.setattr("autopeft.writing._clean", lambda answer: None)
    asked = tiny(
        tmp_path / "runs",
        space=str(tmp_path / "own_method_space.yaml"),
        name="own",
        epochs=1,
        runner="ray",
        workers=1,
    )
    result = autopeft.search(**asked)
    trials = result.trials.set_index("method")
    assert trials.loc[["gate"], "state"].eq("complete").all(), result.trials
    declared = yaml.safe_load((result.folder / "protocol.yaml").read_text())
    sha256 = plugins.read_python(file).sha256
    assert declared["methods_from"] == [{"file": "own_method.py", "sha256": sha256}]

    state = f"{trials.loc[['gate'], 'fingerprint'].iloc[0]}-0-all-1"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, result.folder / "states" / state, file],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    refused, registered, loaded = done.stdout.splitlines()[:3]
    assert 'autopeft.register_methods("path/to/own_method.py") first' in refused
    assert registered == "('gate',)"
    assert loaded.startswith("gate [[ True]")

    # The finished run answers again, with the file that it was made with and no other.
    assert autopeft.search(**asked).verdict == result.verdict
    file.write_text(file.read_text() + "\n# edited\n")
    with pytest.raises(UserError, match=r"own_method\.py changed since this run was finished"):
        autopeft.search(**asked)
