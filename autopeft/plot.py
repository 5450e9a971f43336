"""Figures of a finished run; a notebook shows them, the report embeds them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from autopeft.drawing import WIDTH, Axis, Figure, axis, figure, grid, line, text
from autopeft.words import Numbers, group_name, metric_name


@dataclass(frozen=True)
class Point:
    """One fully trained trial in the plot of the front.

    Attributes:
        number: the trial's number.
        fingerprint: of its candidate.
        values: term -> value on search.
        feasible: it met every constraint.
    """

    number: int
    fingerprint: str
    values: Mapping[str, float]
    feasible: bool = True


def read_points(folder: Path, terms: Sequence[str]) -> list[Point]:
    """The fully trained trials of ``trials.csv``; none where the file or a value is missing."""
    file, points = folder / "trials.csv", []
    if not file.exists() or not terms:
        return []
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row.get("state") != "complete" or not all(row.get(t) for t in terms):
                continue
            excess = [float(v) for k, v in row.items() if k.startswith("violation ") and v]
            values = {t: float(row[t]) for t in terms}
            feasible = max(excess, default=0.0) <= 0
            points.append(Point(int(row["number"]), row["fingerprint"], values, feasible))
    return points


# ---- the front ----------------------------------------------------------------------------------


def plot_front(numbers: Numbers, points: Sequence[Point] = ()) -> Figure | None:
    """The front: its first two terms against each other, or one term by rank.

    Args:
        numbers: ``result.json``.
        points: all fully trained trials, see `read_points`; they give the background.

    Returns:
        None where no trial has a value in every term.
    """
    best, reference = numbers["best"], numbers["reference"]
    known = {p.number: p for p in points}
    for entry in numbers["front"]:
        if None not in entry["values"].values():
            mark = best["fingerprint"] if entry["config"] == best["config"] else ""
            known.setdefault(entry["number"], Point(entry["number"], mark, entry["values"]))
    scene = _Scene(
        tuple(known.values()),
        frozenset(entry["number"] for entry in numbers["front"]),
        best["fingerprint"],
        reference,
    )
    if not known:
        return None
    terms = list(scene.points[0].values)
    return _ranked(scene, terms[0]) if len(terms) == 1 else _plane(scene, terms[0], terms[1])


@dataclass(frozen=True)
class _Scene:
    """The trials, which of them are on the front, which one won, and the baselines' best."""

    points: tuple[Point, ...]
    front: frozenset[int]
    winner: str
    reference: Numbers

    def values(self, term: str) -> list[float]:
        """What an axis of this term must hold."""
        best = [float(self.reference[term])] if term in self.reference else []
        return [p.values[term] for p in self.points] + best

    def is_behind(self, p: Point) -> bool:
        """Whether the trial is not on the front."""
        return p.number not in self.front


_ACROSS, _UP = (76, WIDTH - 16), (300, 34)  # where the axes of the front start and stop


def _plane(scene: _Scene, a: str, b: str) -> Figure:
    """Two terms against each other."""
    x, y = axis(scene.values(a), *_ACROSS), axis(scene.values(b), *_UP)
    parts = [*grid(x, y, _ACROSS, _UP, metric_name(a), metric_name(b))]
    if a in scene.reference:
        at = x.at(scene.reference[a])
        parts.append(line(at, _UP[0], at, _UP[1], "re"))
    parts += _reference_line(scene, b, y)
    best = sorted((p for p in scene.points if not scene.is_behind(p)), key=lambda p: p.values[a])
    if len(best) > 1:
        path = " ".join(f"{x.at(p.values[a]):.1f},{y.at(p.values[b]):.1f}" for p in best)
        parts.append(f'<polyline class="l1" fill="none" opacity=".45" points="{path}"/>')
    for p in scene.points:
        parts.append(_mark(scene, p, x.at(p.values[a]), y.at(p.values[b])))
    title = f"Front of the search: {metric_name(a)} against {metric_name(b)}"
    told = f"{len(scene.points)} fully trained trials, {len(best)} of them on the front."
    return figure(title, told, 358, parts + _key(scene), "front")


def _ranked(scene: _Scene, term: str) -> Figure:
    """One term: the trials by rank, the front's own first."""
    on_front = [p.values[term] for p in scene.points if not scene.is_behind(p)]
    down = not on_front or on_front[0] >= max(p.values[term] for p in scene.points)
    points = sorted(scene.points, key=lambda p: p.values[term], reverse=down)
    y = axis(scene.values(term), *_UP)
    step = (_ACROSS[1] - _ACROSS[0]) / (len(points) + 1)
    below = "fully trained trials, best first"
    parts = [*grid(None, y, _ACROSS, _UP, below, metric_name(term))]
    parts += _reference_line(scene, term, y)
    for rank, p in enumerate(points, 1):
        parts.append(_mark(scene, p, _ACROSS[0] + rank * step, y.at(p.values[term])))
    title = f"Trials of the search: {metric_name(term)}"
    told = f"{len(points)} fully trained trials on search patients, by rank."
    return figure(title, told, 358, parts + _key(scene), "front")


def _reference_line(scene: _Scene, term: str, y: Axis) -> list[str]:
    if term not in scene.reference:
        return []
    at = y.at(scene.reference[term])
    return [line(_ACROSS[0], at, _ACROSS[1], at, "re")]


