"""New patients beside the adapter's own test patients: what its run's ``result.json`` recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Numbers = Mapping[str, Any]
_UP = 2  # folders between an adapter and its run: best/, baselines/NAME/


def recorded(folder: Path, fingerprint: str) -> tuple[str, Numbers] | None:
    """Under which name the run that an adapter lies in knows it, and the run's numbers.

    Args:
        folder: of the adapter.
        fingerprint: of its candidate: a folder that was put there later is not taken for it.
    """
    folder = folder.resolve()
    for run in folder.parents[:_UP]:
        try:
            numbers = json.loads((run / "result.json").read_text())
            name = "winner" if folder == run / "best" else folder.name
            table = numbers["best"] if name == "winner" else numbers["baselines"][name]
            if table["fingerprint"] == fingerprint:
                return name, numbers
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def drift(
    name: str, numbers: Numbers, labels: Sequence[Numbers], groups: Sequence[Numbers]
) -> Any:
    """New minus recorded, for every number that the run recorded on its test patients.

    Args:
        name: of the adapter in its run.
        numbers: of the run.
        labels: rows of ``external.numbers.label_rows``, named by the adapter's classes.
        groups: rows of ``group_rows``.

    Returns:
        Rows with ``label``, ``group`` (None = everyone), ``metric``, ``old``, ``new`` and
        ``difference`` (of different patients, so unpaired).
    """
    table = numbers["best"] if name == "winner" else numbers["baselines"][name]
    several = len(numbers.get("thresholds", ())) > 1
    rows = []
    for row in labels:
        for metric, old in _whole(table, row["label"], several).items():
            rows.append(_compared(row, None, metric, old))
    past = {
        (g["attribute"], g["group"], g["label"]): g
        for g in numbers.get("groups", ())
        if g["model"] == name
    }
    for row in groups:
        then = past.get((row["attribute"], row["group"], row["label"]))
        if then is not None:
            for metric, old in _of_group(table, then, several).items():
                rows.append(_compared(row, row["group"], metric, old))
    return [row for row in rows if row is not None]


def _whole(table: Numbers, label: str, several: bool) -> dict[str, Numbers | None]:
    """What a model's table says of one label on test."""
    operating = table.get("operating") or {}
    calibration = (operating.get("calibration") or {}).get("all") or {}
    found = {"auroc": table["test"].get(f"auroc:{label}" if several else "auroc")}
    found |= _calibrated(calibration, label, several)
    if not several:  # these are means over labels there
        rates = operating.get("rates") or {}
        found |= {rate: rates.get(rate) for rate in ("sensitivity", "specificity")}
        precision = operating.get("average_precision")
        found["average_precision"] = None if precision is None else {"value": precision}
    return found


def _of_group(table: Numbers, then: Numbers, several: bool) -> dict[str, Numbers | None]:
    """What a row of a run's groups, and the group's calibration, say."""
    found: dict[str, Numbers | None] = {"auroc": then.get("interval")}
    if found["auroc"] is None and then.get("auroc") is not None:
        found["auroc"] = {"value": then["auroc"]}
    if then.get("missed") is not None:
        found["sensitivity"] = {"value": 1 - then["missed"]}
    calibration = ((table.get("operating") or {}).get("calibration") or {}).get(then["group"])
    return found | _calibrated(calibration or {}, then["label"], several)


def _calibrated(told: Numbers, label: str, several: bool) -> dict[str, Numbers | None]:
    fit = (told.get("classes") or {}).get(label) or {}
    found = {f"calibration_{name}": fit.get(name) for name in ("intercept", "slope")}
    return found if several else {**found, "brier": told.get("brier")}


def _compared(row: Numbers, group: str | None, metric: str, old: Numbers | None) -> Any:
    new = row["metrics"].get(metric)
    if old is None or new is None:
        return None
    kept = ("value", "low", "high")
    return {
        "label": row["label"],
        "group": group,
        "metric": metric,
        "old": {k: old.get(k) for k in kept},
        "new": {k: new.get(k) for k in kept},
        "difference": difference(new, old),
    }


def difference(new: Numbers, old: Numbers) -> dict[str, float | None]:
    """New minus old of different patients, from the two intervals.

    d - sqrt((new - new_low)^2 + (old_high - old)^2) to d + sqrt((new_high - new)^2 +
    (old - old_low)^2): the method of variance estimates recovery (Newcombe 1998; Zou & Donner
    2008), which leaves skewed intervals skewed. No bounds where one of the two has none.
    """
    value = new["value"] - old["value"]
    if None in (new.get("low"), old.get("low")):
        return {"value": value, "low": None, "high": None}
    down = ((new["value"] - new["low"]) ** 2 + (old["high"] - old["value"]) ** 2) ** 0.5
    up = ((new["high"] - new["value"]) ** 2 + (old["value"] - old["low"]) ** 2) ** 0.5
    return {"value": value, "low": value - down, "high": value + up}
