"""Rungs and promotion: asynchronous successive halving over plain data.

Promotion-type ASHA (Li et al., MLSys 2020, algorithm 2): whenever a worker is free, a trial in the
best 1/eta of its rung goes on to the next one; only if there is none, a new candidate starts. With
several terms "best" is MO-ASHA's order (Schmucker et al., arXiv 2106.12639). Nothing here knows
about Optuna or jobs.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Key = tuple[float, ...]  # what a rung ranks by: one value or several terms, higher is better


@dataclass(frozen=True)
class Ladder:
    """How far a trial is trained before it is compared: epochs of one training, or folds.

    A trial's *resource* is what it has done: epochs trained, or folds finished.

    Attributes:
        stops: resources at which trials pause and are compared, rising; the last is everything.
        epochs: length of one full training.
        folds: whether the resource is folds, each of them trained to the end.
    """

    stops: tuple[int, ...]
    epochs: int
    folds: bool = False

    @property
    def top(self) -> int:
        """Index of the last rung."""
        return len(self.stops) - 1

    def rung(self, resource: int) -> int | None:
        """Index of the rung that is reached with exactly this resource, or None between rungs."""
        return self.stops.index(resource) if resource in self.stops else None

    def next(self, resource: int) -> int:
        """The resource after the next job of a trial that has this much."""
        if self.folds:
            return resource + 1
        return next(stop for stop in self.stops if stop > resource)

    def stretch(self, done: int, target: int) -> tuple[str, int, int]:
        """What the job from ``done`` to ``target`` trains: part, first epoch, last epoch.

        Fold 0 judges the part ``all``: it is ``search``, and the others are cut from ``train``.
        """
        if self.folds:
            return f"fold:{done}" if done else "all", 0, self.epochs
        return "all", done, target


def epoch_ladder(epochs: int, r_min: int = 1, eta: int = 3) -> Ladder:
    """Rungs at ``{r_min * eta^k < epochs}`` and ``epochs``: one training, paused on its way.

    Args:
        epochs: length of the full training schedule.
        r_min: epochs of the first rung.
        eta: one in ``eta`` trials is promoted.
    """
    stops = itertools.takewhile(lambda s: s < epochs, (r_min * eta**k for k in itertools.count()))
    return Ladder((*stops, epochs), epochs)


def fold_ladder(epochs: int, folds: int = 5, eta: int = 3) -> Ladder:
    """Rungs at ``{eta^k < folds}`` and ``folds`` finished folds: for small data.

    Args:
        epochs: length of the training of each fold.
        folds: number of folds.
        eta: one in ``eta`` trials is promoted.
    """
    return Ladder(epoch_ladder(folds, 1, eta).stops, epochs, folds=True)


class Promotion:
    """Who goes on. Of the ``n`` trials that reached a rung, the best ``n // eta`` may.

    Ties go to the older trial. A trial that failed later still counts in ``n``, but its place
    passes to the next best. A late arrival that ranks among the best goes on too, although their
    places are used: nobody is called back, so a few more than ``n // eta`` may go on in all.

    Args:
        top: index of the last rung; what reached it is finished.
        eta: one in ``eta`` trials is promoted.
    """

    def __init__(self, top: int, eta: int = 3) -> None:
        self._rungs = [_Rung() for _ in range(top + 1)]
        self._top, self._eta = top, eta
        self._at: dict[int, int] = {}  # trial -> its highest rung

    def reached(self, number: int, rung: int, key: Key) -> None:
        """A trial has been measured at a rung; it pauses there."""
        if number in self._at:
            self._rungs[self._at[number]].passed(number)
        self._at[number] = rung
        self._rungs[rung].add(number, key)

    def left(self, number: int) -> None:
        """A trial can never go on: it failed."""
        self._at.pop(number, None)
        for rung in self._rungs:
            rung.remove(number)

    def next(self, out: Collection[int], at_least: int = 0) -> int | None:
        """The trial to promote now, from the highest rung that has one.

        Args:
            out: trials that a worker holds now: already promoted from their last rung.
            at_least: so many of each rung go on in any case: the finalists at the end of a
                study, when nothing new will arrive, so that they are fully trained however few
                trials there were.
        """
        for index in reversed(range(self._top)):
            rung = self._rungs[index]
            number = rung.first(max(at_least, rung.count // self._eta), out)
            if number is not None:
                return number
        return None

    def nearest(self) -> int | None:
        """The paused trial nearest to a full training: highest rung first, then the best.

        It is promoted when a budget ends before any trial was fully trained, so that there is
        always something to choose from.
        """
        for index in reversed(range(self._top)):
            rung = self._rungs[index]
            for number in rung.best(rung.count):
                if self._at[number] == index:
                    return number
        return None


class _Rung:
    """The trials that reached one rung, best first."""

    def __init__(self) -> None:
        self.count = 0  # all that ever reached it
        self._keys: dict[int, Key] = {}  # those that did not fail
        self._sorted: list[tuple[float, int]] = []  # (-value, number) while keys are single values
        self._waiting: list[tuple[float, int]] = []  # those of them that are still here
        self._here: set[int] = set()
        self._ranked: list[int] = []  # otherwise; made anew after a change
        self._wanted = 0

    def add(self, number: int, key: Key) -> None:
        self.count += 1
        self._keys[number] = key
        self._here.add(number)
        self._wanted = 0
        if len(key) == 1:
            bisect.insort(self._sorted, (-key[0], number))
            bisect.insort(self._waiting, (-key[0], number))

    def passed(self, number: int) -> None:
        """It went on to a higher rung."""
        self._here.discard(number)
        key = self._keys[number]
        if len(key) == 1:
            del self._waiting[bisect.bisect_left(self._waiting, (-key[0], number))]

    def first(self, wanted: int, out: Collection[int]) -> int | None:
        """The best that is still here and not out, if it is among the ``wanted`` best."""
        if len(self._sorted) != len(self._keys):
            found = (n for n in self.best(wanted) if n in self._here and n not in out)
            return next(found, None)
        for place in self._waiting:
            if place[1] not in out:
                return place[1] if bisect.bisect_left(self._sorted, place) < wanted else None
        return None

    def remove(self, number: int) -> None:
        if number in self._here:
            self.passed(number)
        key = self._keys.pop(number, None)
        if key is not None:
            self._wanted = 0
            if len(key) == 1:
                del self._sorted[bisect.bisect_left(self._sorted, (-key[0], number))]

    def best(self, wanted: int) -> Iterator[int]:
        """The ``wanted`` best, best first."""
        if len(self._sorted) == len(self._keys):
            return (number for _, number in itertools.islice(self._sorted, wanted))
        if wanted > self._wanted:
            numbers = sorted(self._keys)
            table = [self._keys[n] for n in numbers]
            self._ranked = [numbers[i] for i in rank(table, wanted)]
            self._wanted = wanted
        return itertools.islice(self._ranked, wanted)


def rank(table: Sequence[Key], wanted: int | None = None) -> list[int]:
    """Rows by MO-ASHA's order: front after front, each spread out as an epsilon-net.

    A front's best row in the first column comes first, then always the row farthest from those
    already taken, with columns scaled to their range in that front. Ties go to the earlier row.
    (Schmucker et al., "Multi-objective Asynchronous Successive Halving", arXiv 2106.12639.)

    Args:
        table: rows of terms, higher is better in each.
        wanted: how many rows are needed; the fronts after them are not looked at.

    Returns:
        Row numbers, best first: at least ``wanted`` of them where there are so many.
    """
    values = np.asarray(table, np.float64).reshape(len(table), -1)
    left, ranked = np.arange(len(table)), list[int]()
    while len(left) and (wanted is None or len(ranked) < wanted):
        on_front = _front(values[left])
        ranked += [int(left[on_front][i]) for i in _spread(values[left[on_front]])]
        left = left[~on_front]
    return ranked


def _front(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which rows no other row dominates; equal rows stand or fall together."""
    rows, which = np.unique(values, axis=0, return_inverse=True)
    rows = rows[::-1]  # best first by the first column, then the second ...: none beats an earlier
    if rows.shape[1] == 2:
        second = rows[:, 1]
        kept = np.concatenate([[True], second[1:] > np.maximum.accumulate(second)[:-1]])
    else:
        kept, front = np.zeros(len(rows), np.bool_), rows[:0]
        for i, row in enumerate(rows):
            if not (front >= row).all(axis=1).any():
                kept[i], front = True, np.vstack([front, row])
    return np.asarray(kept[::-1][which.ravel()], np.bool_)


