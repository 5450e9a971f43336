"""``--label-fraction``: only a share of the train patients is trained on; nested, stratified."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from autopeft.data.splits import cells, nested_share, shares_of
from autopeft.data.task import Task, count_patients
from autopeft.errors import UserError

_LEAST = 2  # positive and negative patients of each label


def take_fraction(task: Task, fraction: float, seed: int) -> Task:
    """The task without the train patients beyond a share; everyone else stays.

    Args:
        task: the whole task.
        fraction: share of the train patients, in (0, 1]; 1 gives the task back.
        seed: the settings' ``--split-seed``: the share is as fixed as the splits.

    Raises:
        UserError: a label would have fewer than two positive or two negative patients; the
            smallest fraction that is possible is named.
    """
    if fraction >= 1:
        return task
    rows = task.rows("train")
    assert rows.label is not None
    strata = cells(rows.label, list(rows.groups.values()))
    inside = nested_share(rows.patient, strata, fraction, seed)
    _, number = np.unique(rows.patient, return_inverse=True)
    for c, name in enumerate(task.classes):
        pair = count_patients(number[inside], rows.label[inside, c])
        if min(pair) < _LEAST:
            possible = _smallest(task, shares_of(rows.patient, strata, seed))
            raise UserError(
                f"{fraction:g} leaves {pair[0]} positive and {pair[1]} negative train patients "
                f"of label {name!r}",
                "--label-fraction",
                f"Each label needs {_LEAST} of both: take {possible:g} or more."
                if possible
                else "Not even all train patients are enough: leave it out.",
            )
    used, whole = (len(np.unique(p)) for p in (rows.patient[inside], rows.patient))
    note = f"trained on {used} of {whole} train {task.unit}s (--label-fraction {fraction:g})"
    return replace(task.without(rows.index[~inside]), notes=(*task.notes, note))


def _smallest(task: Task, share: np.ndarray) -> float:
    """The smallest fraction, to two digits, with enough patients of each label; 0: none."""
    rows = task.rows("train")
    assert rows.label is not None
    needed = 0.0
    for c in range(len(task.classes)):
        positive = set(rows.patient[rows.label[:, c] == 1].tolist())
        known = np.isfinite(rows.label[:, c])
        for sick in (True, False):
            mine = [p in positive for p in rows.patient.tolist()]
            member = known & (np.array(mine) == sick)
            _, first = np.unique(rows.patient[member], return_index=True)
            numbers = np.sort(share[member][first])
            if len(numbers) < _LEAST:
                return 0.0
            needed = max(needed, float(numbers[_LEAST - 1]))
    digits = 10.0 ** (math.floor(math.log10(max(needed, 1e-9))) - 1)
    return min(1.0, round((math.floor(needed / digits) + 1) * digits, 12))
