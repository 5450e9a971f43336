"""What a search would do, on whom, how long, and what it could show: before anything is trained.

``autopeft plan`` is ``autopeft search --dry-run``. It reads the task as a search does, decodes a
few images into a folder that is thrown away, runs a worker's jobs on them for half a minute, and
writes nothing where the run would write.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autopeft import protocol
from autopeft import settings as settings_file
from autopeft.audit import audit
from autopeft.declaring import declare
from autopeft.errors import RunError
from autopeft.estimate import estimate
from autopeft.job import Setup
from autopeft.metrics.power import (
    ALPHA,
    AUROC,
    CORRELATION,
    CORRELATIONS,
    POWER,
    SHARED,
    Sides,
    smallest_difference,
    smallest_gap,
    times_more,
    worst_group_difference,
)
from autopeft.prepare import Ready, finished, make_audience, make_setup, prepare
from autopeft.progress import Screen
from autopeft.rehearsal import rehearse
from autopeft.sample import Sample
from autopeft.settings import Settings
from autopeft.timing import Speed, time_worker

TIMING = 30.0  # seconds
_FOLDER, _OLD = "autopeft-plan-", 86_400.0  # a plan's folder; seconds after which it was left over


@dataclass(frozen=True)
class Plan:
    """What ``autopeft plan`` found.

    Attributes:
        numbers: plain data: ``data``, ``groups``, ``inner``, ``power``, ``gaps``, ``timing``,
            ``seconds``, ``search``, ``budget``, ``disk``, ``memory``, ``protocol``.
    """

    numbers: Mapping[str, Any]

    @property
    def lines(self) -> list[str]:
        """For people."""
        from autopeft.plan_words import plan_lines

        return plan_lines(self.numbers)


def plan(dataset: str = "phantom", timing: float = TIMING, **options: Any) -> Plan:
    """Looks ahead (the command ``autopeft plan``); trains nothing and keeps nothing.

    Args:
        dataset: a data set's name or a CSV file.
        timing: seconds of measuring this machine; 0 = none, and no estimate of time.
        **options: fields of ``Settings``, as of ``autopeft.search``.

    Raises:
        UserError: bad input, exactly as a search would find it.
    """
    values = settings_file.complete({"dataset": dataset, **options})
    return make_plan(settings_file.from_mapping(values, "autopeft.plan"), timing)


def make_plan(settings: Settings, timing: float = TIMING) -> Plan:
    """As ``plan``, of settings."""
    screen, began = Screen(settings.quiet), time.monotonic()
    state = _state(settings)
    _clear_old()
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder:
        sample = Sample(Path(folder))
        ready = prepare(settings, screen, decode=sample.decode)
        rehearse(ready.objective, make_audience(settings, ready, ""), settings.objective)
        setup = make_setup(settings, ready)
        seconds = {"start": time.monotonic() - began - sample.seconds}
        numbers = _found(settings, ready, setup) | {"run": settings.run_name, "state": state}
        speed, why = None, "--timing 0"
        if timing > 0:
            with screen.bar(f"timing this machine (about {timing:.0f} s)") as bar:
                bar(0, 1)
                speed, why = _timed(sample, setup, ready, timing)
                bar(1, 1)
        numbers["timing"] = asdict(speed) if speed else {"none": why}
        if speed is not None:
            numbers |= estimate(settings, ready, setup, sample, speed, seconds["start"])
        return Plan(numbers)


def _clear_old() -> None:
    """Removes what plans that were killed left in the folder for temporary files."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        try:
            left_over = time.time() - folder.lstat().st_mtime > _OLD
        except OSError:
            continue  # another plan was quicker
        if left_over:
            shutil.rmtree(folder, ignore_errors=True)


def _state(settings: Settings) -> str:
    """Whether the run was begun or is finished; refuses other settings on an old run."""
    if finished(settings) is not None:
        return "finished"
    return "begun" if (settings.run_dir / "settings.yaml").exists() else "new"


