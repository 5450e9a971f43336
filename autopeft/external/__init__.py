"""External validation: a saved adapter on patients of another place; nothing is fitted but asked.

``evaluate`` is the story. `labels` says which label is which class, `numbers` what the adapter
reaches, `drift` what that is beside its own test, `recalibration` what two numbers a label would
mend, `report` all of it in words.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft import ledger
from autopeft.adapter_files import OURS, adapter_hash, read_json
from autopeft.data import whose_patients
from autopeft.data.whole import Whole
from autopeft.errors import UserError
from autopeft.evaluation import Predictions
from autopeft.external.asked import Asked
from autopeft.external.drift import drift, recorded
from autopeft.external.labels import Mapped, check_map, map_labels
from autopeft.external.numbers import group_rows, label_rows, mean_auroc
from autopeft.external.patients import of_known_patients, open_data, seen
from autopeft.external.recalibration import recalibration
from autopeft.external.report import report
from autopeft.external.table import write_predictions
from autopeft.files import new_folder, remove_empty, write_json, write_text
from autopeft.metrics.calibration import class_logit
from autopeft.progress import Screen
from autopeft.seen import Record, record_of
from autopeft.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from autopeft.adapter import Model

_THEMSELVES = "Not made: some of these patients are the adapter's own test patients."
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class External:
    """A finished external validation.

    Attributes:
        folder: with ``evaluation.json``, ``report.md`` and ``predictions.csv``.
        numbers: all of ``evaluation.json``.
    """

    folder: Path
    numbers: Mapping[str, Any]

    @property
    def report(self) -> str:
        """The report, in Markdown."""
        return (self.folder / "report.md").read_text()

    @property
    def predictions(self) -> pd.DataFrame:
        """One row an image and label: path, patient, target, probability."""
        import pandas as pd

        return pd.read_csv(self.folder / "predictions.csv", dtype={"patient_id": "string"})


def evaluate(adapter: str | Path, dataset: str, **options: Any) -> External:
    """Judges a saved adapter on other patients (the command ``autopeft evaluate``).

    Args:
        adapter: its folder, e.g. ``runs/NAME/best``.
        dataset: a data set's name or a CSV file, as for a search.
        **options: fields of ``Asked``, e.g. ``label_map={"pneumonia": "infiltrate"}``.

    Raises:
        UserError: bad input, or patients that the adapter was trained on; nothing is written then.
    """
    began, folder, asked = time.monotonic(), Path(adapter), Asked.of(options)
    screen = Screen(asked.quiet)
    info = _info(folder)
    check_map(asked.label_map, info["classes"])
    record, known = record_of(folder), recorded(folder, str(info.get("fingerprint")))
    try:
        data = open_data(asked, dataset, info["classes"], _groups(asked, known))
        mapped = map_labels(data, info["classes"], info["kind"], asked.label_map)
        found = seen(record, data, asked.leave_out_trained)
        data, mapped = of_known_patients(data, mapped, found)
        target = _target(asked, folder.resolve(), record, data)
        model = _model(folder, info, asked)
        p = _scored(model, data, mapped, asked, screen)
    except UserError:
        remove_empty(asked.cache, Path(asked.out))
        raise
    with screen.bar("intervals") as bar:
        numbers = _numbers(p, model, data, mapped, known, asked.min_group, bar)
    home = record.run.parent if record else Path(asked.runs_dir)
    numbers |= {
        "name": target.name,
        "look": _look(home, folder, data, dataset, target.name),
        "not_known": [*found.unknown, *_not_known(p, mapped, numbers)],
        "seconds": round(time.monotonic() - began, 1),
    }
    numbers["data"] |= {"split": asked.split, "tested": found.tested}
    if found.tested:  # a comparison of people with themselves
        numbers |= {"drift": [], "drift_absent": _THEMSELVES}
    with new_folder(target) as fresh:
        write_json(fresh / "evaluation.json", numbers)
        write_text(fresh / "report.md", report(numbers))
        write_predictions(fresh / "predictions.csv", data.rows, p)
    return External(target, numbers)


def _info(folder: Path) -> dict[str, Any]:
    """``autopeft.json`` of the adapter, before anything slow happens."""
    info = read_json(folder / OURS)
    adapter_hash(folder)
    absent = {"classes", "kind", "backbone", "candidate"} - info.keys()
    if absent:
        raise UserError(f"lacks {', '.join(sorted(absent))}", str(folder / OURS))
    return info


def _groups(asked: Asked, known: tuple[str, Mapping[str, Any]] | None) -> tuple[str, ...]:
    """Attributes of the adapter's run, where none are asked for."""
    return () if asked.group or known is None else tuple(known[1].get("counted") or ())