def _mark(scene: _Scene, p: Point, x: float, y: float) -> str:
    """Filled on the front, hollow behind it, a cross outside of the constraints."""
    won = p.fingerprint == scene.winner
    values = ", ".join(f"{metric_name(t)} {v:.3f}" for t, v in p.values.items())
    if not scene.is_behind(p):
        shape = f'<circle class="p1" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    elif p.feasible:
        shape = f'<circle class="o" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    else:
        shape = f'<path class="o" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8"/>'
    if won:
        shape += f'<circle class="w" cx="{x:.1f}" cy="{y:.1f}" r="10"/>'
    name = f"trial {p.number}{', winner' if won else ''}: {values}"
    return f"<g><title>{escape(name)}</title>{shape}</g>"


def _key(scene: _Scene) -> list[str]:
    """The legend on top: only what the picture holds."""
    behind = [p for p in scene.points if scene.is_behind(p)]
    entries: list[tuple[str, str]] = [('<circle class="p1" cx="6" cy="14" r="5"/>', "front")]
    if any(p.fingerprint == scene.winner for p in scene.points):
        entries.append(('<circle class="w" cx="6" cy="14" r="6"/>', "winner"))
    if any(p.feasible for p in behind):
        entries.append(('<circle class="o" cx="6" cy="14" r="4"/>', "other"))
    if any(not p.feasible for p in behind):
        entries.append(('<path class="o" d="M2 10l8 8m0-8l-8 8"/>', "constraint not met"))
    if scene.reference:
        entries.append((line(0, 14, 14, 14, "re"), "baselines"))
    parts, x = [], 8.0
    for shape, words in entries:
        parts.append(f'<g transform="translate({x:.0f} 0)">{shape}{text(19, 18, words)}</g>')
        x += 34 + 6.6 * len(words)
    return parts


# ---- groups -------------------------------------------------------------------------------------


def plot_groups(numbers: Numbers, label: str) -> Figure | None:
    """AUROC on test by group of one label: dot and interval, winner and declared baseline.

    Groups that are not scored show their counts instead: ``n/a (12+/3-)``.

    Args:
        numbers: ``result.json``.
        label: class name.

    Returns:
        None without groups of this label.
    """
    opponent = str(numbers["contrast"]["baseline"])
    rows = _group_rows(numbers, label, opponent)
    if len(rows) < 2:
        return None
    shown = [v for _, pair in rows for v in pair if v is not None and v["value"] is not None]
    width, top, step = (148, WIDTH - 16), 36, 32
    bottom = top + step * len(rows)
    values = [v[k] for v in shown for k in ("value", "low", "high") if v.get(k) is not None]
    x = axis(values or [0.5, 1.0], *width)
    parts = [line(x.at(t), top, x.at(t), bottom, "gr") for t in x.ticks]
    parts += [text(x.at(t), bottom + 16, x.form(t), "c mu") for t in x.ticks]
    parts.append(text((width[0] + width[1]) / 2, bottom + 34, "AUROC on test", "c"))
    for index, (name, pair) in enumerate(rows):
        y = top + step * (index + 0.5)
        parts.append(text(width[0] - 10, y + 4, name, "e", 19))
        for lane, value in enumerate(pair, 1):
            parts.append(_span(x, y + (-6 if lane == 1 else 6), value, lane, name))
        if all(v is None or v["value"] is None for v in pair):
            parts.append(text(width[0] + 6, y + 4, _counts(numbers, label, name), "mu"))
    parts.append('<circle class="p1" cx="14" cy="14" r="5"/>' + text(26, 18, "winner"))
    parts.append('<rect class="p2" x="97" y="10" width="8" height="8"/>' + text(112, 18, opponent))
    told = f"{label}: winner and {opponent}; dots are AUROC, lines 95% intervals over patients."
    return figure(f"AUROC by group: {label}", told, bottom + 44, parts, "groups")


Pair = tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]


def _group_rows(numbers: Numbers, label: str, opponent: str) -> list[tuple[str, Pair]]:
    """All patients first, then each group: values of winner and opponent."""
    key = "auroc" if len(numbers["thresholds"]) == 1 else f"auroc:{label}"
    tests = numbers["best"]["test"], numbers["baselines"].get(opponent, {}).get("test", {})
    rows: dict[str, list[Mapping[str, Any] | None]] = {
        "all patients": [tests[0].get(key), tests[1].get(key)]
    }
    for row in numbers["groups"]:
        if row["label"] == label and row["model"] in ("winner", opponent):
            value = row["interval"] or {"value": row["auroc"]}
            pair = rows.setdefault(group_name(row), [None, None])
            pair[0 if row["model"] == "winner" else 1] = value
    return [(name, (pair[0], pair[1])) for name, pair in rows.items()]


def _counts(numbers: Numbers, label: str, name: str) -> str:
    for row in numbers["groups"]:
        if row["label"] == label and group_name(row) == name:
            return str(row["text"])
    return "n/a"


def _span(x: Axis, y: float, value: Mapping[str, Any] | None, lane: int, name: str) -> str:
    """One dot with its interval, if there is one."""
    if value is None or value["value"] is None:
        return ""
    at, said = x.at(value["value"]), f"{name}: {value['value']:.3f}"
    span = ""
    if "low" in value:
        span = line(x.at(value["low"]), y, x.at(value["high"]), y, f"l{lane}")
        said += f" ({value['low']:.3f} to {value['high']:.3f})"
    dot = f'<circle class="p1" cx="{at:.1f}" cy="{y}" r="5"/>'
    if lane == 2:
        dot = f'<rect class="p2" x="{at - 4:.1f}" y="{y - 4}" width="8" height="8"/>'
    return f"<g><title>{escape(said)}</title>{span}{dot}</g>"
