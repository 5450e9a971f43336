from collections.abc import Callable

import numpy as np
import pytest

from autopeft.evaluation import Predictions


def make_table(
    score,
    target,
    patient=None,
    part=None,
    groups=None,
    kind="multilabel",
    split="search",
    repeat=0,
) -> Predictions:
    score = np.asarray(score, dtype=np.float64)
    target = np.asarray(target, dtype=np.float32)
    if score.ndim == 1:
        score, target = score[:, None], target[:, None]
    n, c = score.shape
    return Predictions(
        score=score,
        target=target,
        patient=np.arange(n) if patient is None else np.asarray(patient),
        part=np.zeros(n, dtype=int) if part is None else np.asarray(part),
        groups={k: np.asarray(v) for k, v in (groups or {}).items()},
        classes=tuple(f"c{i}" for i in range(c)),
        kind=kind,
        split=split,
        repeat=repeat,
    )


@pytest.fixture(scope="session")
def table() -> Callable[..., Predictions]:
    return make_table
