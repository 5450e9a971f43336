"""Rungs and promotion: asynchronous successive halving as pure functions over plain data.

Promotion-type ASHA (Li et al., MLSys 2020, algorithm 2): whenever a worker is free, a trial in the
best 1/eta of its rung goes on to the next one; only if there is none, a new candidate starts.
Nothing here knows about Optuna, jobs or epochs: a rung is an index 0..top, so that epochs and
folds are rungs alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

# trial number -> rung index -> value (higher is better)
Results = Mapping[int, Mapping[int, float]]


def rungs(epochs: int, r_min: int = 1, eta: int = 3) -> tuple[int, ...]:
    """Epochs at which a trial may pause: ``{r_min * eta^k < epochs}`` and ``epochs``.

    Args:
        epochs: length of the full training schedule.
        r_min: epochs of the first rung.
        eta: one in ``eta`` trials is promoted.
    """
    stops = []
    stop = r_min
    while stop < epochs:
        stops.append(stop)
        stop *= eta
    return (*stops, epochs)


def next_promotion(
    results: Results,
    running: Collection[int],
    failed: Collection[int],
    top: int,
    eta: int = 3,
    at_least: int = 0,
) -> int | None:
    """The trial to promote now, from the highest rung that has one.

    Of the ``n`` trials that reached a rung, the best ``n // eta`` may go on. Ties go to the older
    trial. A trial that failed later still counts in ``n``, but its place passes to the next best.
    A late arrival can take a place that is free; it never takes back one that is used.

    Args:
        results: the value of every trial at every rung that it reached.
        running: trials that a worker holds now: already promoted from their last rung.
        failed: trials that can never go on.
        top: index of the last rung; what reached it is finished.
        eta: one in ``eta`` trials is promoted.
        at_least: so many of each rung go on in any case: 1 at the end of a study, when nothing
            new will arrive, so that the best trial is fully trained however few there were.

    Returns:
        A trial number, or None.
    """
    for rung in reversed(range(top)):
        reached = [number for number, values in results.items() if rung in values]
        alive = [number for number in reached if number not in failed]
        ranked = sorted(alive, key=lambda number: (-results[number][rung], number))
        for number in ranked[: max(at_least, len(reached) // eta)]:
            if max(results[number]) == rung and number not in running:
                return number
    return None


def best_paused(results: Results, failed: Collection[int], top: int) -> int | None:
    """The paused trial nearest to a full training: highest rung first, then the best value.

    It is promoted when a budget ends before any trial was fully trained, so that there is always
    something to choose from.
    """
    paused = [n for n, values in results.items() if values and n not in failed]
    paused = [n for n in paused if max(results[n]) < top]
    if not paused:
        return None

    def rank(number: int) -> tuple[int, float, int]:
        rung = max(results[number])
        return (-rung, -results[number][rung], number)

    return min(paused, key=rank)


def informative_rung(results: Results, top: int, enough: int = 10) -> int | None:
    """The rung whose values a sampler learns from: the highest with ``enough`` results.

    BOHB's rule (Falkner et al., ICML 2018). Below ``enough`` everywhere: the rung with the most
    results, the lower one of equals.

    Returns:
        A rung index, or None where nothing has been measured.
    """
    counts = [sum(rung in values for values in results.values()) for rung in range(top + 1)]
    if not any(counts):
        return None
    for rung in reversed(range(top + 1)):
        if counts[rung] >= enough:
            return rung
    return counts.index(max(counts))
