"""Every metric under weights is the same metric on copied rows."""

from __future__ import annotations

import numpy as np
import pytest

from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.metrics import METRICS
from autopeft.metrics.classification import operating_points
from autopeft.metrics.groups import patient_index
from autopeft.redrawn import Redone, copied, how, redrawn

WEIGHTED = sorted(name for name in METRICS if how(name) == "weighted")


def evaluation(kind="binary", parts=1, seed=0, patients=200, images=2):
    """Two attributes, unknown labels and groups, ties, several images a patient."""
    rng = np.random.default_rng(seed)
    patient = np.arange(patients * images) // images
    n, classes = len(patient), 1 if kind == "binary" else 2
    target = (rng.random((patients, classes)) < 0.4)[patient].astype(np.float32)
    score = (1.2 * target + rng.normal(size=(n, classes))).round(1)
    target[rng.random((n, classes)) < 0.05] = np.nan
    sex = np.array(["sex=F", "sex=M", "unknown"])[rng.choice(3, patients, p=[0.5, 0.4, 0.1])]
    age = np.array(["age<60", "age>=60"])[rng.integers(0, 2, patients)]
    groups = {"sex": sex[patient], "age": age[patient]}
    names = tuple(f"c{i}" for i in range(classes))
    p = Predictions(score, target, patient, patient % parts, groups, names, kind, "search")
    counted = {"sex": ("sex=F", "sex=M"), "age": ("age<60", "age>=60")}
    return Evaluation(p, Cost(5, 7), counted, thresholds=operating_points(p))


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("metric", WEIGHTED)
def test_weights_are_copies(metric, kind, parts):
    e = evaluation(kind, parts)
    unit, patients = patient_index(e.search)
    drawn = np.random.default_rng(1).integers(0, patients, (3, patients))
    weight = np.stack([np.bincount(d, minlength=patients) for d in drawn], axis=1).astype(float)
    got = redrawn(metric, e, unit).values(weight)
    assert got == pytest.approx(Redone(metric, e, unit).values(weight), abs=1e-9)
    whole = redrawn(metric, e, unit).values(np.ones((patients, 1)))[0]
    assert whole == pytest.approx(METRICS[metric](e), abs=1e-9)
    assert np.ptp(got) > 0


def test_what_is_counted_at_a_threshold_can_be_undefined():
    e = evaluation(patients=60, images=1)
    unit, patients = patient_index(e.search)
    nobody = np.zeros((patients, 1))
    negatives = (e.search.target[:, 0] == 0).astype(float)[:, None]
    for metric in ("f1", "specificity", "equalized_odds_difference", "demographic_parity_ratio"):
        column = redrawn(metric, e, unit)
        assert np.isnan(column.values(nobody)).all()
        assert np.isnan(column.values(negatives)).all()  # nothing sets a threshold


def test_a_patient_drawn_twice_is_two_patients():
    e = evaluation(patients=5)
    unit, _ = patient_index(e.search)
    found = copied(e, unit, np.array([2.0, 0.0, 1.0, 0.0, 3.0])).search
    assert len(found.target) == 12
    assert len(set(found.patient.tolist())) == 6
    rows = [0, 0, 1, 1, 4, 5, 8, 8, 8, 9, 9, 9]
    assert np.array_equal(found.score, e.search.score[rows])
