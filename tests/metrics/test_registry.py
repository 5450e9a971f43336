import numpy as np

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS


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


def test_costs_are_reported_as_they_are(table):
    e = Evaluation(table([0.0], [1]), Cost(10, 40, 1.5))
    found = [METRICS[m](e) for m in ("trainable_params", "adapter_bytes", "train_seconds")]
    assert found == [10, 40, 1.5]
