"""What a race was worth at any time: the answer's values, the front's hypervolume, intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from contestants import Aim, History, Seen
from curves import Curve, Table

Floats = npt.NDArray[np.float64]
COIN = 0.5  # the AUROC of an answer that does not exist yet
RESAMPLES = 10_000


def incumbents(
    history: History, table: Table, times: Sequence[float], trained: bool = True
) -> list[tuple[float, float]]:
    """Search and held-out AUROC of the answer that would be given at each time.

    Args:
        history: of one race.
        table: for the length of a training.
        times: rising.
        trained: only what is fully trained can be the answer; else the trial whose last result is
            the best, as Tune's ``get_best_result`` does it.

    Returns:
        (search, held-out) at each time; a coin's before the first answer.
    """
    last: dict[int, Seen] = {}
    answers = []
    queue = list(history.seen)
    for time in times:
        while queue and queue[0].time <= time:
            seen = queue.pop(0)
            if not trained or seen.epoch == table.epochs:
                last[seen.trial] = seen
        # The oldest of equals, whoever asks.
        best = max(last.values(), key=lambda s: (_auroc(s), -s.trial), default=None)
        heldout = best.curve.value("heldout_auroc", best.epoch) if best else COIN
        answers.append((_auroc(best) if best else COIN, heldout))
    return answers


def _auroc(seen: Seen) -> float:
    return seen.curve.value("search_auroc", seen.epoch)


def hypervolumes(history: History, table: Table, aim: Aim, times: Sequence[float]) -> list[float]:
    """Hypervolume of the fully trained trials at each time, as a share of the whole table's."""
    corner = reference_point(table, aim)
    whole = hypervolume([point(c, aim, table.epochs) for c in table.full], corner)
    found: list[float] = []
    for time in times:
        done = [s.curve for s in history.seen if s.time <= time and s.epoch == table.epochs]
        points = [point(c, aim, table.epochs) for c in done]
        found.append(hypervolume(points, corner) / whole)
    return found


def point(curve: Curve, aim: Aim, epoch: int) -> tuple[float, ...]:
    """The terms, higher is better; numbers of parameters as their logarithm."""
    values = []
    for term, direction in aim.terms.items():
        value = curve.value(term, epoch)
        value = math.log10(value) if term == "trainable_params" else value
        values.append(value if direction == "maximize" else -value)
    return tuple(values)


def reference_point(table: Table, aim: Aim) -> tuple[float, ...]:
    """A coin's AUROC, and the most parameters that any candidate has."""
    most = max(curve.params for curve in table.curves.values())
    return tuple(-math.log10(most) if t == "trainable_params" else COIN for t in aim.terms)


def hypervolume(points: Iterable[Sequence[float]], corner: Sequence[float]) -> float:
    """Area between the points and a corner that they should dominate, in two dimensions."""
    area, height = 0.0, corner[1]
    for x, y in sorted({(p[0], p[1]) for p in points}, reverse=True):
        if x > corner[0] and y > height:
            area += (x - corner[0]) * (y - height)
            height = y
    return area


def mean_interval(values: Floats, seed: int = 0) -> tuple[float, float, float]:
    """Mean over the first axis and its 95% bootstrap interval (percentiles over the seeds).

    Args:
        values: [N], one value a seed.
        seed: of the resamples.
    """
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
