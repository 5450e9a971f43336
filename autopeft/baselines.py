"""The models that every winner is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autopeft.backbones.facts import Facts
from autopeft.bench import Bench, Model
from autopeft.candidate import Candidate, Pool
from autopeft.errors import UserError, nearest
from autopeft.evaluation import Predictions
from autopeft.job import Job
from autopeft.methods import canonical
from autopeft.progress import Bar

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
    "lora_r8_group_dro": {
        "method": "lora",
        "blocks": "all",
        "r": 8,
        "lora_alpha": 16,
        "lr": 1e-3,
        "sampling": "group",
        "group_dro": True,
    },
    "bitfit": {"method": "bitfit", "blocks": "all", "lr": 5e-3},
    "full": {"method": "full", "blocks": "all", "lr": 5e-5},
}
_FOR_GROUPS = ("lora_r8_group", "lora_r8_group_dro")  # where the objective reads groups
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
            f"{sorted({'linear_probe', 'lora_r8'} - set(asked))[0]} is missing",
            "--baseline",
            "linear_probe and lora_r8 are always needed: they set the accuracy floor.",
        )
    chosen = asked or tuple(n for n in _RAW if needs_groups or n not in _FOR_GROUPS)
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


# ---- what needs no fine-tuning ------------------------------------------------------------------

SIMPLE = ("knn", "demographics", "thumbnail")  # names in predictions.csv and in the report


@dataclass(frozen=True)
class Simple:
    """Scores of one split by what needs no fine-tuning. Nothing here was drawn, so no repeats.

    Attributes:
        models: ``knn``, ``thumbnail``, and ``demographics`` where the task has groups; shown
            beside the baselines, never winners.
        groups: frozen features' scores for each known group, classes named by the groups, each
            target 1 in the group, 0 in another of its attribute, NaN where that is unknown; None
            without groups. For ``metrics.shortcuts``.
        k: neighbors, as chosen inside train.
    """

    models: dict[str, Predictions]
    groups: Predictions | None
    k: int


def simple(bench: Bench, probe: Candidate, split: str, bar: Bar) -> Simple:
    """Fits on train, scores one split; a job that was done is read from the journal.

    Args:
        bench: runs the job; its audience must have the split open. Labels stay in the driver.
        probe: the linear probe's candidate: neighbors are looked for at its readout.
        split: ``search``, ``confirm`` or ``test``.
        bar: progress.
    """
    audience, rows = bench.audience, bench.audience.rows[split]
    blind = replace(rows, label=None)
    job = Job("simple", audience.setup, probe, rows=blind, split=split)
    outcome = bench.ask(job, bar)
    assert outcome.predictions is not None
    with np.load(audience.run_dir / "predictions" / outcome.predictions) as stored:
        scores = {name: stored[name] for name in stored.files}
    columns = [(str(a), str(g)) for a, g in outcome.extra["groups"]]
    found = None
    if "groups" in scores:
        first = audience.of(np.zeros((len(rows), len(audience.classes))), split, 0)
        target = [
            np.where(rows.groups[a] == "unknown", np.nan, rows.groups[a] == g) for a, g in columns
        ]
        found = replace(
            first,
            score=scores["groups"],
            target=np.stack(target, axis=1).astype(np.float32),
            classes=tuple(g for _, g in columns),
            kind="multilabel",
        )
    models = {name: audience.of(scores[name], split, 0) for name in SIMPLE if name in scores}
    return Simple(models, found, int(outcome.extra["k"]))
