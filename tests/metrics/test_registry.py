from dataclasses import replace

import numpy as np
import pytest

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS
from autopeft.metrics.groups import group_table
from autopeft.metrics.intervals import COMPARABLE, bootstrap


def test_every_metric_answers_a_number_or_none(table):
    rng = np.random.default_rng(0)
    y = np.tile([0.0, 1.0], 60)
    sex = np.repeat(["F", "M"], 60)
    p = table(rng.normal(size=120) + y, y, groups={"sex": sex})
    full = Evaluation(p, Cost(10, 40, 1.5), {"sex": ("F", "M")}, thresholds=(0.5,))
    empty = Evaluation(table(np.zeros(3), [np.nan] * 3), Cost(0, 0))
    for name, metric in METRICS.items():
        assert isinstance(metric(full), float), name
        assert metric(empty) is None or name in (
            "trainable_params",
            "adapter_bytes",
            "train_seconds",
        )
        assert metric.direction in ("maximize", "minimize")
        assert metric.meaning


def test_the_constant_of_softmax_logits_changes_nothing(table):
    rng = np.random.default_rng(0)
    y, counted = np.eye(3)[rng.integers(0, 3, 300)], {"sex": ("F", "M")}
    sex = np.repeat(["F", "M"], 150)
    p = table(rng.normal(size=y.shape) + y, y, groups={"sex": sex}, kind="multiclass")
    moved = replace(p, score=p.score + rng.normal(0, 9, (300, 1)))
    for name, metric in METRICS.items():
        a, b = (metric(Evaluation(q, Cost(1, 1), counted, {}, (0.4,) * 3)) for q in (p, moved))
        assert a is not None, name
        assert a == pytest.approx(b, abs=1e-9), name
    for name in COMPARABLE:
        a, b = (bootstrap(q, name, n=20, counted=counted) for q in (p, moved))
        assert a.to_dict() == pytest.approx(b.to_dict(), abs=1e-9), name
    shown, again = ([row.auroc for row in group_table(q)] for q in (p, moved))
    assert shown == pytest.approx(again, abs=1e-9)


def test_costs_are_reported_as_they_are(table):
    e = Evaluation(table([0.0], [1]), Cost(10, 40, 1.5))
    found = [METRICS[m](e) for m in ("trainable_params", "adapter_bytes", "train_seconds")]
    assert found == [10, 40, 1.5]
