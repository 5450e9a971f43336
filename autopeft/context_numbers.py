"""What ``result.json`` puts beside the winner: its parts, simple baselines, shortcuts.

All of it describes; none of it takes part in the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autopeft.ablation import contributions
from autopeft.answer import Answer
from autopeft.metrics.generalization import Fitted, Gap, generalization_gaps
from autopeft.metrics.intervals import COMPARABLE, bootstrap
from autopeft.metrics.memorization import Attack, attacks, words
from autopeft.metrics.shortcuts import feature_shortcuts, shortcuts
from autopeft.selection import compare


def contributions_of(answer: Answer) -> list[dict[str, Any]]:
    """What fine-tuning and the levers add, on test over the fresh seeds. Descriptive."""
    # Of AUROC: a difference of two lowest groups flatters whose groups differ (metrics.worst).
    primary = answer.objective.primary
    audience, metric = answer.audience, "auroc" if primary == "worst_group_auroc" else primary
    mine, *others = [
        [answer.scored[(m.name, r, "test")] for r in answer.repeats]
        for m in (answer.winner, *answer.ablated)
    ]
    names = [m.name for m in answer.ablated]
    found = contributions(
        answer.picked.candidate, mine, dict(zip(names, others, strict=True)),
        metric if metric in COMPARABLE else "auroc", audience.counted, audience.labels,
    )  # fmt: skip
    return [
        {**vars(c), "interval": c.interval and c.interval.to_dict(), "sentence": c.sentence}
        for c in found
    ]


def simple_of(answer: Answer) -> dict[str, Any]:
    """What needs no fine-tuning, on confirm and on test."""
    found: dict[str, Any] = {}
    for split in ("confirm", "test"):
        for name in answer.simple[split].models if split in answer.simple else ():
            interval = bootstrap(answer.scored[(name, 0, split)], "auroc")
            table = found.setdefault(name, {})
            table[split] = {"auroc": interval.to_dict()} if interval else {}
            if split == "test":
                mine, theirs = (answer.scored[(n, 0, split)] for n in ("winner", name))
                apart = compare(answer.audience, "auroc", [mine], [theirs])
                table[split]["difference"] = None if apart is None else apart.to_dict()
    return found


def shortcuts_of(answer: Answer) -> dict[str, Any]:
    """What the winner's scores, and frozen features, tell of the groups at equal labels."""
    test = answer.scored[("winner", 0, "test")]
    if not test.groups:
        return {}
    found = {"winner": shortcuts(test)}
    groups = answer.simple["test"].groups if "test" in answer.simple else None
    if groups is not None:
        found["features"] = feature_shortcuts(test, groups)
    return {
        name: [
            {**vars(row), "interval": row.interval and row.interval.to_dict()}
            | {"sentence": row.sentence}
            for row in rows
        ]
        for name, rows in found.items()
    }


def memorization_of(answer: Answer) -> dict[str, Any]:
    """What attacks tell of who was trained on; empty where the objective does not ask.

    Returns:
        ``words``: what may be said of the saved adapter. ``models``: attacks on the saved
        adapters. ``recipes``: the stronger attacks, on recipes trained on halves of the patients.
        ``planted``: of the wrong labels planted on purpose, how many each recipe learns by heart.
        ``generalization``: AUROC on members minus on others, of the winner, by group.
    """
    audience, bench = answer.audience, answer.bench
    if audience.null is None:
        return {}
    null = audience.both(*audience.null)
    found: dict[str, list[Attack]] = {}
    gaps: Mapping[str, Gap] = {}
    for model in answer.models:
        both = audience.members_of(bench.trained[(model.candidate.fingerprint, 0)])
        if both is not None:
            found[model.name] = attacks(*both, null)
        if both is not None and model.name == "winner":
            gaps = generalization_gaps(*both, audience.counted, audience.labels)
    return {
        "words": words([*found.get("winner", []), *answer.recipes.get("winner", [])]),
        "models": {name: [asdict(a) for a in rows] for name, rows in found.items()},
        "planted": {n: _plain(f) for n, f in answer.planted.items()},
        "recipes": {n: [asdict(a) for a in rows] for n, rows in answer.recipes.items()},
        "generalization": {name: asdict(gap) for name, gap in gaps.items()},
    }


def _plain(fitted: Fitted | None) -> dict[str, Any] | None:
    """JSON knows no NaN."""
    if fitted is None:
        return None
    return {k: None if v != v else v for k, v in asdict(fitted).items()}
