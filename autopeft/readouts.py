"""Jobs that train nothing: what frozen features say by themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autopeft.job import Job, Outcome
from autopeft.parts import subsample
from autopeft.states import save_arrays
from autopeft.training.features import frozen_features
from autopeft.training.neighbors import knn_scores
from autopeft.training.probe import scan

if TYPE_CHECKING:
    from autopeft.trial import Resident

READOUT_ROWS = 4000  # readouts are compared on at most this many training images
NULL_ROWS = 20_000  # images among which neighbors are looked for


def readouts(resident: Resident, job: Job) -> Outcome:
    """Out-of-fold scores of a linear probe at every readout, cross-validated inside train."""
    setup, facts = resident.setup, resident.network.facts
    rows = setup.rows["train"]
    rows = rows.take(np.arange(0, len(rows), math.ceil(len(rows) / READOUT_ROWS)))
    assert rows.label is not None
    first = max(1, facts.depth // 3)
    places = [(r, p) for r in range(first, facts.depth + 1) for p in facts.pools]
    cache = Path(setup.cache)
    features = frozen_features(
        resident.frozen, resident.store, rows.index, places, setup.precision, cache
    )
    scores, fold = scan(features, rows.label, setup.kind, rows.patient)
    arrays: dict[str, npt.NDArray[Any]] = {"row": rows.index, "fold": fold}
    for ((block, pool), strength), score in scores.items():
        arrays[f"{block}|{pool}|{strength}"] = score.astype(np.float32)
    name = f"{job.name}.npz"
    save_arrays(setup, name, arrays)
    return Outcome("ok", predictions=name)


def null(resident: Resident, job: Job) -> Outcome:
    """kNN scores of members and of probe patients by neighbors that are neither of them.

    The neighbors are the train patients outside of the subsample that is attacked, so that to
    them members and non-members are strangers alike: what an attack finds in these scores is no
    memory of anybody. The readout is the candidate's.
    """
    assert job.candidate is not None
    setup, rows = resident.setup, resident.setup.rows
    member, readout = subsample(rows, setup.seed), job.candidate.readout
    place = (readout.block, readout.pool)
    features = {
        split: frozen_features(
            resident.frozen,
            resident.store,
            rows[split].index,
            [place],
            setup.precision,
            Path(setup.cache),
        )[place]
        for split in ("train", "probe")
    }
    label = rows["train"].label
    assert label is not None
    base = np.flatnonzero(~member)
    base = base[:: math.ceil(len(base) / NULL_ROWS)]
    asked = {"train": features["train"][member], "probe": features["probe"]}
    scores = {
        split: knn_scores(features["train"][base], label[base], x, kind=setup.kind)
        for split, x in asked.items()
    }
    name = f"{job.name}.npz"
    save_arrays(setup, name, {k: v.astype(np.float16) for k, v in scores.items()})
    return Outcome("ok", predictions=name)
