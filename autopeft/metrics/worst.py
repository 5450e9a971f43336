"""Is the worst-off group better off? Every group has to be, not the smallest of noisy values.

The lowest of several noisy AUROCs lies below the lowest true one, and the further below the more
groups are near it. So the difference of two models' lowest values flatters the model whose groups
differ: simulated with four groups of 75 + 225 patients, a winner that was .005 worse for its worst
group was called better in 22% of the tables at a nominal 2.5%.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopeft.evaluation import Predictions
from autopeft.metrics.fairness import Counted
from autopeft.metrics.groups import patient_index, scored_groups
from autopeft.metrics.intervals import Verdict
from autopeft.metrics.resampling import check_same_rows, patient_weights, prepared


@dataclass(frozen=True)
class Floor:
    """The smallest lower bound over groups of "winner's AUROC minus the opponent's worst group's".

    Attributes:
        group: the winner's group for which the bound is smallest.
        against: the opponent's worst group, named by other patients.
        low: the bound.
    """

    group: str
    against: str
    low: float


def worst_group_floor(
    winner: Predictions,
    opponent: Predictions,
    against: str,
    counted: Counted,
    labels: Counted | None = None,
    n: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Floor | None:
    """Intersection-union test of "the winner's worst group is above the opponent's" (Berger 1982).

    The opponent's worst group is at most its group ``against``, whichever that is; the winner's
    worst group is above that when each of its groups is. Each is tested at alpha / 2, and no
    correction is needed, because all of them have to hold.

    Args:
        winner: predictions on test.
        opponent: on the same rows.
        against: the opponent's group that was worst on ``confirm``.
        counted: attribute -> groups that count.
        labels: attribute -> labels that count; None = all.
        n: resamples of the patients, the same for both models.
        seed: of the resamples.
        alpha: two-sided level.

    Returns:
        None where a group is undefined, or no group is scored.
    """
    check_same_rows([winner, opponent])
    unit, patients = patient_index(winner)
    groups = [g for scored in scored_groups(winner, counted, labels) for g in scored.groups]
    if patients < 2 or against not in groups:
        return None
    theirs = prepared(opponent, unit, f"auroc:{against}", counted, labels)
    mine = {g: prepared(winner, unit, f"auroc:{g}", counted, labels) for g in groups}
    drawn: dict[str, list[float]] = {g: [] for g in groups}
    for weight in patient_weights(patients, len(unit), n, seed):
        other = theirs.values(weight)
        for group, metric in mine.items():
            drawn[group] += (metric.values(weight) - other).tolist()
    lows = {g: float(np.nanquantile(v, alpha / 2)) for g, v in drawn.items()}
    if not all(np.isfinite(low) for low in lows.values()):
        return None
    group = min(lows, key=lows.__getitem__)
    return Floor(group, against, lows[group])


def worst_group_word(word: Verdict, floor: Floor | None, margin: float) -> Verdict:
    """What the difference of the lowest AUROCs said, as far as every group bears it out.

    Args:
        word: of the paired interval of winner minus opponent.
        floor: None = some group could not be compared.
        margin: the declared one.
    """
    if word not in ("better", "not worse"):
        return word
    if floor is None or floor.low <= -margin:
        return "cannot tell"
    return "better" if word == "better" and floor.low > 0 else "not worse"
