"""A refit of two numbers a label mends what is known to be wrong, and only that."""

from dataclasses import replace

import numpy as np
import pytest
from external_data import shifted

from autopeft.external.recalibration import out_of_fold, recalibration
from autopeft.metrics.calibration import logistic_fit
from autopeft.metrics.classification import auroc_binary


def test_it_finds_the_two_numbers_that_were_planted():
    fit = recalibration(shifted(4000), n=50, fitted=20)["c0"]
    assert fit["intercept"] == pytest.approx(-1, abs=0.12)
    assert fit["slope"] == pytest.approx(0.6, abs=0.06)


def test_the_fit_is_scikit_learn_s():
    from sklearn.linear_model import LogisticRegression

    p = shifted(500, seed=3)
    z, y = p.score[:, 0].astype(float), p.target[:, 0].astype(float)
    golden = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z[:, None], y)
    found = logistic_fit(z, y)
    assert found == pytest.approx((golden.intercept_[0], golden.coef_[0, 0]), abs=1e-5)


def test_held_out_probabilities_become_right_and_better():
    fit = recalibration(shifted(1500, images=2), n=200, fitted=60)["c0"]
    before, after = fit["before"], fit["after"]
    assert before["calibration_slope"]["value"] < 0.75
    assert after["calibration_slope"]["low"] < 1 < after["calibration_slope"]["high"]
    assert after["calibration_intercept"]["low"] < 0 < after["calibration_intercept"]["high"]
    assert fit["change"]["brier"]["high"] < 0
    assert fit["change"]["log_loss"]["high"] < 0


def test_no_patient_is_judged_by_numbers_that_saw_them():
    p = shifted(200, images=3, seed=1)
    after, folds = out_of_fold(p)
    for patient in np.unique(p.patient):
        assert len(set(after.part[p.patient == patient].tolist())) == 1
    for fold in range(folds):
        held = after.part == fold
        a, b = logistic_fit(p.score[~held, 0].astype(float), p.target[~held, 0].astype(float))
        assert after.score[held, 0] == pytest.approx(a + b * p.score[held, 0], abs=1e-5)
    turned = np.where(after.part[:, None] == 0, 1 - p.target, p.target)
    other, _ = out_of_fold(replace(p, target=turned))
    if np.array_equal(other.part, after.part):
        assert np.allclose(other.score[after.part == 0], after.score[after.part == 0])


def test_the_order_of_the_scores_stays():
    p = shifted(400, seed=2)
    z, y = p.score[:, 0].astype(float), p.target[:, 0]
    fit = recalibration(p, n=20, fitted=10)["c0"]
    new = fit["intercept"] + fit["slope"] * z
    assert auroc_binary(new, y) == auroc_binary(z, y)
    assert np.array_equal(np.argsort(new), np.argsort(z))


def test_each_label_has_its_own_and_unknown_targets_are_ignored():
    p = shifted(600, classes=2)
    hidden = p.target.copy()
    hidden[:300, 1] = np.nan
    found = recalibration(replace(p, target=hidden), n=20, fitted=10)
    assert found.keys() == {"c0", "c1"}
    known = ~np.isnan(hidden[:, 1])
    expected = logistic_fit(p.score[known, 1].astype(float), hidden[known, 1].astype(float))
    assert (found["c1"]["intercept"], found["c1"]["slope"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: replace(p, target=np.zeros_like(p.target)), "0 patients with"),
        (lambda p: p.take(np.arange(25)), "20 of both are needed"),
        (lambda p: replace(p, target=(p.score > 0).astype(np.float32)), "separate the labels"),
        (lambda p: replace(p, score=-p.score), "turn them round"),
    ],
)
def test_where_there_is_nothing_to_fit_it_says_why(change, reason):
    found = recalibration(change(shifted(300)), n=20, fitted=10)["c0"]
    assert reason in found["reason"]
    assert set(found) == {"reason"}
