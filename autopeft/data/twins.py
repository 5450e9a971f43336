"""The same film under several patient ids: who is judged on what somebody else was trained on?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd


def twin_notes(
    table: pd.DataFrame, marks: npt.NDArray[np.uint64], judged: Sequence[str]
) -> tuple[str, ...]:
    """Notes on images that are equal pixel for pixel and belong to several patients.

    Args:
        table: ``patient_id`` and ``split`` of each image [N].
        marks: a hash of each image's pixels [N].
        judged: splits whose patients should not be in ``train`` under another id.

    Returns:
        Nothing, or one line. Such patients may be the same person, registered twice.
    """
    each = pd.DataFrame(
        {"mark": marks, "patient": table["patient_id"].to_numpy(), "split": table["split"]}
    )
    several = each.groupby("mark")["patient"].transform("nunique") > 1
    twins = each[several]
    if twins.empty:
        return ()
    trained = twins.loc[twins["split"] == "train", "mark"]
    hit = twins[twins["mark"].isin(trained)]
    told = [
        f"{hit.loc[hit['split'] == split, 'patient'].nunique()} of {split}"
        for split in judged
        if (hit["split"] == split).any()
    ]
    line = (
        f"{twins['patient'].nunique()} patients share an identical image with another patient id"
    )
    if told:
        line += f"; {', '.join(told)} share one with train: what they are judged on was trained on"
    return (f"{line}. If they are the same people, give them one id",)
