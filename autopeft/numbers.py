"""Every number of ``result.json``, from the predictions of saved adapters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from autopeft.answer import Answer
from autopeft.bench import Model
from autopeft.choice_numbers import choice_numbers
from autopeft.context_numbers import (
    contributions_of,
    memorization_of,
    shortcuts_of,
    simple_of,
)
from autopeft.evaluation import Predictions
from autopeft.group_numbers import group_numbers, label_bands
from autopeft.metrics import METRICS
from autopeft.metrics.classification import fit_threshold
from autopeft.metrics.groups import group_table
from autopeft.metrics.intervals import (
    Interval,
    bootstrap,
    delong_interval,
    recipe_interval,
)
from autopeft.operating_numbers import operating_numbers
from autopeft.readings import readings_of, with_readings
from autopeft.selection import mean_value
from autopeft.verdict import accuracy_kept, contrast_of, lost_groups, sentence
from autopeft.version import __version__

PACKAGES = ("optuna", "torch", "timm", "peft", "ray", "numpy")


def numbers(answer: Answer, bar: Any) -> dict[str, Any]:
    """All of ``result.json`` but the seconds."""
    done, total = 0, len(answer.models) + 3
    tables = {}
    for model in answer.models:
        tables[model.name] = _model_table(answer, model)
        done += 1
        bar(done, total)
    contrast = contrast_of(answer)
    kept = accuracy_kept(answer)
    bar(done + 1, total)
    groups = _groups(answer)
    lost = lost_groups(answer)
    bar(done + 2, total)
    fairness = group_numbers(answer)
    readings = readings_of(
        answer,
        contrast["metric"],
        contrast["word"],
        lost,
        contrast["primary_undefined_on_test"],
    )
    bar(total, total)
    return {
        "verdict": with_readings(sentence(answer, contrast, kept, lost), readings),
        "use": "Research use; not a medical device.",
        "run": answer.settings.run_name,
        "objective": answer.settings.objective,
        "space": answer.settings.space,
        "primary": answer.objective.primary,
        "best": tables["winner"],
        "baselines": {m.name: tables[m.name] for m in answer.baselines},
        "contrast": contrast,
        "accuracy_kept": kept,
        "levelled_down": list(lost),
        "readings": readings,
        "groups": groups,
        "fairness": fairness,
        "label_bands": label_bands(answer),
        "contributions": contributions_of(answer),
        "simple": simple_of(answer),
        "shortcuts": shortcuts_of(answer),
        "memorization": memorization_of(answer),
        "thresholds": dict(zip(answer.task.classes, answer.thresholds, strict=True)),
        **choice_numbers(answer),
        "readout": {
            "block": answer.readout.block,
            "pool": answer.readout.pool,
            "table": dict(answer.readout.table),
        },
        "reference": dict(answer.reference),
        **_record(answer),
    }


def _record(answer: Answer) -> dict[str, Any]:
    """What was done, on whom, with what."""
    entries = answer.bench.study.entries
    return {
        "trials": {
            state: sum(e.state == word for e in entries)
            for state, word in (("complete", "complete"), ("pruned", "pruned"), ("failed", "fail"))
        },
        "rungs": sum(len(e.rungs) for e in entries),
        "look": answer.look.number,
        "looks": answer.look.to_dict(),
        "external_looks": answer.external_looks,
        "patients": {s: len(set(r.patient.tolist())) for s, r in answer.audience.rows.items()},
        "images": {s: len(r) for s, r in answer.audience.rows.items()},
        "inner": inner_of(answer),
        "counted": {a: list(g) for a, g in answer.audience.counted.items()},
        "notes": [*answer.task.notes, *answer.group_notes],
        "protocol": answer.declared,
        "backbone": {
            "name": answer.network.facts.name,
            "sha256": answer.network.facts.sha256,
            "params": answer.network.facts.params,
        },
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"autopeft": __version__, **{name: version(name) for name in PACKAGES}},
    }


def inner_of(answer: Answer) -> dict[str, Any]:
    """What the search measured on: ``kind``, and the patients of each of its folds."""
    folds = [len(set(rows.patient.tolist())) for rows in answer.audience.folds]
    return {"kind": "cv5" if folds else "holdout", "folds": folds}


def _model_table(answer: Answer, model: Model) -> dict[str, Any]:
    """One model's numbers; ``search``, ``confirm``, ``test`` are of repeat 0, as saved."""
    cost = answer.bench.trained[(model.candidate.fingerprint, 0)].cost
    assert cost is not None
    table: dict[str, Any] = {
        "config": model.candidate.to_dict(),
        "title": model.candidate.title,
        "fingerprint": model.candidate.fingerprint,
        "trainable_params": cost.trainable_params,
        "adapter_bytes": cost.adapter_bytes,
        "train_seconds": cost.train_seconds,
    }
    for split in ("search", "confirm", "test", *answer.task.external):
        predictions = answer.scored[(model.name, 0, split)]
        table[split] = {
            name: interval.to_dict() | {"patients": interval.patients}
            for name in _metric_names(answer)
            if (interval := _bootstrap(answer, predictions, name)) is not None
        }
        gap = METRICS["auroc_gap"](answer.audience.evaluation(predictions, cost))
        if gap is not None:  # its percentile interval cannot contain 0: shown without one
            table[split]["auroc_gap"] = {"value": gap, "low": None, "high": None}
    exact = delong_interval(answer.scored[(model.name, 0, "test")])
    if exact is not None and "auroc" in table["test"]:  # a cross-check without resampling
        table["test"]["auroc"]["delong"] = {"low": exact.low, "high": exact.high}
    seeds = [answer.scored[(model.name, r, "test")] for r in answer.repeats]
    chosen_on = [answer.scored[(model.name, r, "confirm")] for r in answer.repeats]
    table["seeds"] = {
        "repeats": len(seeds),
        **{
            split: {
                name: value
                for name in ("auroc", answer.objective.primary)
                if (value := mean_value(answer.audience, name, repeats)) > float("-inf")
            }
            for split, repeats in (("test", seeds), ("confirm", chosen_on))
        },
    }
    recipe = _recipe(answer, seeds, None, answer.objective.primary)
    if recipe is not None:
        table["recipe"] = recipe.to_dict()
    if model.name in ("winner", answer.opponent.name):
        table["operating"] = operating_numbers(answer, model.name)
    return table


