"""The summary that a run prints to stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from autopeft.result import Result


def print_summary(result: Result) -> None:
    """Prints verdict, winner, baselines, groups and how sure all of it is."""
    numbers = result.numbers
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{numbers['run']} | {numbers['objective']} | RESEARCH USE, not a medical device"
    )
    console.print(f"\n[bold]VERDICT[/bold]  {numbers['verdict']}")
    for line in _contrast_lines(numbers["contrast"]):
        console.print(f"  {line}", markup=False)
    console.print(f"[bold]WINNER[/bold]   {_winner(numbers)}\n")
    console.print(_models(numbers))
    console.print(
        "  test: the saved adapter, 95% interval over patients; seeds: mean of fresh seeds"
    )
    if numbers["counted"]:
        console.print()
        console.print(_groups(numbers))
    console.print(f"\n[bold]HONESTY[/bold]  {_honesty(numbers)}")
    for note in numbers["notes"]:
        console.print(f"  note: {note}", markup=False)
    console.print(f"\n{result.folder}: best/ (adapter), report.html, result.json")


def interval(value: Mapping[str, float] | None, signed: bool = False) -> str:
    """``.861 (.840 to .880)``, or ``n/a``."""
    if value is None:
        return "n/a"
    form = "{:+.3f}" if signed else "{:.3f}"
    low, high = form.format(value["low"]), form.format(value["high"])
    return f"{form.format(value['value'])} ({low} to {high})"


def _contrast_lines(contrast: Mapping[str, Any]) -> list[str]:
    metric = str(contrast["metric"]).replace("_", " ")
    lines = [
        f"{metric} on test, winner minus {contrast['baseline']}: "
        f"{interval(contrast['adapter'], signed=True)} this adapter"
    ]
    if contrast["recipe"]:
        lines.append(f"same over fresh seeds: {interval(contrast['recipe'], True)} this recipe")
    if contrast["primary_undefined_on_test"]:
        lines.append("the objective's own metric is undefined on test: AUROC stands in its place")
    return lines


def _winner(numbers: Mapping[str, Any]) -> str:
    best = numbers["best"]
    train = best["config"]["train"]
    how = f"lr {train['lr']:g}" if train["optimizer"] != "lbfgs" else "solved to its optimum"
    sampling = "" if train["sampling"] == "plain" else f", {train['sampling']} sampling"
    return f"{best['title']}, {how}{sampling}; {best['trainable_params']:,} trained parameters"


def _models(numbers: Mapping[str, Any]) -> Table:
    primary = numbers["primary"]
    names = ["auroc"] + ([primary] if primary != "auroc" else [])
    table = Table("model", "parameters", box=None, pad_edge=False)
    for name in names:
        table.add_column(f"test {name.replace('_', ' ')}")
        table.add_column("seeds")
    table.add_column("confirm auroc")
    for name, model in {"winner": numbers["best"], **numbers["baselines"]}.items():
        cells = [name, f"{model['trainable_params']:,}"]
        for metric in names:
            mean = model["seeds"]["test"].get(metric)
            cells += [
                interval(model["test"].get(metric)),
                "n/a" if mean is None else f"{mean:.3f}",
            ]
        table.add_row(*cells, interval(model["confirm"].get("auroc")))
    return table


def _groups(numbers: Mapping[str, Any]) -> Table:
    """Groups of the winner and of its opponent; descriptive."""
    opponent = numbers["contrast"]["baseline"]
    table = Table("group (test)", "label", "patients +/-", box=None, pad_edge=False)
    table.add_column("winner")
    table.add_column(opponent)
    cells = {(r["model"], r["group"], r["attribute"], r["label"]): r for r in numbers["groups"]}
    for row in numbers["groups"]:
        if row["model"] != "winner":
            continue
        other = cells[(opponent, row["group"], row["attribute"], row["label"])]
        mark = "" if row["counted"] else " (not counted)"
        name = row["group"] if row["group"] != "unknown" else f"{row['attribute']} unknown"
        shown = interval(row["interval"]) if row["interval"] else row["text"]
        counts = f"{row['positives']}/{row['negatives']}"
        table.add_row(name + mark, row["label"], counts, shown, other["text"])
    return table


def _honesty(numbers: Mapping[str, Any]) -> str:
    optimism, trials, patients = numbers["optimism"], numbers["trials"], numbers["patients"]
    told = ", ".join(f"{count} {state}" for state, count in trials.items() if count)
    lines = [
        f"{optimism['candidates']} candidates ({told}), {optimism['looks']} looks at "
        f"{patients['search']} search patients",
        f"confirmed on {patients['confirm']} unseen patients; test of {patients['test']} "
        f"opened once (look {numbers['look']})",
    ]
    if "value" in optimism:
        lines.insert(1, f"optimism of the search {interval(optimism, signed=True)}")
    return "\n  ".join(lines)
