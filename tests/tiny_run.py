"""The smallest real run: synthetic films of 28 px through the package's own backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "data_option": {"patients": "60", "size": "32", "contrast": "2"},
    "image_size": 28,
    "space": "quick",
    "trials": 3,
    "epochs": 2,
    "confirm": 1,
    "seeds": 1,
    "views": 2,
    "min_group": 2,
    "cpus_per_worker": 1,
    "precision": "fp32",
    "baselines": ("linear_probe", "lora_r8"),
    "quiet": True,
}


def tiny(runs: Path, **changes: Any) -> dict[str, Any]:
    """Options of ``autopeft.search`` for a run that takes seconds."""
    return {**TINY, "runs_dir": str(runs), **changes}


def flags(options: dict[str, Any]) -> list[str]:
    """The same options as command-line flags."""
    words: list[str] = []
    for key, value in options.items():
        name = {"baselines": "--baseline"}.get(key, f"--{key.replace('_', '-')}")
        if isinstance(value, bool):
            words += [name] if value else []
        elif isinstance(value, dict):
            words += [w for k, v in value.items() for w in (name, f"{k}={v}")]
        elif isinstance(value, tuple):
            words += [w for v in value for w in (name, v)]
        else:
            words += [name, str(value)]
    return words