def _spread(values: npt.NDArray[np.float64]) -> list[int]:
    """An epsilon-net's order of the rows of one front."""
    finite = np.where(np.isfinite(values), values, np.nan_to_num(values, neginf=-1e12))
    width = np.ptp(finite, axis=0)
    scaled = (finite - finite.min(axis=0)) / np.where(width > 0, width, 1.0)
    taken = [int(np.argmax(finite[:, 0]))]
    distance = np.linalg.norm(scaled - scaled[taken[0]], axis=1)
    distance[taken[0]] = -1.0
    while len(taken) < len(values):
        taken.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[taken[-1]], axis=1))
        distance[taken] = -1.0
    return taken


def informative_rung(results: Collection[Mapping[int, float]], top: int, enough: int = 10) -> int:
    """The rung whose values a sampler learns from: the highest with ``enough`` results.

    BOHB's rule (Falkner et al., ICML 2018). Below ``enough`` everywhere: the rung with the most
    results, the lower one of equals.

    Args:
        results: of each trial, rung index -> value.
        top: index of the last rung.
        enough: results that a rung needs.
    """
    counts = [sum(rung in values for values in results) for rung in range(top + 1)]
    for rung in reversed(range(top + 1)):
        if counts[rung] >= enough:
            return rung
    return counts.index(max(counts))