def _timed(sample: Sample, setup: Setup, ready: Ready, seconds: float) -> tuple[Speed | None, str]:
    """The timing, or why there is none."""
    small = sample.setup(setup)
    try:
        return time_worker(small, ready.network.facts, sample.each, seconds), ""
    except RunError as error:
        return None, str(error)


# ---- what the data can show ---------------------------------------------------------------------


def _found(settings: Settings, ready: Ready, setup: Setup) -> dict[str, Any]:
    """Everything that needs no timing."""
    counted = ready.counted
    declared = declare(settings, ready, setup)
    with tempfile.TemporaryDirectory() as folder:
        digest = protocol.write_protocol(Path(folder), declared)
    return {
        "data": audit(ready.task),
        "groups": {
            "counted": {a: list(g) for a, g in counted.groups.items()},
            "left_out": list(counted.notes),
            "min_group": settings.min_group,
        },
        "inner": {"chosen": counted.inner, "why": counted.why},
        "power": _power(settings, ready),
        "gaps": _gaps(ready),
        "protocol": {"sha256": digest, "lines": dict(declared)},
    }


def _sides(ready: Ready, split: str, group: str, labels: tuple[str, ...]) -> list[Sides]:
    """Positive and negative patients of some labels in a group (``all`` = everyone)."""
    table = ready.task.counts(split)
    here = table[table["group"] == group]
    pairs = zip(here["positives"].tolist(), here["negatives"].tolist(), strict=True)
    found = dict(zip(here["class"].tolist(), pairs, strict=True))
    return [found.get(c, (0, 0)) for c in labels]


def _power(settings: Settings, ready: Ready) -> dict[str, Any]:
    """Smallest detectable difference of winner and baseline, on confirm and on test."""
    task, primary = ready.task, ready.objective.primary
    found: dict[str, Any] = {
        "metric": primary,
        "assumed": {
            "auroc": AUROC, "correlation": CORRELATION, "alpha": ALPHA, "power": POWER,
            "labels": SHARED, "correlations": list(CORRELATIONS),
        },
        "margin": settings.margin,
    }  # fmt: skip
    for split in ("confirm", "test"):
        sets = {"all": _sides(ready, split, "all", task.classes)}
        if primary == "worst_group_auroc":
            for attribute, groups in ready.counted.groups.items():
                labels = ready.counted.labels[attribute]
                sets |= {g: _sides(ready, split, g, labels) for g in groups}
        found[split] = {name: _difference(sides, settings.margin) for name, sides in sets.items()}
    if primary == "worst_group_auroc":
        found["worst_group"] = {s: _worst(found[s], settings.margin) for s in ("confirm", "test")}
    return found


def _difference(sides: list[Sides], margin: float) -> dict[str, Any]:
    value = smallest_difference(sides)
    alike, unlike = (smallest_difference(sides, r) for r in CORRELATIONS)
    return {
        "sides": [list(s) for s in sides],
        "value": value,
        "low": alike,
        "high": unlike,
        "times": times_more(value, margin) if value and margin else None,
    }


def _worst(sets: Mapping[str, Mapping[str, Any]], margin: float) -> dict[str, Any]:
    """What the verdict on the worst group can show; groups that cannot be scored are not in it."""
    scored = [d["sides"] for name, d in sets.items() if name != "all" and d["value"] is not None]
    low, high = worst_group_difference(scored) or (None, None)
    return {
        "groups": len(scored),
        "value": low,
        "enough": high,
        "times": times_more(low, margin) if low and margin else None,
    }


def _gaps(ready: Ready) -> dict[str, Any]:
    """Smallest detectable gap of each attribute on test."""
    counted = {a: g for a, g in ready.counted.groups.items() if len(g) > 1}
    found = {}
    for attribute, groups in counted.items():
        labels = ready.counted.labels[attribute]
        found[attribute] = {
            split: smallest_gap([_sides(ready, split, g, labels) for g in groups], len(counted))
            for split in ("confirm", "test")
        }
    return found
