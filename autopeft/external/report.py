"""An evaluation in words, for the terminal and ``report.md`` alike. No patient id, no path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autopeft.words import RESEARCH, interval, printable

Numbers = Mapping[str, Any]

_HEADS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "calibration_intercept": "calibration intercept",
    "calibration_slope": "calibration slope",
}
_FEW = ("auroc", "sensitivity", "specificity", "ppv", "calibration_slope")  # of groups


def report(numbers: Numbers) -> str:
    """The whole report, in Markdown that reads well as plain text."""
    parts = [
        f"# {_safe(numbers['name'])}",
        f"**{RESEARCH}.**",
        _headline(numbers),
        _list(_about(numbers)),
        "## Every label",
        _labels(numbers["labels"], numbers["mean_auroc"]),
        _list(_label_lines(numbers)),
    ]
    if numbers["groups"]:
        parts += ["## Groups of patients", _groups(numbers)]
        parts += [f"Scored from {numbers['min_group']} patients with and without the finding on."]
    parts += ["## Beside the adapter's own test patients", *_drift(numbers)]
    parts += ["## If only the probabilities were refitted", *_recalibration(numbers)]
    parts += ["## Not known", _list(numbers["not_known"])]
    if numbers["notes"]:
        parts += ["## Notes on the data", _list(numbers["notes"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(numbers: Numbers) -> str:
    """The one number that is asked for first, and what it was at home."""
    several, past = (
        numbers["mean_auroc"],
        {
            row["label"]: row
            for row in numbers["drift"]
            if row["metric"] == "auroc" and row["group"] is None
        },
    )
    data = numbers["data"]
    where = f"on {data['patients']:,} {data['unit']}s of {data['name']}"
    if several is not None:
        return _safe(f"Mean AUROC over the labels {interval(several)} {where}.")
    row = numbers["labels"][0]
    found = row["metrics"]["auroc"]
    if found is None:
        return _safe(f"{row['label']} has one class {where}: no AUROC.")
    told = f"{row['label']}: AUROC {interval(found)} {where}"
    if row["label"] in past:
        then = past[row["label"]]
        told += (
            f"; {interval(then['old'])} on the adapter's own test patients: "
            f"{interval(then['difference'], signed=True)}"
        )
    return _safe(f"{told}.")


def _about(numbers: Numbers) -> list[str]:
    adapter, data = numbers["adapter"], numbers["data"]
    mapped = ", ".join(
        ours if ours == theirs else f"{ours} = {theirs}" for ours, theirs in data["labels"].items()
    )
    split = "" if data["split"] == "all" else f", split {data['split']}"
    lines = [
        f"Adapter: {adapter['title']}, trained on {adapter['trained_on'] or 'data unnamed'}; "
        f"fingerprint {adapter['fingerprint']}; nothing of it was changed or chosen here.",
        f"Data: {data['name']}{split}: {data['patients']:,} {data['unit']}s, "
        f"{data['images']:,} images; labels {mapped}.",
        f"Images as the adapter had them in training: {adapter['fit']} to "
        f"{adapter['image_size']} px, {adapter['channels']}.",
    ]
    if numbers["look"] is not None:
        where = (
            f"{data['tested']} of these {data['unit']}s are test {data['unit']}s of the adapter's "
            "own run"
            if data["tested"]
            else f"some of these {data['unit']}s were tested on, or were an external check, in an "
            "earlier run"
        )
        lines.append(f"{where[0].upper()}{where[1:]}: look {numbers['look']} at them.")
    return lines


def _labels(rows: Sequence[Numbers], mean: Numbers | None) -> str:
    table = [["label", "patients +/-", *_HEADS.values()]]
    table += [
        [row["label"], _counts(row), *(_cell(row, metric) for metric in _HEADS)] for row in rows
    ]
    if mean is not None:
        table.append(["mean", "", interval(mean), *[""] * (len(_HEADS) - 1)])
    return _table(table)


def _label_lines(numbers: Numbers) -> list[str]:
    """What the table means, and what it lacks."""
    limits = numbers["adapter"]["thresholds"]
    told = [f"{k} {v:.3g}" for k, v in limits.items() if v is not None]
    lines = ["Intervals: 95%, over patients drawn anew."]
    if told:
        lines.append(
            "Sensitivity, specificity and PPV are at the adapter's own threshold "
            f"({', '.join(told)}), fitted in its own run, on the search patients there. PPV and "
            "average precision also depend on how frequent the finding is here."
        )
    lines += [
        "Calibration: intercept 0 and slope 1 are right; intercept above 0: the finding is more "
        "frequent than said; slope below 1: too sure.",
    ]
    for row in numbers["labels"]:
        found = row["metrics"]["auroc"]
        if row["positives"] == 0 or row["negatives"] == 0:
            lines.append(
                f"{row['label']} has one class here ({_counts(row)} patients): nothing to rank."
            )
        elif found is not None and not found["enough"]:
            lines.append(
                f"{row['label']}: fewer than 10 patients on one side: intervals are too narrow."
            )
        if found is not None and found["enough"] and found["high"] < 0.5:
            lines.append(
                f"{row['label']}: ranked the wrong way round here: patients without it have the "
                "higher scores."
            )
        if row["ece"] is not None:
            size = f"{row['ece']:.3f}" if row["ece"] > 0 else "not above what chance alone makes"
            lines.append(f"{row['label']}: calibration error {size} (debiased).")
    return lines


def _groups(numbers: Numbers) -> str:
    several = len(numbers["labels"]) > 1
    table = [
        ["group", *(["label"] if several else []), "patients +/-", *(_HEADS[m] for m in _FEW)]
    ]
    for row in numbers["groups"]:
        name = row["group"]
        if name == "unknown":
            name = f"{row['attribute'].partition(':')[0]} unknown"
        table.append(
            [name, *([row["label"]] if several else []), _counts(row)]
            + [_cell(row, metric) for metric in _FEW]
        )
    return _table(table)


def _drift(numbers: Numbers) -> list[str]:
    if not numbers["drift"]:
        return [numbers["drift_absent"]]
    table = [["label", "group", "number", "recorded on test", "here", "here minus test"]]
    table += [
        [
            row["label"],
            row["group"] or "everyone",
            _HEADS[row["metric"]],
            interval(row["old"]),
            interval(row["new"]),
            interval(row["difference"], signed=True),
        ]
        for row in numbers["drift"]
    ]
    return [
        _table(table),
        "Other patients, other labels, other machines: a difference has more than one cause. "
        "Unpaired 95% intervals, not corrected for looking at several; the recorded rates' "
        "intervals also hold the threshold's own uncertainty.",
    ]


def _recalibration(numbers: Numbers) -> list[str]:
    found = numbers["recalibration"]
    table = [["label", "number", "as it is", "refitted, out of fold", "change"]]
    lines = []
    for label, fit in found.items():
        if "reason" in fit:
            lines.append(f"{label}: not refitted: {fit['reason']}.")
            continue
        for metric, head in (
            ("brier", "Brier"),
            ("log_loss", "log-loss"),
            ("calibration_intercept", "calibration intercept"),
            ("calibration_slope", "calibration slope"),
        ):
            change = fit["change"].get(metric)
            table.append(
                [label, head, interval(fit["before"][metric]), interval(fit["after"][metric])]
                + ["" if change is None else interval(change, signed=True)]
            )
        lines.append(
            f"{label}: new log-odds = {fit['intercept']:+.3f} {fit['slope']:+.3f} x old log-odds."
        )
    if len(table) == 1:
        return [_list(lines)]
    return [
        _table(table),
        _list(lines),
        "Two numbers a label; no weight changes. The order of the scores stays, so AUROC is the "
        "same by construction, and so is every decision if the threshold is moved along. Each "
        "patient was judged by numbers fitted on the other folds' patients; the numbers above "
        "are fitted on all. It mends these patients' probabilities; other places need their own.",
    ]


# ---- text ---------------------------------------------------------------------------------------


def _counts(row: Numbers) -> str:
    return f"{row['positives']}/{row['negatives']}"


def _cell(row: Numbers, metric: str) -> str:
    found = row["metrics"][metric]
    return "n/a" if found is None else interval(found)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_safe(line)}" for line in lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are even in plain text, too."""
    plain = [[_safe(cell).replace("|", "\\|") for cell in row] for row in rows]
    wide = [max(len(row[i]) for row in plain) for i in range(len(plain[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)) + " |"
        for row in plain
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in wide) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _safe(text: str) -> str:
    """A user's name must steer neither a terminal nor a page that shows the Markdown."""
    return printable(str(text)).replace("<", "&lt;")
