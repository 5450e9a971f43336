"""The models that every winner is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopeft.backbones.facts import Facts
from autopeft.bench import Model
from autopeft.candidate import Pool
from autopeft.errors import UserError, nearest
from autopeft.methods import canonical

# Plain settings that a careful user would start from; none is tuned on any data set.
_RAW: dict[str, dict[str, Any]] = {
    "linear_probe": {"method": "linear_probe"},
    "lora_r8": {"method": "lora", "blocks": "all", "r": 8, "lora_alpha": 16, "lr": 1e-3},
    "lora_r8_readout": {"method": "lora", "blocks": "all", "r": 8, "lora_alpha": 16, "lr": 1e-3},
    "lora_r8_group": {
        "method": "lora",
        "blocks": "all",
        "r": 8,
        "lora_alpha": 16,
        "lr": 1e-3,
        "sampling": "group",
    },
    "bitfit": {"method": "bitfit", "blocks": "all", "lr": 5e-3},
    "full": {"method": "full", "blocks": "all", "lr": 5e-5},
}
REFERENCE = ("linear_probe", "lora_r8", "lora_r8_readout")  # their best is the utility floor


def names(asked: Sequence[str], needs_groups: bool) -> tuple[str, ...]:
    """Which baselines a run trains.

    Args:
        asked: ``--baseline`` flags; empty = all that the objective calls for.
        needs_groups: the objective reads groups.

    Raises:
        UserError: an unknown baseline, or one without ``linear_probe`` and ``lora_r8``.
    """
    for name in asked:
        if name not in _RAW:
            raise UserError(f"unknown baseline {name!r}", "--baseline", nearest(name, _RAW))
    if asked and not {"linear_probe", "lora_r8"} <= set(asked):
        raise UserError(
            f"{' and '.join(sorted({'linear_probe', 'lora_r8'} - set(asked)))} is missing",
            "--baseline",
            "linear_probe and lora_r8 are always needed: they set the accuracy floor.",
        )
    chosen = asked or tuple(n for n in _RAW if needs_groups or n != "lora_r8_group")
    return tuple(n for n in _RAW if n in chosen)


def make(
    wanted: Sequence[str], facts: Facts, readout: tuple[int, Pool], strength: float
) -> list[Model]:
    """The baselines as candidates; equal ones (same fingerprint) appear once.

    Args:
        wanted: names.
        facts: the backbone.
        readout: the readout that cross-validation inside train chose for the probe.
        strength: the probe's L2 strength, chosen the same way.
    """
    models: dict[str, Model] = {}
    for name in wanted:
        raw = dict(_RAW[name])
        if name in ("linear_probe", "lora_r8_readout"):
            raw["readout"] = {"block": readout[0], "pool": readout[1]}
        if name == "linear_probe":
            raw["weight_decay"] = strength
        candidate = canonical(raw, facts)
        models.setdefault(candidate.fingerprint, Model(name, candidate))
    return list(models.values())
