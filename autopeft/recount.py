"""A second count of the core numbers, by other code than the one that made them.

It reads the tables that a run wrote for people (``predictions.csv``, ``splits.csv``) and uses
scikit-learn, plain sorting and counting; nothing of ``autopeft.metrics`` is in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

Numbers = Mapping[str, Any]
_CLOSE = 1e-7  # scores in the table have nine digits
_TARGET = 0.90  # sensitivity at which thresholds are set


@dataclass(frozen=True)
class Difference:
    """Where two counts differ.

    Attributes:
        where: path in ``result.json``.
        stored: what stands there.
        found: what was counted again.
    """

    where: str
    stored: Any
    found: Any


@dataclass(frozen=True)
class Recount:
    """What was counted again, and where it differs."""

    counted: int
    differences: tuple[Difference, ...]


def aurocs(numbers: Numbers, folder: Path) -> Recount:
    """AUROC of each model and split (repeat 0), overall and by label, with scikit-learn."""
    scores = _scores(folder)
    pairs = []
    for name, model in {"winner": numbers["best"], **numbers["baselines"]}.items():
        place = "best" if name == "winner" else f"baselines.{name}"
        for split in [s for s in scores["split"].unique() if s in model]:
            own = scores[
                (scores["model"] == name) & (scores["split"] == split) & (scores["repeat"] == 0)
            ]
            found = {label: _auroc(rows) for label, rows in own.groupby("label", sort=False)}
            known = [f for f in found.values() if f is not None]
            told = {f"auroc:{label}": f for label, f in found.items() if len(found) > 1}
            if known:
                mean = tuple(float(np.mean([f[i] for f in known])) for i in (0, 1))
                told["auroc"] = (mean[0], mean[1])
            for metric, value in told.items():
                stored = (model[split].get(metric) or {}).get("value")
                pairs.append((f"{place}.{split}.{metric}.value", stored, value))
    wrong = [
        Difference(where, stored, None if found is None else found[0])
        for where, stored, found in pairs
        if not _close(stored, found)
    ]
    return Recount(len(pairs), tuple(wrong))


def _close(stored: float | None, found: tuple[float, float] | None) -> bool:
    """Whether a value is the counted one, as far as its ties let it be known."""
    if stored is None or found is None:
        return stored is None and found is None
    return abs(stored - found[0]) <= found[1] + _CLOSE


def _auroc(rows: pd.DataFrame) -> tuple[float, float] | None:
    """AUROC, and by how much ties that rounding in the table made can have moved it."""
    from sklearn.metrics import roc_auc_score

    known = rows[rows["target"].notna()]
    target, score = known["target"].to_numpy(), known["score"].to_numpy()
    if len(np.unique(target)) < 2:
        return None
    value = float(roc_auc_score(target, score))
    positives = pd.Series(score[target == 1]).value_counts()
    negatives = pd.Series(score[target == 0]).value_counts()
    tied = float((positives * negatives.reindex(positives.index).fillna(0)).sum())
    return value, tied / 2 / (positives.sum() * negatives.sum())


def thresholds(numbers: Numbers, folder: Path) -> Recount:
    """The winner's thresholds: the highest score on search that reaches the sensitivity."""
    scores = _scores(folder)
    own = scores[
        (scores["model"] == "winner") & (scores["split"] == "search") & (scores["repeat"] == 0)
    ]
    wrong = []
    for label, stored in numbers["thresholds"].items():
        rows = own[(own["label"] == label) & (own["target"] == 1)]["score"]
        ranked = sorted(rows, reverse=True)
        found = ranked[math.ceil(_TARGET * len(ranked) - 1e-9) - 1] if ranked else None
        if (stored is None) != (found is None) or (found and abs(stored - found) > _CLOSE):
            wrong.append(Difference(f"thresholds.{label}", stored, found))
    return Recount(len(numbers["thresholds"]), tuple(wrong))


def counts(numbers: Numbers, folder: Path) -> Recount:
    """Patients and images of each split, and trials by how they ended."""
    splits = pd.read_csv(folder / "splits.csv", dtype=str, keep_default_na=False)
    pairs = []
    for split in numbers["patients"]:
        own = splits[splits["split"] == split]
        patients = own["patient_id"].nunique()
        pairs.append((f"patients.{split}", numbers["patients"][split], patients))
        pairs.append((f"images.{split}", numbers["images"][split], len(own)))
    states = pd.read_csv(folder / "trials.csv", usecols=["state"])["state"]
    for state, word in (("complete", "complete"), ("pruned", "pruned"), ("failed", "fail")):
        found = int((states == word).sum())
        pairs.append((f"trials.{state}", numbers["trials"][state], found))
    wrong = [Difference(*pair) for pair in pairs if pair[1] != pair[2]]
    return Recount(len(pairs), tuple(wrong))


def words(numbers: Numbers, folder: Path) -> Recount:
    """The words that follow from intervals by the rule that was declared."""
    contrast, kept = numbers["contrast"], numbers["accuracy_kept"]
    margin = float(yaml.safe_load((folder / "protocol.yaml").read_text())["margin"])
    sure = bool((kept["difference"] or {}).get("enough")) and kept["floor"] > -margin
    pairs = [
        ("contrast.word", contrast["word"], _word(contrast, margin)),
        ("accuracy_kept.margin", kept["margin"], margin),
        ("accuracy_kept.kept", kept["kept"], sure),
    ]
    if contrast["adapter"]:
        mine = numbers["best"]["test"].get(contrast["metric"])
        theirs = numbers["baselines"][contrast["baseline"]]["test"].get(contrast["metric"])
        apart = mine["value"] - theirs["value"] if mine and theirs else None
        stored = contrast["adapter"]["value"]
        same = apart is not None and math.isclose(apart, stored, abs_tol=1e-9)
        pairs.append(("contrast.adapter.value", stored, stored if same else apart))
    wrong = [Difference(*pair) for pair in pairs if pair[1] != pair[2]]
    return Recount(len(pairs), tuple(wrong))


def _word(contrast: Numbers, margin: float) -> str:
    """What the interval may be called; for the worst group every group has to bear it out."""
    gap, floor = contrast["adapter"], contrast["worst_group"]
    if gap is None or not gap["enough"] or contrast["primary_undefined_on_test"]:
        return "cannot tell"
    if gap["low"] <= -margin:
        return "worse" if gap["high"] < 0 else "cannot tell"
    low = gap["low"]
    if contrast["metric"] == "worst_group_auroc":
        low = min(low, -math.inf if floor is None else floor["low"])
    if low <= -margin:
        return "cannot tell"
    return "better" if low > 0 else "not worse"


def _scores(folder: Path) -> pd.DataFrame:
    """``predictions.csv`` without ids."""
    text = {"split": str, "model": str, "label": str}
    return pd.read_csv(
        folder / "predictions.csv",
        usecols=["split", "model", "repeat", "label", "target", "score"],
        dtype={**text, "repeat": int, "target": float, "score": float},
        keep_default_na=False,
        na_values={"target": [""]},
    )
