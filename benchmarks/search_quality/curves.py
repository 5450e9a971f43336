"""The table of `train_table.py`: what every candidate was worth after every epoch, and when."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

TERMS = ("search_auroc", "search_worst_group", "heldout_auroc", "heldout_worst_group")


def key(params: Mapping[str, Any]) -> str:
    """One line of text for one candidate: its parameters by the names they have in a study."""
    return json.dumps(dict(sorted(params.items())), separators=(",", ":"))


@dataclass(frozen=True)
class Curve:
    """One candidate's training.

    Attributes:
        key: its parameters as text.
        values: term -> value after epoch 1, 2, ...; all epochs, or those before it diverged.
        seconds: after epoch 1, 2, ... since the start; one more than values if it diverged.
        params: numbers that train.
    """

    key: str
    values: Mapping[str, tuple[float, ...]]
    seconds: tuple[float, ...]
    params: int

    @property
    def method(self) -> str:
        """The method's name."""
        return str(json.loads(self.key)["method"])

    @property
    def fitted(self) -> bool:
        """A probe is solved, not stepped: it has no epochs to pause between."""
        return self.method == "linear_probe"

    @property
    def diverged(self) -> int:
        """The epoch whose loss was not finite, or 0."""
        epochs = len(self.values["search_auroc"])
        return len(self.seconds) if len(self.seconds) > epochs else 0

    def value(self, term: str, epoch: int) -> float:
        """A term after so many epochs; ``trainable_params`` is the same after all of them."""
        return float(self.params) if term == "trainable_params" else self.values[term][epoch - 1]

    def cost(self, start: int, stop: int) -> float:
        """Seconds from epoch ``start`` to ``stop``, or to the epoch that diverged."""
        if self.fitted:
            return self.seconds[0]
        reached = min(stop, len(self.seconds))
        return self.seconds[reached - 1] - (self.seconds[start - 1] if start else 0.0)


@dataclass(frozen=True)
class Table:
    """All candidates.

    Attributes:
        curves: by key.
        epochs: of a full training.
        about: the comments at the table's head.
    """

    curves: Mapping[str, Curve]
    epochs: int
    about: tuple[str, ...] = ()

    @cached_property
    def full(self) -> tuple[Curve, ...]:
        """Candidates that can be trained to the end."""
        return tuple(c for c in self.curves.values() if not c.diverged)

    @property
    def average(self) -> float:
        """Seconds of a full training, mean over all candidates."""
        return statistics.fmean(c.seconds[-1] for c in self.curves.values())

    def best(self, term: str) -> float:
        """The best value of a fully trained candidate."""
        return max(c.value(term, self.epochs) for c in self.full)


def read_table(path: Path) -> Table:
    """Reads the table; candidates in the order of their text."""
    lines = path.read_text().splitlines()
    about = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    rows: dict[str, dict[int, Mapping[str, str]]] = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        rows.setdefault(row["params"], {})[int(row["epoch"])] = row
    curves = {name: _curve(name, [rows[name][e] for e in sorted(rows[name])]) for name in rows}
    epochs = max(len(curve.seconds) for curve in curves.values())
    return Table(dict(sorted(curves.items())), epochs, about)


def _curve(name: str, rows: Sequence[Mapping[str, str]]) -> Curve:
    good = [row for row in rows if row["status"] == "ok"]
    return Curve(
        name,
        {term: tuple(float(row[term]) for row in good) for term in TERMS},
        tuple(float(row["seconds"]) for row in rows),
        int(good[0]["trainable_params"]) if good else 0,
    )
