"""Uncertain labels: the verdict read with them as 0 and as 1 (PROTOCOL 7).

In evaluated splits an uncertain label is unknown, so that no number is made of it. Whether that
decides anything is asked here: the declared contrast once more on test, with every uncertain label
read as absent, and as present. The verdict itself stays; it says so where its word would change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.answer import Answer
from autopeft.data.splits import UNCERTAIN
from autopeft.evaluation import Predictions
from autopeft.metrics.classification import auroc
from autopeft.metrics.intervals import Interval, non_inferior
from autopeft.verdict import declared_word, lost_groups

READ = {"as_zero": 0.0, "as_one": 1.0}

Bools = npt.NDArray[np.bool_]


def readings_of(
    answer: Answer, metric: str, word: str, lost: Sequence[str] = (), undefined: bool = False
) -> dict[str, Any]:
    """The declared contrast under both readings.

    Args:
        answer: with test opened; images with uncertain labels only scored as ``uncertain``.
        metric: of the declared contrast.
        word: what it was called.
        lost: groups that the verdict calls levelled down.
        undefined: the declared metric is undefined on test; then no label changes the word.

    Returns:
        Empty where no test label is uncertain. Else ``as_zero`` and ``as_one`` (``word``,
        ``difference``, ``winner`` and ``opponent`` AUROC, ``levelled_down``, ``accuracy``: the
        difference in AUROC and whether it is kept, and ``changes``: which of the three would be
        another), ``flips``: whether any would, ``labels``: how many are uncertain, and ``rates``
        by group and label.
    """
    names = dict.fromkeys(("winner", answer.opponent.name))
    whole = {name: _whole(answer, name) for name in names}
    unsure = _unsure(answer)
    if not unsure.any():
        return {}
    kept = _kept(answer)["kept"]
    found: dict[str, Any] = {}
    for reading, value in READ.items():
        read = {
            (name, 0, "test"): replace(p, target=np.where(unsure, np.float32(value), p.target))
            for name, p in whole.items()
        }
        there = replace(answer, scored={**answer.scored, **read})
        gap, _, other = declared_word(there, metric)
        other = "cannot tell" if undefined else other
        down, accuracy = list(lost_groups(there)), _kept(there)
        changed = {
            "word": other != word,
            "levelled_down": down != list(lost),
            # Where AUROC is the declared metric, its word says it already.
            "accuracy": metric != "auroc" and accuracy["kept"] != kept,
        }
        found[reading] = {
            "word": other,
            "levelled_down": down,
            "accuracy": accuracy,
            "changes": [name for name, other_one in changed.items() if other_one],
            "difference": gap.to_dict() if gap else None,
            "winner": auroc(read[("winner", 0, "test")]),
            "opponent": auroc(read[(answer.opponent.name, 0, "test")]),
        }
    return {
        **found,
        "flips": any(found[reading]["changes"] for reading in READ),
        "labels": int(unsure.sum()),
        "rates": rates(whole["winner"], unsure),
    }


def _kept(answer: Answer) -> dict[str, Any]:
    """AUROC of winner minus opponent on test, repeat 0, and whether it keeps the margin."""
    gap: Interval | None = declared_word(answer, "auroc")[0]
    return {
        "kept": non_inferior(gap, answer.settings.margin),
        "difference": gap.to_dict() if gap else None,
    }


def rates(p: Predictions, unsure: Bools) -> list[dict[str, Any]]:
    """Share of a group's images whose label is uncertain, by group and label.

    Args:
        p: predictions (only groups and classes are read).
        unsure: which labels [N, C] are uncertain.
    """
    members = [("all", "all", np.ones(len(unsure), np.bool_))]
    for attribute, names in p.groups.items():
        members += [(attribute, str(g), names == g) for g in np.unique(names)]
    return [
        {
            "attribute": attribute,
            "group": group,
            "label": label,
            "images": int(member.sum()),
            "uncertain": float(unsure[member, c].mean()),
        }
        for attribute, group, member in members
        for c, label in enumerate(p.classes)
    ]


def with_readings(sentence: str, readings: dict[str, Any]) -> str:
    """The verdict's sentence, and what it would say if uncertain labels were read."""
    if not readings.get("flips"):
        return sentence
    told = " and ".join(
        f"as {value:g} {_said(readings[reading])}" for reading, value in READ.items()
    )
    return f"{sentence.removesuffix('.')}; it hangs on uncertain labels: read {told}."


def _said(reading: dict[str, Any]) -> str:
    """The word, and what else would be another."""
    said = [f'"{reading["word"]}"']
    if "levelled_down" in reading["changes"]:
        said.append(f"levelled down {', '.join(reading['levelled_down']) or 'nobody'}")
    if "accuracy" in reading["changes"]:
        kept = "kept" if reading["accuracy"]["kept"] else "not shown to be kept"
        said.append(f"AUROC on test {kept}")
    return ", ".join(said)


def _whole(answer: Answer, name: str) -> Predictions:
    """Predictions on test, those on images with uncertain labels only behind them."""
    test, rest = (answer.scored.get((name, 0, split)) for split in ("test", UNCERTAIN))
    assert test is not None
    if rest is None:
        return test
    return replace(
        test,
        score=np.concatenate([test.score, rest.score]),
        target=np.concatenate([test.target, rest.target]),
        patient=np.concatenate([test.patient, rest.patient]),
        part=np.concatenate([test.part, rest.part]),
        groups={k: np.concatenate([v, rest.groups[k]]) for k, v in test.groups.items()},
    )


def _unsure(answer: Answer) -> Bools:
    """Which labels of `_whole` are uncertain."""
    splits = ["test", *([UNCERTAIN] if answer.task.has(UNCERTAIN) else [])]
    return np.concatenate([answer.task.unsure(split) for split in splits])
