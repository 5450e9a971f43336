"""The job ``simple``: rows scored by what needs no fine-tuning, and by frozen features for groups.

- ``knn``: neighbors among the training images on frozen features, k chosen inside train.
- ``demographics``: logistic regression on the declared groups alone, no image.
- ``thumbnail``: logistic regression on 8 x 8 gray pixels, no backbone.
- ``groups``: no prediction of the task but of the groups: a probe on frozen features for each
  (`autopeft.metrics.shortcuts` asks how much of it goes beyond the label).

All are fitted on ``train``. The rows come without labels, as those of predict and test jobs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopeft.job import Job, Outcome, Rows
from autopeft.states import save_arrays
from autopeft.training.features import frozen_features
from autopeft.training.neighbors import best_k, knn_scores
from autopeft.training.simple_scores import group_columns, logistic_scores, one_hot, thumbnails

if TYPE_CHECKING:
    from autopeft.trial import Resident

Scores = dict[str, npt.NDArray[np.float32]]
MOST_NEIGHBORS = 20_000  # training images among which neighbors are looked for
MOST_FITTED = 50_000  # training images that a regression is fitted on


def simple(resident: Resident, job: Job) -> Outcome:
    """Scores ``job.rows``; the readout is the candidate's."""
    assert job.rows is not None
    train, setup = resident.setup.rows["train"], resident.setup
    assert train.label is not None
    fitted = train.take(np.arange(0, len(train), -(-len(train) // MOST_FITTED)))
    scores, k = _on_features(resident, job, train)
    scores |= _without_backbone(resident, job.rows, fitted)
    name = f"{job.name}.npz"
    save_arrays(setup, name, scores)
    columns = [list(pair) for pair in group_columns(train.groups)]
    return Outcome("ok", predictions=name, extra={"k": k, "groups": columns})


def _on_features(resident: Resident, job: Job, train: Rows) -> tuple[Scores, int]:
    """By neighbors, and the groups by a probe; both at the candidate's readout."""
    assert job.candidate is not None
    assert job.rows is not None
    assert train.label is not None
    setup, at = resident.setup, job.candidate.readout
    place = (at.block, at.pool)
    base, x = (
        frozen_features(
            resident.frozen,
            resident.store,
            rows.index,
            [place],
            setup.precision,
            Path(setup.cache),
        )[place]
        for rows in (train, job.rows)
    )
    k = best_k(base, train.label, setup.kind, train.patient)
    near = np.arange(0, len(train), -(-len(train) // MOST_NEIGHBORS))
    scores = {"knn": knn_scores(base[near], train.label[near], x, k, kind=setup.kind)}
    columns = group_columns(train.groups)
    if columns:
        some = np.arange(0, len(train), -(-len(train) // MOST_FITTED))
        groups = one_hot(train.take(some).groups, columns, missing=np.nan)
        scores["groups"] = logistic_scores(
            base[some], groups, "multilabel", train.patient[some], x
        )
    return scores, k


def _without_backbone(resident: Resident, rows: Rows, train: Rows) -> Scores:
    """By groups alone, and by 8 x 8 pixels alone."""
    assert train.label is not None
    kind, store = resident.setup.kind, resident.store
    known = {
        "thumbnail": (thumbnails(store, train.index), thumbnails(store, rows.index)),
    }
    columns = group_columns(train.groups)
    if columns:
        known["demographics"] = one_hot(train.groups, columns), one_hot(rows.groups, columns)
    return {
        name: logistic_scores(base, train.label, kind, train.patient, x)
        for name, (base, x) in known.items()
    }
