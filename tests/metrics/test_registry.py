from dataclasses import replace

import numpy as np
import pytest

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS, calibration, classification
from autopeft.metrics.groups import group_table
from autopeft.metrics.intervals import COMPARABLE, bootstrap


def test_every_metric_answers_a_number_or_none(table):
    rng = np.random.default_rng(0)
    y = np.tile([0.0, 1.0], 120)
    sex = np.repeat(["F", "M"], 120)
    p = table(rng.normal(size=240) + y, y, groups={"sex": sex})
    members = {"train": p, "probe": p, "null": (p, p)}
    full = Evaluation(p, Cost(10, 40, 1.5), {"sex": ("F", "M")}, thresholds=(0.5,), **members)
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
        a, b = (
            metric(Evaluation(q, Cost(1, 1), counted, {}, (0.4,) * 3, q, replace(q), null=(p, p)))
            for q in (p, moved)
        )
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


def test_no_number_has_two_names(table):
    rng = np.random.default_rng(0)
    y = (rng.random((400, 2)) < 0.4).astype(float)
    sex, age = rng.choice(["F", "M"], 400), rng.choice(["<60", ">=60"], 400)
    p = table(rng.normal(size=y.shape) + y, y, groups={"sex": sex, "age": age})
    counted = {"sex": ("F", "M"), "age": ("<60", ">=60")}
    e = Evaluation(p, Cost(10, 40, 1.5), counted, {}, (0.5, 0.4))
    found = [round(value, 9) for m in METRICS.values() if (value := m(e)) is not None]
    assert len(set(found)) == len(found)


def test_calibration_and_operating_points_by_name(table):
    rng = np.random.default_rng(0)
    y = (rng.random((300, 2)) < 0.4).astype(float)
    p = table(2 * rng.normal(size=y.shape) + y, y)
    e = Evaluation(p, Cost(1, 1), thresholds=(0.4, None))
    assert METRICS["ece"](e) == calibration.ece(p)
    slopes = [slope for _, slope in calibration.calibration_by_class(p).values()]
    assert METRICS["calibration_slope_error"](e) == np.mean(np.abs(np.array(slopes) - 1))
    assert METRICS["f1"](e) == classification.f1(p, e.thresholds)["c0"]  # c1 has no threshold
    assert METRICS["specificity"](e) == classification.specificity(p, e.thresholds)["c0"]
    for name in ("f1", "specificity"):
        assert METRICS[name].needs == ("thresholds",)
        assert METRICS[name](replace(e, thresholds=())) is None
    for name in ("ece", "calibration_slope_error", "calibration_intercept_error"):
        # A model that says the prevalence of everything is calibrated, and useless.
        assert not METRICS[name].every_fidelity
        assert METRICS[name].direction == "minimize"
