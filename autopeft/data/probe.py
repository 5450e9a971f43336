"""The probe split: patients cut from train whom no model sees, to be told from its members."""

from __future__ import annotations

import numpy as np

from autopeft.data.splits import PROBE, cells, make_splits
from autopeft.data.task import Task
from autopeft.errors import UserError


def cut_probe(task: Task, seed: int) -> Task:
    """The task with as many patients as ``search`` has moved from train to ``probe``.

    They are dealt out like the other splits, in proportion within every label and group: members
    and non-members come from one random split of one set of labels, so that what tells them apart
    is that some were trained on.

    Args:
        task: without a probe split.
        seed: the settings' ``--split-seed``.

    Raises:
        UserError: more than half of the train patients would go, or one of the two could not be
            scored.
    """
    train = task.rows("train")
    assert train.label is not None
    patients, wanted = (len(np.unique(task.rows(s).patient)) for s in ("train", "search"))
    if 2 * wanted > patients:
        raise UserError(
            f"memorization is measured on {wanted} {task.unit}s cut from train, as many as in "
            f"search, but train has only {patients}",
            "--objective",
            "Take a larger --label-fraction or more data, or an objective without memorization.",
        )
    share = {"train": patients - wanted, PROBE: wanted}
    split = make_splits(
        train.patient, cells(train.label, list(train.groups.values())), share, seed
    )
    found = task.with_split(train.index[split == PROBE], PROBE)
    for name in ("train", PROBE):
        if not any(all(pair) for pair in found.count_images(name).values()):
            raise UserError(
                f"the {name} split cannot be scored: no label has both classes in it",
                "--objective",
                "Memorization needs more patients; take an objective without it.",
            )
    return found
