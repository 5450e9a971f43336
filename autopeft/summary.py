"""The summary that a run prints to stdout."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autopeft import choice_words, patient_words, words
from autopeft.result import Result
from autopeft.words import Numbers

WIDEST = 100  # columns; longer lines are hard to read
_INDENT = 9
_NOTES, _GROUP_ROWS = 6, 24  # what a screen holds; the page has all


def print_summary(result: Result, console: Console | None = None) -> None:
    """Prints verdict, winner, baselines, groups and how sure all of it is.

    Args:
        result: a finished run.
        console: where to; None = stdout, at most 100 columns wide.
    """
    numbers = result.numbers
    console = console or _stdout()
    title = f"{numbers['run']} | {words.plugin_name(numbers['objective'])} | {words.RESEARCH}"
    _say(console, "", [title], indent=0)
    console.print()
    _say(console, "VERDICT", [numbers["verdict"], *words.contrast_lines(numbers)])
    _say(console, "WINNER", _winner(numbers))
    console.print()
    console.print(_on_test(numbers))
    console.print()
    console.print(_over_seeds(numbers))
    if numbers["groups"]:
        console.print()
        _print_groups(console, numbers)
    _say(console, "GAP", patient_words.gap_lines(numbers))
    _say(console, "CHANGE", patient_words.change_lines(numbers))
    console.print()
    _say(console, "DECIDE", patient_words.operating_lines(numbers))
    _say(console, "CALIBR.", patient_words.calibration_lines(numbers))
    _say(console, "PARTS", patient_words.contribution_lines(numbers))
    _say(console, "SIMPLE", patient_words.simple_lines(numbers))
    _say(console, "SHORTCUT", patient_words.shortcut_lines(numbers))
    _say(console, "MEMORY", patient_words.memorization_lines(numbers))
    console.print()
    _say(console, "HONESTY", choice_words.honesty_lines(numbers))
    _say(console, "UNKNOWN", words.not_known(numbers))
    _say(console, "READ AS", words.reading_lines(numbers))
    _say(console, "EXTERNAL", words.external_lines(numbers))
    _say(console, "NOTES", _first(numbers["notes"], _NOTES))
    console.print()
    _say(console, "", [f"{result.folder}: best/ (adapter), report.html, result.json"], indent=0)


def _stdout() -> Console:
    """A terminal as it is, up to 100 columns; a pipe or a file gets 100."""
    console = Console(highlight=False)
    return Console(
        highlight=False, width=min(console.width, WIDEST) if console.is_terminal else WIDEST
    )


def _say(console: Console, head: str, lines: Iterable[str], indent: int = _INDENT) -> None:
    """Lines behind a bold head, wrapped on a terminal; on a pipe one line stays one line."""
    for index, line in enumerate(lines):
        plain = words.printable(line)
        room = max(console.width - indent, 20)
        wrapped = textwrap.wrap(plain, room, break_on_hyphens=False, subsequent_indent="  ")
        for part in wrapped if console.is_terminal else [plain]:
            start = Text((head if index == 0 else "").ljust(indent), style="bold")
            console.print(start.append(part, style="not bold"), soft_wrap=True)
            head = ""


def _winner(numbers: Numbers) -> list[str]:
    config = numbers["best"]["config"]
    return [
        words.method_words(config),
        f"{words.readout_words(config)}; {words.training_words(config)}",
        words.size_words(numbers),
        *choice_words.sure_lines(numbers),
    ]


def _first(lines: list[str], most: int) -> list[str]:
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"{len(lines) - most + 1} more in report.html"]


# ---- tables -------------------------------------------------------------------------------------


def _table(*headers: str) -> Table:
    """Borderless. Names in the first column may wrap; numbers stay whole."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(Text(header), no_wrap=header != "label" and index > 0, overflow="fold")
    return table


def _row(table: Table, cells: Iterable[str]) -> None:
    """Cells as text: a user's name is never read as markup."""
    table.add_row(*(Text(words.printable(cell)) for cell in cells))


def _on_test(numbers: Numbers) -> Table:
    """The saved adapters on test."""
    shown = words.metrics_shown(numbers)
    heads = [f"{words.metric_name(m)}\ntest, 95% interval" for m in shown]
    table = _table("saved\nadapter", "trained\nparameters", *heads)
    for name, model in words.models(numbers).items():
        values = [words.interval(model["test"].get(m)) for m in shown]
        _row(table, [name, f"{model['trainable_params']:,}", *values])
    return table


def _over_seeds(numbers: Numbers) -> Table:
    """The same recipes trained afresh, and the patients on whom the winner was chosen."""
    shown, primary = words.metrics_shown(numbers), numbers["primary"]
    repeats = words.seeds(numbers).replace(" fresh", "")
    heads = [f"{words.metric_name(m)}\ntest, {repeats}" for m in shown]
    heads.append(f"{words.metric_name(primary)}\nconfirm, {repeats}")
    table = _table("fresh\ntrainings", *heads)
    for name, model in words.models(numbers).items():
        values = [words.number(model["seeds"]["test"].get(m)) for m in shown]
        _row(table, [name, *values, words.number(model["seeds"]["confirm"].get(primary))])
    return table


def _print_groups(console: Console, numbers: Numbers) -> None:
    """Groups of the winner and of its opponent; descriptive."""
    rows = [row for row in numbers["groups"] if row["model"] == "winner"]
    every, several = len(rows), len(numbers["thresholds"]) > 1
    if every > _GROUP_ROWS:
        scored = [row for row in rows if row["auroc"] is not None]
        rows = sorted(scored, key=lambda row: float(row["auroc"]))[: _GROUP_ROWS // 2]
    console.print(_groups(numbers, rows, several))
    if len(rows) < every:
        told = f"the {len(rows)} lowest of {every} rows; all are in report.html"
        _say(console, "", [told], indent=0)
    if not all(row["counted"] for row in rows):
        _say(console, "", ["* does not count: too few patients in search, or unknown"], indent=0)
    gap = words.gap_line(numbers)
    if gap and not numbers.get("fairness"):
        _say(console, "", [gap], indent=0)


def _groups(numbers: Numbers, rows: Iterable[Mapping[str, Any]], several: bool) -> Table:
    opponent = numbers["contrast"]["baseline"]
    label = ["label"] if several else []
    heads = ["patients\n+/-", "AUROC\nwinner", f"AUROC\n{opponent}", "missed\nwinner"]
    table = _table("group\n(test)", *label, *heads)
    cells = {(r["model"], r["group"], r["attribute"], r["label"]): r for r in numbers["groups"]}
    for row in rows:
        other = cells[(opponent, row["group"], row["attribute"], row["label"])]
        _row(
            table,
            [words.group_name(row) + ("" if row["counted"] else " *")]
            + ([row["label"]] if several else [])
            + [f"{row['positives']}/{row['negatives']}", _scored(row), _scored(other)]
            + [words.percent(row["missed"])],
        )
    return table


def _scored(row: Mapping[str, Any]) -> str:
    return words.interval(row["interval"]) if row["interval"] else str(row["text"])
