"""An objective is tried on drawn scores of the search patients before anything is trained.

A term that is undefined there is undefined for every candidate, and the search would end hours
later without a single trial that can be ranked.
"""

from __future__ import annotations

import numpy as np

from autopeft.bench import Audience
from autopeft.errors import UserError
from autopeft.evaluation import Cost
from autopeft.metrics import METRICS
from autopeft.objective import Objective, measure


def rehearse(objective: Objective, audience: Audience, named: str) -> None:
    """Measures every term and the ranking metric once.

    Args:
        objective: of the run.
        audience: with the search patients.
        named: the objective as the user gave it.

    Raises:
        UserError: something is undefined on these patients, or the user's function failed.
    """
    random, judged = np.random.default_rng(0), audience.folds or (audience.rows["search"],)
    scores = [random.normal(size=(len(rows), len(audience.classes))) for rows in judged]
    reference = dict.fromkeys(objective.references, 0.5)
    found = audience.on_folds([score.astype(np.float32) for score in scores])
    drawn = audience.evaluation(found, Cost(1, 1, 1.0, 1), reference)
    for metric in (*(term.metric for term in objective.terms), objective.rung, objective.primary):
        known = METRICS.get(metric) if isinstance(metric, str) else None
        if known is not None and "memorization" in known.needs:
            continue  # it needs scores of members; `cut_probe` has refused what has too few
        if measure(metric, drawn) is None:
            name = metric if isinstance(metric, str) else metric.__name__
            patients = len(set(found.patient.tolist()))
            about = f": {known.meaning}" if known else ""
            raise UserError(
                f"{name}{about}; it is undefined on these {patients} search patients",
                f"--objective {named}",
                "Take another objective, or more patients.",
            )
