"""Rules that choose one winner from a front.

A rule is data, keys and how they are weighed, so that a replay can apply it to a table of values
thousands of times. It never picks what another entry beats in one key and equals in the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autopeft.evaluation import Evaluation, Floats
from autopeft.terms import Measure, Term, measure

# Sizes and times are compared by their ratio: from 10,000 to 20,000 parameters is as far as from
# 10 to 20 million.
BY_RATIO = ("trainable_params", "adapter_bytes", "train_seconds")
MARGIN = "margin"  # a slack of as much as the settings' --margin
Slack = float | Literal["margin"]


@dataclass(frozen=True)
class Rule:
    """Chooses one of a front; ties go to the better keys in their order, then to the first.

    Any function from a list of evaluations to an index may stand in its place.

    Attributes:
        name: as it is printed.
        keys: what is compared.
        kind: ``lexicographic``: the best by the first key, ties by the next; ``dto``: nearest to
            the ideal point; ``knee``: farthest beyond the line between the extremes.
        slack: lexicographic only, of the first keys: what may be lost of the best value of a key
            for the sake of the next; 0 where it is not given.
    """

    name: str
    keys: tuple[Term, ...]
    kind: Literal["lexicographic", "dto", "knee"] = "lexicographic"
    slack: tuple[Slack, ...] = ()

    def __call__(self, front: Sequence[Evaluation]) -> int:
        """Index of the chosen evaluation.

        Raises:
            ValueError: the front is empty.
        """
        if not front:
            raise ValueError("nothing to choose from: the front is empty")
        table = [[measure(key.metric, e) for key in self.keys] for e in front]
        return self.pick(table, front[0].margin)

    def pick(self, table: Sequence[Sequence[float | None]], margin: float = 0.01) -> int:
        """Index of the chosen row of a table of values, e.g. in a replay.

        Args:
            table: one row for each entry of the front, one value for each key; None = undefined,
                which is worse than anything.
            margin: what a slack of ``"margin"`` stands for.
        """
        signed = [tuple(k.signed(v) for k, v in zip(self.keys, row, strict=True)) for row in table]
        first = self._first(signed, margin)
        return max(range(len(signed)), key=lambda i: (first[i], signed[i], -i))

    def _first(self, signed: Sequence[tuple[float, ...]], margin: float) -> Sequence[float]:
        """What is compared before the keys themselves."""
        if self.kind == "lexicographic":
            return _within(signed, [margin if s == MARGIN else float(s) for s in self.slack])
        place = _normalized(np.array([self._by_ratio(row) for row in signed]))
        near = self.kind == "dto"
        found = -np.linalg.norm(1 - place, axis=1) if near else place.sum(axis=1)
        return [float(v) for v in np.round(found, 12)]  # what differs by rounding is a tie

    def _by_ratio(self, row: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            -math.log(max(-v, 1e-9)) if k.name in BY_RATIO and v > -math.inf else v
            for k, v in zip(self.keys, row, strict=True)
        )


def _within(signed: Sequence[tuple[float, ...]], slack: Sequence[float]) -> list[float]:
    """1 for entries that lose no more than the slacks and are then best by the key behind them."""
    left = list(range(len(signed)))
    for key, allowed in enumerate(slack):
        best = max(signed[i][key] for i in left)
        # Values are rounded so that .90 - .01 does not exclude .89.
        left = [
            i for i in left if signed[i][key] >= best or best - signed[i][key] <= allowed + 1e-12
        ]
    if slack and len(slack) < len(signed[0]):
        rest = [signed[i][len(slack) :] for i in left]
        left = [i for i, row in zip(left, rest, strict=True) if row == max(rest)]
    return [float(i in left) for i in range(len(signed))]


def _normalized(signed: Floats) -> Floats:
    """Each key from 0, the worst defined value on the front, to 1, the best; -inf stays out."""
    whole = np.isfinite(signed).all(axis=1)
    place = np.full(signed.shape, -np.inf)
    if not whole.any():
        return np.zeros(signed.shape)
    known = signed[whole]
    low, high = known.min(axis=0), known.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    place[whole] = np.where(high > low, (known - low) / width, 1.0)
    return place


def lexicographic(*keys: Measure | Term | tuple[Measure | Term, Slack]) -> Rule:
    """The best by the first key; of those within its slack, the best by the next; and so on.

    With slack d on key 1: among {i : v_1(i) >= max v_1 - d} the maximum of v_2. Which unit a key
    has does not matter, only the slack's own; adding a poor entry to the front changes nothing.

    Args:
        *keys: metrics, or (metric, slack): a number, or ``"margin"`` for the settings' own.

    Example:
        ``lexicographic(("auroc", "margin"), "memorization")``: as good as the best but for the
        margin, and of those the one that memorizes least.
    """
    pairs = [k if isinstance(k, tuple) else (k, 0.0) for k in keys]
    slack = [s for _, s in pairs]
    while slack and slack[-1] == 0:
        slack.pop()
    return Rule("lexicographic", _terms(*(k for k, _ in pairs)), "lexicographic", tuple(slack))


def dto(*keys: Measure | Term) -> Rule:
    """Nearest to the ideal point (distance to the optimum).

    Each key is stretched to n = (v - worst) / (best - worst) over the front, sizes and times by
    their logarithm; the ideal has n = 1 in all keys, and the pick minimizes
    sqrt(sum_k (1 - n_k)^2). Units and constants do not matter; the extremes of the front do.

    Papers: Marler & Arora, Survey of multi-objective optimization methods for engineering (2004),
    the global criterion; as DTO in Zong et al., MEDFAIR (ICLR 2023).
    """
    return Rule("dto", _terms(*keys), "dto")


def knee(*keys: Measure | Term) -> Rule:
    """Farthest beyond the line through the extremes: where giving starts to buy little.

    With n as in `dto` the line (plane, with more keys) through the extremes of the front is
    sum_k n_k = 1, so that the pick maximizes sum_k n_k.

    Paper: Das, On characterizing the knee of the Pareto curve based on Normal-Boundary
    Intersection (1999).
    """
    return Rule("knee", _terms(*keys), "knee")


def _terms(*keys: Measure | Term) -> tuple[Term, ...]:
    return tuple(k if isinstance(k, Term) else Term(k) for k in keys)


overall = Rule("overall", _terms("auroc", "trainable_params"))
worst_group = Rule("worst_group", _terms("worst_group_auroc", "auroc", "trainable_params"))
