"""The end of a run: test opened once, every number from saved adapters, files written."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft import chain, ledger, protocol, seals
from autopeft.adapter import can_merge, load_adapter, merge
from autopeft.adapter import save as save_adapter
from autopeft.answer import Answer
from autopeft.baselines import simple
from autopeft.data import whose_patients
from autopeft.data.splits import UNCERTAIN
from autopeft.data.written import about, table
from autopeft.files import new_folder, write_bytes, write_json, write_text
from autopeft.metrics.calibration import fit_temperature
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
        score(answer, screen, lambda: _open_test(answer, screen))
    with screen.bar("intervals") as bar:
        found = numbers(answer, bar)
    with answer.clock.part("write"):
        _save_adapters(answer)
        write_text(folder / "predictions.csv", predictions_table(answer), 0o600)
        write_text(folder / "splits.csv", table(answer.task).to_csv(index=False), 0o600)
        write_json(folder / "task.json", context(answer))
        write_text(folder / "trials.csv", trials_table(answer))
    found["seconds"] = {k: round(v, 1) for k, v in answer.clock.parts.items()}
    found["seconds"]["decode"] = round(answer.decode_seconds, 1)
    write_report(folder, found)
    found["log"] = _finish(folder, found)
    write_json(folder / "result.json", found)
    _clean(answer)
    return load_result(folder)


def _finish(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Logs hashes of everything that was written; gives the log's head, for ``result.json``.

    The head is in the file that is written last, so that a log cut off at its end is found.
    """
    protocol.log(
        folder,
        "finished",
        verdict=found["verdict"],
        numbers=numbers_hash(found),
        journal=seals.journal(folder),
        files=seals.written(folder),
    )
    done = chain.check(folder / protocol.LOG)
    return {"lines": done.lines, "head": done.head}


def numbers_hash(found: Mapping[str, Any]) -> str:
    """sha256 of ``result.json``'s content, without what it says of the log."""
    plain = json.loads(json.dumps({k: v for k, v in found.items() if k != "log"}))
    text = json.dumps(plain, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- scores -------------------------------------------------------------------------------------


def score(answer: Answer, screen: Screen, open_test: Callable[[], None]) -> None:
    """fp32 scores of all models: search and confirm of repeat 0, test of every repeat.

    Args:
        answer: its ``scored``, ``simple`` and ``thresholds`` are filled.
        screen: for bars.
        open_test: called once all that may be chosen is chosen; test rows are known after it.
    """
    bench, task = answer.bench, answer.task
    rows = bench.audience.rows
    with screen.bar("scoring search patients") as bar:
        _keep(answer, bench.predict(answer.models, [0], "search", bar))
    _simple(answer, ("search", "confirm"), screen)
    answer.thresholds = fit_threshold(answer.scored[("winner", 0, "search")])
    for (name, repeat), predictions in answer.confirm.items():
        answer.scored[(name, repeat, "confirm")] = predictions
        if name == answer.picked.name:
            answer.scored[("winner", repeat, "confirm")] = predictions
    open_test()
    rows["test"] = task.rows("test")
    with screen.bar("scoring test patients") as bar:
        _keep(answer, bench.predict(answer.models, [0, *answer.repeats], "test", bar))
        _keep(answer, bench.predict(answer.ablated, answer.repeats, "test", bar))
    _simple(answer, ("test",), screen)
    if task.has(UNCERTAIN):
        rows[UNCERTAIN] = task.rows(UNCERTAIN)
        with screen.bar("scoring uncertain images") as bar:
            _keep(answer, bench.predict([answer.winner, answer.opponent], [0], UNCERTAIN, bar))
    for name in task.external:
        rows[name] = task.rows(name)
        with screen.bar(f"external check: {name}") as bar:
            _keep(answer, bench.predict(answer.models, [0], name, bar))


def _open_test(answer: Answer, screen: Screen) -> None:
    """The one look: it is logged before it is taken, and entered in the ledger of all runs.

    So is a look at an external check, which is nobody's test split and no less looked at.
    """
    folder, task = answer.settings.run_dir, answer.task
    protocol.log(folder, "test_opened", thresholds=list(answer.thresholds))
    task.open_test()
    found = answer.look = _look(answer, "test", "")
    protocol.log(folder, "look", look=found.number, entry=found.entry, line=found.line)
    if found.words:
        screen.say(found.words)
    for name in task.external:
        found = _look(answer, name, f"-{name}")
        answer.external_looks[name] = found.number
        told = {"split": name, "look": found.number, "entry": found.entry, "line": found.line}
        protocol.log(folder, "external_look", **told)
        if found.words:
            screen.say(f"external check {name}: {found.words}")


def _look(answer: Answer, split: str, suffix: str) -> ledger.Look:
    settings, rows = answer.settings, answer.task.rows(split)
    identity = answer.bench.study.fact("identity")
    return ledger.enter(
        Path(settings.runs_dir),
        rows.patient.tolist(),
        rows.path.tolist(),
        settings.run_name,
        f"{identity}-{protocol.place(settings.run_dir)}{suffix}",
        answer.task.root.name if settings.dataset == "phantom" else "",
        whose_patients(settings.dataset),
    )


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
            "temperatures": list(fit_temperature(answer.scored[(model.name, 0, "search")])),
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


def context(answer: Answer) -> dict[str, Any]:
    """``task.json``: what the other files do not say of the task, and the backbone's facts."""
    return {"task": about(answer.task), "backbone": answer.network.facts.to_dict()}


def trials_table(answer: Answer) -> str:
    """``trials.csv``: one line a trial."""
    text: str = answer.bench.study.frame().to_csv(index=False)
    return text


def predictions_table(answer: Answer) -> str:
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
    return stream.getvalue()


def _clean(answer: Answer) -> None:
    """Removes states: the adapters that count have their own folders now."""
    shutil.rmtree(answer.settings.run_dir / "states", ignore_errors=True)
