"""The built wheel, installed outside of the checkout: spaces, objectives and weights are in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", folder, ROOT], check=True
    )
    return next(folder.glob("*.whl"))


def test_wheel_installs_one_top_level_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"autopeft"}
    assert "autopeft/backbones/weights/autopeft_vit_nano.safetensors" in names
    assert "autopeft/report/report.html" in names


def test_every_module_of_the_checkout_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "autopeft").rglob("*.py")}
    assert modules <= names


def test_installed_wheel_lists_spaces_and_objectives(wheel, tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "-t",
            tmp_path / "site",
            wheel,
        ],
        check=True,
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for kind, name in (("spaces", "quick"), ("objectives", "fairness")):
        done = subprocess.run(
            [sys.executable, "-m", "autopeft.cli", kind, "--json"],
            env=env, cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert name in {row["name"] for row in json.loads(done.stdout)}
    where = subprocess.run(
        [sys.executable, "-c", "import autopeft; print(autopeft.__file__)"],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path) in where.stdout