def _target(asked: Asked, folder: Path, record: Record | None, data: Whole) -> Path:
    """Where the evaluation goes; an old one is never replaced."""
    own = folder.name
    if record is not None:
        own = record.run.name if own == "best" else f"{record.run.name}-{own}"
    made = _NAME.sub("-", asked.name or f"{own}-on-{data.name}").strip("-.")[:100]
    if asked.name and made != asked.name:
        fix = "Letters, digits, dots, dashes; up to 100."
        raise UserError(f"{asked.name[:60]!r} is no name for an evaluation", "--name", fix)
    target = Path(asked.out) / made
    if target.exists():
        raise UserError("exists already", str(target), "Take another --name.")
    return target


def _model(folder: Path, info: Mapping[str, Any], asked: Asked) -> Model:
    """The adapter in fp32 on the best device that is here."""
    from autopeft.adapter import load_adapter
    from autopeft.backbones.weights import load_backbone
    from autopeft.training.precision import find_device

    network = None
    if asked.offline and asked.weights is None and not info.get("weights"):
        backbone = info["backbone"]
        network = load_backbone(backbone["name"], None, backbone["image_size"], True)
    return load_adapter(folder, asked.weights, find_device(), network)


def _scored(
    model: Model, data: Whole, mapped: Mapped, asked: Asked, screen: Screen
) -> Predictions:
    """fp32 logits of every image, prepared as the adapter's own images were."""
    from autopeft.training.images import Rule, build_store

    info, paths = model.info, data.rows.path.tolist()
    rule = Rule(**info["pixels"]) if info.get("pixels") else None
    with screen.bar("decoding images") as bar:
        store = build_store(
            data.root, paths, info["backbone"]["image_size"], info["fit"], asked.cache, bar,
            os.cpu_count() or 1, rule,
        )  # fmt: skip
    parts = []
    with screen.bar("scoring images") as bar:
        for start in range(0, len(paths), asked.batch_size):
            index = np.arange(start, min(start + asked.batch_size, len(paths)))
            parts.append(model.logits(store.batch(index), asked.batch_size))
            bar(int(index[-1]) + 1, len(paths))
    score = np.concatenate(parts)
    if not np.isfinite(score).all():
        raise UserError("the adapter gives scores that are no numbers on these images", data.name)
    return Predictions(
        score=score,
        target=mapped.target,
        patient=data.rows.patient,
        part=np.zeros(len(score), np.int64),
        groups=data.rows.groups,
        classes=model.classes,
        kind=model.kind,  # type: ignore[arg-type]
        split="external",
    )


