"""Predictions with a known shift, and numbers of a run that never was."""

from __future__ import annotations

import numpy as np

from autopeft.evaluation import Predictions


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def shifted(n=400, intercept=-1.0, slope=0.6, seed=0, images=1, groups=None, classes=1):
    """Scores z of which logit P(y) = intercept + slope z is true, one column a class."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n), images)
    z = np.repeat(rng.normal(0, 2, (n, classes)), images, axis=0)
    y = np.repeat(rng.random((n, classes)), images, axis=0) < sigmoid(intercept + slope * z)
    return Predictions(
        score=z.astype(np.float32),
        target=y.astype(np.float32),
        patient=patient.astype(str),
        part=np.zeros(n * images, np.int64),
        groups=groups or {},
        classes=tuple(f"c{i}" for i in range(classes)),
        kind="binary" if classes == 1 else "multilabel",
        split="external",
    )
