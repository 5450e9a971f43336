"""What ``result.json`` says about patient groups: gaps, decisions, ranking across groups, bounds.

All of it is on test, winner beside the declared opponent, and descriptive: the verdict reads only
its one contrast. The words that go with a number are decided here by fixed rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from autopeft.answer import Answer
from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.metrics import METRICS
from autopeft.metrics.bands import bands
from autopeft.metrics.classification import fit_threshold, sensitivity, specificity
from autopeft.metrics.fairness import across_groups
from autopeft.metrics.gaps import gaps
from autopeft.metrics.intersections import counted_in, intersected
from autopeft.metrics.missing import missing_bounds
from autopeft.metrics.standardized import standardized_gap

ODDS = (
    "equalized_odds_difference",
    "equalized_odds_ratio",
    "demographic_parity_difference",
    "demographic_parity_ratio",
)

Counted = Mapping[str, tuple[str, ...]]


def group_numbers(answer: Answer) -> dict[str, Any]:
    """Everything about groups but their rows, which ``groups`` of ``result.json`` holds.

    Returns:
        Empty without an attribute of two counted groups. Else ``models`` (winner and opponent:
        ``gaps``, ``odds``, ``across``, ``standardized``, ``bounds``, ``intersections``) and
        ``bands``: winner minus opponent in each group, all of them at once.
    """
    counted = {a: g for a, g in answer.audience.counted.items() if len(g) > 1}
    if not counted:
        return {}
    names = dict.fromkeys(("winner", answer.opponent.name))
    return {
        "models": {name: _model(answer, name, counted) for name in names},
        "bands": _bands(answer, counted),
    }


def _model(answer: Answer, name: str, counted: Counted) -> dict[str, Any]:
    test, labels = answer.scored[(name, 0, "test")], answer.audience.labels
    search = answer.scored[(name, 0, "search")]
    judged = evaluation(answer, test, search)
    told = gaps(test, counted, labels)
    bounds = [
        found
        for attribute, groups in counted.items()
        if (found := missing_bounds(test, attribute, groups, (labels or {}).get(attribute)))
    ]
    return {
        "gaps": [gap.to_dict() for gap in told],
        "odds": {metric: METRICS[metric](judged) for metric in ODDS},
        "rates": _rates(judged, counted),
        "across": [
            asdict(row) for a, groups in counted.items() for row in across_groups(test, a, groups)
        ],
        "standardized": _standardized(test, counted, labels),
        "bounds": [asdict(found) for found in bounds if found.due],
        "intersections": _intersections(answer, test, counted),
    }


def _rates(judged: Evaluation, counted: Counted) -> list[dict[str, Any]]:
    """Share of the positive images found, and of the negative ones called, by group and label."""
    p = judged.search
    rows = []
    for attribute, groups in counted.items():
        for group in groups:
            own = p.take(np.flatnonzero(p.groups[attribute] == group))
            found = sensitivity(own, judged.thresholds)
            cleared = specificity(own, judged.thresholds)
            for label in p.classes:
                clear = cleared[label]
                alarms = None if clear is None else 1 - clear
                row = {"attribute": attribute, "group": group, "label": label}
                rows.append({**row, "sensitivity": found[label], "false_alarms": alarms})
    return rows


def evaluation(answer: Answer, p: Predictions, search: Predictions) -> Evaluation:
    """Predictions judged at the thresholds that the model's own search scores gave."""
    found = answer.audience.evaluation(p, Cost(0, 0))
    return replace(found, thresholds=fit_threshold(search))


def _standardized(
    test: Predictions, counted: Counted, labels: Counted | None
) -> list[dict[str, Any]]:
    """Each attribute's gap with all other declared attributes held equal."""
    found = []
    for attribute, groups in counted.items():
        others = [a for a in test.groups if a != attribute]
        kept = None if labels is None else labels.get(attribute)
        one = standardized_gap(test, attribute, groups, others, kept) if others else None
        if one is not None:
            found.append(asdict(one) | {"raw_gap": one.raw_gap, "gap": one.gap})
    return found


def _intersections(answer: Answer, test: Predictions, counted: Counted) -> list[dict[str, Any]]:
    """Gaps of groups such as women under 60, counted by the same rule as others; shown only."""
    if len(counted) < 2:
        return []
    both = intersected(answer.audience.everyone(), counted)
    attributes = [a for a in both.groups if a not in test.groups]
    groups, labels = counted_in(both, attributes, answer.settings.min_group)
    large = {a: g for a, g in groups.items() if len(g) > 1}
    return [g.to_dict() for g in gaps(intersected(test, counted), large, labels)]


def label_bands(answer: Answer) -> dict[str, Any]:
    """Winner minus opponent in each label, where there are several: as ``bands`` of groups."""
    classes = answer.task.classes
    return _joint(answer, classes if len(classes) > 1 else (), {})


def _bands(answer: Answer, counted: Counted) -> dict[str, Any]:
    """Winner minus opponent in each counted group: bands that hold together (max-t)."""
    mine = answer.scored[("winner", 0, "test")]
    return _joint(answer, _scored(mine, counted, answer.audience.labels), counted)


def _joint(answer: Answer, names: Sequence[str], counted: Counted) -> dict[str, Any]:
    mine, theirs = (answer.scored[(n, 0, "test")] for n in ("winner", answer.opponent.name))
    metrics = [f"auroc:{name}" for name in names]
    if not metrics:
        return {}
    found = bands(mine, metrics, theirs, counted=counted, labels=answer.audience.labels)
    return {
        name.partition(":")[2]: None if band is None else band.to_dict()
        for name, band in found.items()
    }


def _scored(p: Predictions, counted: Counted, labels: Counted | None) -> Sequence[str]:
    """Counted groups that these patients can score."""
    from autopeft.metrics.groups import scored_groups

    return [g for scored in scored_groups(p, counted, labels) for g in scored.groups]
