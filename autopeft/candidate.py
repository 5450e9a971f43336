"""Candidate: one way to fine-tune, in canonical form, with a fingerprint.

Candidates are made only by ``autopeft.methods.canonical(raw, facts)``; this file holds what they
are, not what is allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Pool = Literal["token", "avg", "token+avg"]


@dataclass(frozen=True)
class Stratum:
    """One method on one contiguous range of blocks.

    Attributes:
        blocks: first and last block, both included.
        modules: sorted module names inside a block (``qkv``, ``proj``, ``fc1`` ...).
        method: the method's name.
        options: all of the method's options, defaults filled in.
    """

    blocks: tuple[int, int]
    modules: tuple[str, ...]
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Train:
    """How the adapter is trained. Fields that a method does not read hold their default.

    ``group_dro`` weighs the cells that ``sampling`` draws equally often by how badly they are
    served (``training/group_dro.py``); it is left out of the canonical JSON where it is off, so
    that candidates from before there was one keep their fingerprint.
    """

    optimizer: Literal["adamw", "sgd", "lbfgs"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    loss: Literal["bce", "weighted", "focal", "asl"] = "bce"
    sampling: Literal["plain", "label", "group", "label_x_group"] = "plain"
    head_init: Literal["probe", "random"] = "probe"
    group_dro: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what came later is left out where it holds its default."""
        plain = dict(vars(self))
        if not self.group_dro:
            del plain["group_dro"]
        return plain


@dataclass(frozen=True)
class Readout:
    """Where the head reads: after ``block`` blocks (1..L), pooled as ``pool``."""

    block: int
    pool: Pool


@dataclass(frozen=True)
class Post:
    """A step after training, part of what is scored.

    Attributes:
        method: ``wise_ft``: weights on the way from the frozen network with the linear probe's
            head to the trained one.
        alpha: how far, in (0, 1); all the way is no step.
    """

    method: Literal["wise_ft"]
    alpha: float


@dataclass(frozen=True)
class Candidate:
    """Strata, training fields and readout; equal candidates have equal fingerprints."""

    strata: tuple[Stratum, ...]
    train: Train
    readout: Readout
    post: Post | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the canonical layout (``{"v": 1, "strata": [...], ...}``)."""
        return {
            "v": 1,
            "strata": [
                {
                    "blocks": list(s.blocks),
                    "modules": list(s.modules),
                    "method": s.method,
                    "options": dict(s.options),
                }
                for s in self.strata
            ],
            "train": self.train.to_dict(),
            "readout": dict(vars(self.readout)),
            "post": dict(vars(self.post)) if self.post else None,
        }

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Candidate:
        """Reads back ``to_dict``; trusts that it is canonical."""
        strata = tuple(
            Stratum(
                (int(s["blocks"][0]), int(s["blocks"][1])),
                tuple(s["modules"]),
                s["method"],
                dict(s["options"]),
            )
            for s in value["strata"]
        )
        post = Post(**value["post"]) if value.get("post") else None
        return Candidate(strata, Train(**value["train"]), Readout(**value["readout"]), post)

    def to_json(self) -> str:
        """The canonical JSON: sorted keys, floats to six significant digits."""
        return json.dumps(_rounded(self.to_dict()), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def twin(self) -> Candidate:
        """The same without a step after training: what is trained, to the bit."""
        return replace(self, post=None) if self.post else self

    @property
    def method(self) -> str:
        """The method's name; several are joined by ``+``; no stratum is ``linear_probe``."""
        return "+".join(dict.fromkeys(s.method for s in self.strata)) or "linear_probe"

    @property
    def title(self) -> str:
        """A short name for people, e.g. ``lora r=8 blocks 8-11``."""
        parts = []
        for s in self.strata:
            size = "".join(f" {k}={v}" for k, v in s.options.items() if k == "r")
            parts.append(f"{s.method}{size} blocks {s.blocks[0]}-{s.blocks[1]}")
        place = f"readout {self.readout.block} {self.readout.pool}"
        step = f", {self.post.method} {self.post.alpha:g}" if self.post else ""
        return f"{' + '.join(parts) or 'linear_probe'}, {place}{step}"


def _rounded(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (float, dict, list)):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value]
