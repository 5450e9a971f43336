"""The front: what is feasible and not beaten in every term."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Front:
    """The evaluations worth choosing from.

    Attributes:
        indices: feasible and non-dominated; without any feasible one, the least violating.
        feasible: False when no evaluation met every constraint: the report must say so.
    """

    indices: tuple[int, ...]
    feasible: bool

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def select_front(
    values: Sequence[Values],
    excess: Sequence[float],
    directions: Sequence[Literal["maximize", "minimize"]],
) -> Front:
    """The front of a table of values, e.g. inside a replay.

    Args:
        values: one row for each evaluation, one column for each term.
        excess: total violation of each; 0 = feasible.
        directions: of the columns.
    """
    known = [i for i, row in enumerate(values) if None not in row]
    feasible = [i for i in known if excess[i] <= 0]
    if known and not feasible:
        least = min(excess[i] for i in known)
        known = [i for i in known if excess[i] == least]
    pool = feasible or known
    sign = np.array([1.0 if d == "maximize" else -1.0 for d in directions])
    table = np.array([values[i] for i in pool], dtype=np.float64).reshape(-1, len(sign)) * sign
    kept = [
        i
        for i, row in zip(pool, table, strict=True)
        if not ((table >= row).all(axis=1) & (table > row).any(axis=1)).any()
    ]
    return Front(tuple(kept), bool(feasible))