def _numbers(
    p: Predictions,
    model: Model,
    data: Whole,
    mapped: Mapped,
    known: tuple[str, Mapping[str, Any]] | None,
    min_group: int,
    bar: Any,
) -> dict[str, Any]:
    """``evaluation.json`` but for what depends on where it is kept."""
    from autopeft.methods import canonical

    info, limits = model.info, model.thresholds
    judged = _judged(p, mapped)
    thresholds = [limits[p.classes.index(c)] if limits else None for c in judged.classes]
    bar(0, 3)
    labels = label_rows(judged, thresholds)
    bar(1, 3)
    groups = group_rows(judged, thresholds, min_group)
    bar(2, 3)
    refit = recalibration(judged)
    bar(3, 3)
    channels = (info.get("pixels") or {}).get("channels")
    words = {1: "one gray channel", 3: "three channels", None: "channels as the files have them"}
    return {
        "use": "Research use; not a medical device.",
        "adapter": {
            "title": canonical(info["candidate"], model.base.facts).title,
            "fingerprint": info["fingerprint"],
            "kind": model.kind,
            "classes": list(model.classes),
            "thresholds": dict(zip(judged.classes, thresholds, strict=True)),
            "trained_on": info.get("task", ""),
            "backbone": info["backbone"]["name"],
            "image_size": info["backbone"]["image_size"],
            "fit": info["fit"],
            "channels": words[channels],
        },
        "data": {
            "name": data.name,
            "unit": data.unit,
            "patients": len(np.unique(data.rows.patient)),
            "images": len(data.rows),
            "labels": dict(mapped.theirs),
        },
        "min_group": min_group,
        "labels": labels,
        "mean_auroc": mean_auroc(judged),
        "groups": groups,
        "drift": [] if known is None else drift(*known, labels, groups),
        "drift_absent": "Not known: the run that the adapter comes from is not beside it."
        if known is None
        else "Nothing to compare: its run recorded no number of these labels.",
        "recalibration": refit,
        "unmapped": list(mapped.unmapped),
        "notes": [*data.notes, *mapped.notes],
        "date": datetime.now(UTC).date().isoformat(),
        "version": __version__,
    }


def _judged(p: Predictions, mapped: Mapped) -> Predictions:
    """The classes that the data say anything about.

    A softmax needs all of its columns: its unmapped classes stay, without a target.
    """
    kept = [c for c, name in enumerate(p.classes) if name in mapped.theirs]
    score = p.score[:, kept]
    if p.kind == "multiclass":  # each class against the rest, as its probability has it
        score = np.stack([class_logit(p, c) for c in kept], axis=1)
    return replace(
        p,
        score=score,
        target=p.target[:, kept],
        classes=tuple(p.classes[c] for c in kept),
        kind="binary" if len(kept) == 1 else "multilabel",
    )


def _look(home: Path, folder: Path, data: Whole, dataset: str, name: str) -> int | None:
    """The look in the ledger, where a run there has these very images among its test images."""
    rows, source = data.rows, data.root.name if dataset == "phantom" else ""
    patients, paths = rows.patient.tolist(), rows.path.tolist()
    whose = whose_patients(dataset)
    if not ledger.knows(home, patients, paths, source, whose):
        return None
    what = "\0".join([adapter_hash(folder), *paths, *patients])
    entry = f"evaluation-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    return ledger.enter(home, patients, paths, f"evaluation {name}", entry, source, whose).number


def _not_known(p: Predictions, mapped: Mapped, numbers: Mapping[str, Any]) -> list[str]:
    """What this evaluation cannot say, as far as it can know that."""
    lines = []
    if mapped.unmapped:
        lines.append(f"classes of the adapter without a label here: {', '.join(mapped.unmapped)}")
    blunt = [c for c, t in numbers["adapter"]["thresholds"].items() if t is None]
    if blunt:
        lines.append(f"the adapter has no threshold for {', '.join(blunt)}: no decisions")
    if not p.groups:
        lines.append("whether groups of patients differ: none were asked for that the data have")
    renamed = [f"{o} = {t}" for o, t in mapped.theirs.items() if o != t]
    if renamed:
        lines.append(f"whether these labels mean the same: {', '.join(renamed)}")
    lines.append(
        "whether the labels here were made by the same rules, from the same kind of report or "
        "reader, as those that the adapter learnt"
    )
    return lines


__all__ = ["Asked", "External", "evaluate"]
