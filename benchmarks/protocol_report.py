"""The tables of `protocol.py`: Markdown, for docs/protocol.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Found = list[tuple[dict[str, Any], list[dict[str, str]]]]  # of each case: its values, its lines


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """The numbers of a column."""
    return np.array([float(row[name]) for row in rows])


def spread(rows: list[dict[str, str]], name: str) -> str:
    """Mean, and in brackets the 5% and the 95% quantile."""
    x = column(rows, name)
    low, high = np.quantile(x, [0.05, 0.95])
    return f"{x.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def share(rows: list[dict[str, str]], name: str, *words: str) -> str:
    """Percent of the lines that say one of the words."""
    return f"{100 * np.mean([row[name] in words for row in rows]):.1f}%"


def count(rows: list[dict[str, str]], name: str, *words: str) -> str:
    """How many lines of how many say one of the words."""
    return f"{sum(row[name] in words for row in rows)} of {len(rows)}"


def table(*head: str) -> Iterator[str]:
    """Head of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)


def search(found: Found) -> Iterator[str]:
    """What each number is too high by; what the intervals hold; what is said of nothing."""
    yield from table(
        "search patients", "candidates", "searches", "search value", "fresh seeds, same patients",
        "replay", "fresh seeds, `confirm`", "winner of 3 on `confirm`", "adapter on `test`",
    )  # fmt: skip
    for case, rows in found:
        numbers = ("search", "reseeded", "replay", "confirm", "confirm_winner", "test")
        cells = [spread(rows, name) for name in numbers]
        yield f"| {case['patients']} | {case['candidates']} | {len(rows)} | {' | '.join(cells)} |"
    yield ""
    yield from table(
        "search patients", "candidates", "95% interval on `search` holds the truth", "on `test`",
        "lost to the best of 200: search's pick", "winner",
        '"better" than the baseline on `search`', "on `test`", "true gain",
    )  # fmt: skip
    for case, rows in found:
        cells = [share(rows, "search_covers", "True"), share(rows, "test_covers", "True")]
        cells += [f"{column(rows, name).mean():.3f}" for name in ("regret_pick", "regret_winner")]
        cells += [count(rows, name, "better") for name in ("naive_word", "word")]
        cells.append(f"{column(rows, 'gain').mean():+.3f}")
        yield f"| {case['patients']} | {case['candidates']} | {' | '.join(cells)} |"


def verdict(found: Found) -> Iterator[str]:
    """Wrong words where nothing, or just the margin, lies between the two; then the power."""
    words = ("better", "not worse", "cannot tell", "worse")
    yield from table(
        "true difference", "test patients", "tables", *words, "accuracy kept", "interval holds it"
    )
    for case, rows in found:
        truth = case["difference"]
        cells = [count(rows, "word", word) for word in words]
        held = (column(rows, "low") <= truth) & (truth <= column(rows, "high"))
        cells += [count(rows, "kept", "True"), f"{100 * held.mean():.1f}%"]
        if truth not in (0.0, -0.01):
            cells = [cell.split(" of ")[0] for cell in cells]
        head = f"{truth:+.2f} | {case['patients']} | {len(rows)}"
        yield f"| {head} | {' | '.join(cells)} |"


def worst(found: Found) -> Iterator[str]:
    """Both rules for the worst group, side by side."""
    yield from table(
        "truth of the worst group", "tables", '"better" by the lowest AUROCs alone',
        '"better" by every group (the tool)', '"not worse" by the lowest alone', "the tool",
    )  # fmt: skip
    for case, rows in found:
        cells = [share(rows, k, w) for w in ("better", "not worse") for k in ("plain", "word")]
        yield f"| {case['groups']} | {len(rows)} | {' | '.join(cells)} |"


def recipe(found: Found) -> Iterator[str]:
    """How often each interval of the recipe holds the truth, and how wide it is."""
    yield from table(
        "seeds", "SD of AUROC over seeds", "test patients", "tables",
        "share of seeds in the variance", "t, S - 1 (the tool)", "t, Satterthwaite",
        "patients alone",
    )  # fmt: skip
    for case, rows in found:
        cells = [f"{np.median(column(rows, 'seed_share')):.2f}"]
        for name, wide in (
            ("covered", "width"),
            ("satterthwaite", "satterthwaite_width"),
            ("patients_alone", "patients_alone_width"),
        ):
            cells.append(f"{share(rows, name, 'True')} ({np.median(column(rows, wide)):.3f})")
        head = f"{case['seeds']} | {case['seed_sd']:g} | {case['patients']} | {len(rows)}"
        yield f"| {head} | {' | '.join(cells)} |"


REPORTS: dict[str, Callable[[Found], Iterator[str]]] = {
    "search": search,
    "verdict": verdict,
    "worst": worst,
    "recipe": recipe,
}
