"""The end of a run: test opened once, every number from saved adapters, files written."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from autopeft import protocol
from autopeft.adapter import can_merge, load_adapter, merge
from autopeft.adapter import save as save_adapter
from autopeft.answer import Answer
from autopeft.baselines import simple
from autopeft.files import new_folder, write_bytes, write_json, write_text
from autopeft.metrics.classification import fit_threshold
from autopeft.numbers import numbers
from autopeft.progress import Screen
from autopeft.report import write_report
from autopeft.result import Result, load_result
from autopeft.selection import Scored


def write_answer(answer: Answer, screen: Screen) -> Result:
    """Opens the test patients, once, and writes the run's files; ``result.json`` comes last."""
    folder = answer.settings.run_dir
    with answer.clock.part("test"):
        _score(answer, screen)
    with screen.bar("intervals") as bar:
        found = numbers(answer, bar)
    with answer.clock.part("write"):
        _save_adapters(answer)
        _write_predictions(answer)
        write_text(folder / "splits.csv", answer.task.split_table().to_csv(index=False), 0o600)
        write_text(folder / "trials.csv", answer.bench.study.frame().to_csv(index=False))
    found["seconds"] = {k: round(v, 1) for k, v in answer.clock.parts.items()}
    found["seconds"]["decode"] = round(answer.decode_seconds, 1)
    protocol.log(folder, "finished", verdict=found["verdict"])
    write_report(folder, found)
    write_json(folder / "result.json", found)
    _clean(answer)
    return load_result(folder)


# ---- scores -------------------------------------------------------------------------------------


def _score(answer: Answer, screen: Screen) -> None:
    """fp32 scores of all models: search and confirm of repeat 0, test of every repeat."""
    bench, task, settings = answer.bench, answer.task, answer.settings
    rows = bench.audience.rows
    with screen.bar("scoring search patients") as bar:
        _keep(answer, bench.predict(answer.models, [0], "search", bar))
    _simple(answer, ("search", "confirm"), screen)
    answer.thresholds = fit_threshold(answer.scored[("winner", 0, "search")])
    for (name, repeat), predictions in answer.confirm.items():
        answer.scored[(name, repeat, "confirm")] = predictions
        if name == answer.picked.name:
            answer.scored[("winner", repeat, "confirm")] = predictions
    protocol.log(settings.run_dir, "test_opened")
    rows["test"] = task.open_test()
    answer.look = protocol.look(
        Path(settings.runs_dir),
        rows["test"].patient.tolist(),
        settings.run_name,
        f"{bench.study.fact('identity')}-{protocol.place(settings.run_dir)}",
    )
    with screen.bar("scoring test patients") as bar:
        _keep(answer, bench.predict(answer.models, [0, *answer.repeats], "test", bar))
        _keep(answer, bench.predict(answer.ablated, answer.repeats, "test", bar))
    _simple(answer, ("test",), screen)
    for name in task.external:
        rows[name] = task.rows(name)
        with screen.bar(f"external check: {name}") as bar:
            _keep(answer, bench.predict(answer.models, [0], name, bar))


def _simple(answer: Answer, splits: Sequence[str], screen: Screen) -> None:
    """What needs no fine-tuning, on the same patients."""
    probe = next((m for m in answer.baselines if m.name == "linear_probe"), None)
    if probe is None:
        return
    for split in splits:
        with screen.bar(f"simple baselines on {split}") as bar:
            found = simple(answer.bench, probe.candidate, split, bar)
        answer.simple[split] = found
        for name, predictions in found.models.items():
            answer.scored[(name, 0, split)] = predictions


def _keep(answer: Answer, scored: Scored) -> None:
    for (name, repeat), predictions in scored.items():
        answer.scored[(name, repeat, predictions.split)] = predictions


# ---- files --------------------------------------------------------------------------------------


def _save_adapters(answer: Answer) -> None:
    """``best/`` and ``baselines/NAME/`` from repeat 0, with thresholds and card."""
    folder = answer.settings.run_dir
    for model in answer.models:
        outcome = answer.bench.trained[(model.candidate.fingerprint, 0)]
        assert outcome.state is not None
        loaded = load_adapter(folder / "states" / outcome.state, network=answer.network)
        thresholds = fit_threshold(answer.scored[(model.name, 0, "search")])
        meta = {
            key: loaded.info[key]
            for key in ("classes", "kind", "fit", "weights", "pixels", "started_from")
            if key in loaded.info
        }
        meta |= {
            "thresholds": list(thresholds),
            "task": answer.task.name,
            "license": _license_lines(answer),
        }
        target = folder / ("best" if model.name == "winner" else f"baselines/{model.name}")
        with new_folder(target) as temporary:
            save_adapter(loaded.adapted, temporary, meta)
        if model.name == "winner" and can_merge(loaded.adapted):
            from safetensors.torch import save

            write_bytes(folder / "merged.safetensors", save(merge(loaded.adapted)))


def _license_lines(answer: Answer) -> list[str]:
    return [
        "Research use only; not a medical device.",
        f"Backbone weights: {answer.network.facts.name}; their own license applies.",
        f"Trained on the data set {answer.task.name}; its terms apply to this adapter.",
    ]


def _write_predictions(answer: Answer) -> None:
    """``predictions.csv``: one line a model, repeat, split, image and label (mode 0600)."""
    stream = io.StringIO()
    write = csv.writer(stream, lineterminator="\n")
    write.writerow(["path", "patient_id", "split", "model", "repeat", "label", "target", "score"])
    for (name, repeat, split), predictions in sorted(answer.scored.items()):
        if name.startswith("finalist_"):
            continue
        rows, probability = answer.audience.rows[split], predictions.probability
        for i in range(len(rows)):
            for c, label in enumerate(predictions.classes):
                target = predictions.target[i, c]
                shown = "" if target != target else f"{target:g}"
                write.writerow(
                    [rows.path[i], rows.patient[i], split, name, repeat, label, shown]
                    + [f"{probability[i, c]:.9g}"]
                )
    write_text(answer.settings.run_dir / "predictions.csv", stream.getvalue(), 0o600)


def _clean(answer: Answer) -> None:
    """Removes states: the adapters that count have their own folders now."""
    shutil.rmtree(answer.settings.run_dir / "states", ignore_errors=True)