def _metric_names(answer: Answer) -> list[str]:
    names = ["auroc", *(f"auroc:{c}" for c in answer.task.classes if len(answer.task.classes) > 1)]
    return names + (["worst_group_auroc"] if answer.audience.counted else [])


def _bootstrap(answer: Answer, predictions: Predictions, metric: str) -> Interval | None:
    audience = answer.audience
    return bootstrap(predictions, metric, counted=audience.counted, labels=audience.labels)


def _recipe(
    answer: Answer,
    repeats: Sequence[Predictions],
    baseline: Sequence[Predictions] | None,
    metric: str,
) -> Interval | None:
    audience = answer.audience
    return recipe_interval(
        repeats, baseline, metric, counted=audience.counted, labels=audience.labels
    )


def _groups(answer: Answer) -> list[dict[str, Any]]:
    """Winner and opponent by group on test: counts, AUROC, missed findings. Descriptive."""
    rows = []
    for name in ("winner", answer.opponent.name):
        predictions = answer.scored[(name, 0, "test")]
        thresholds = fit_threshold(answer.scored[(name, 0, "search")])
        for row in group_table(predictions, thresholds=thresholds):
            plain = {"model": name, **vars(row), "text": row.text}
            counted = row.group in answer.audience.counted.get(row.attribute, ())
            interval = None
            if row.auroc is not None:
                interval = bootstrap(
                    predictions.take(predictions.groups[row.attribute] == row.group),
                    f"auroc:{row.label}" if len(answer.task.classes) > 1 else "auroc",
                )
            rows.append(
                {**plain, "counted": counted, "interval": interval.to_dict() if interval else None}
            )
    return rows
