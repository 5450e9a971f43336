"""The probe is scikit-learn's standardized logistic regression, solved to the end."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autopeft.training import probe
from autopeft.training.probe import (
    STRENGTHS,
    best_strength,
    fit_probe,
    log_loss,
    out_of_fold,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 12)) * np.geomspace(0.01, 100, 12) + RNG.normal(size=12) * 10
SIGNAL = ((X - X.mean(0)) / X.std(0))[:, :3] @ [1.0, -1.5, 0.7]
BINARY = (SIGNAL + RNG.normal(size=200) > 0.3).astype(float)[:, None]
THREE = np.eye(3)[np.digitize(SIGNAL + RNG.normal(size=200), [-0.7, 0.7])]


def reference(x, y, strength, weight=None, total=None):
    total = total or (len(x) if weight is None else weight.sum())
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (strength * total), max_iter=300)
    )
    return model.fit(x, y, logisticregression__sample_weight=weight)


@pytest.mark.parametrize("strength", [0.001, 0.03, 1.0])
def test_binary_equals_scikit_learn(strength):
    want = reference(X, BINARY[:, 0], strength).decision_function(X)
    got = fit_probe(X, BINARY, "binary", strength).logits(X)
    np.testing.assert_allclose(got[:, 0], want, rtol=0, atol=1e-6)


def test_it_is_the_minimum_of_the_loss_it_names():
    """Mean log-loss + strength / 2 * |w|^2 in standardized features, bias free."""
    probe = fit_probe(X, BINARY, "binary", 0.03, iterations=2000)
    w, b = probe.weight[0] * X.std(0), probe.bias[0] + probe.weight[0] @ X.mean(0)
    z = (X - X.mean(0)) / X.std(0)
    residual = 1 / (1 + np.exp(-(z @ w + b))) - BINARY[:, 0]
    np.testing.assert_allclose(z.T @ residual / len(z) + 0.03 * w, 0, atol=1e-4)
    assert abs(residual.mean()) < 1e-4


def test_three_classes_equal_scikit_learn():
    want = reference(X, THREE.argmax(1), 0.01).decision_function(X)
    got = fit_probe(X, THREE, "multiclass", 0.01).logits(X)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_two_classes_of_a_softmax_equal_scikit_learn():
    two = np.eye(2)[BINARY[:, 0].astype(int)]
    want = reference(X, BINARY[:, 0], 0.01).predict_proba(X)
    z = fit_probe(X, two, "multiclass", 0.01).logits(X)
    np.testing.assert_allclose(np.exp(z) / np.exp(z).sum(1, keepdims=True), want, atol=1e-6)


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_class_that_is_missing_in_train_scores_lowest(missing):
    four = np.insert(THREE, missing, 0, axis=1)
    probe = fit_probe(X, four, "multiclass", 0.01)
    got = probe.logits(X)
    assert (probe.weight[missing] == 0).all()
    assert got[:, missing].max() < got.max(1).min()
    want = fit_probe(X, THREE, "multiclass", 0.01).logits(X)
    np.testing.assert_allclose(np.delete(got, missing, 1), want, atol=1e-9)


def test_missing_labels_are_left_out():
    """Each label is fitted on its own rows; only the standardization sees all of them."""
    label = np.hstack([BINARY, 1 - BINARY, BINARY])
    label[:50, 0] = np.nan
    label[150:, 1] = np.nan
    label[:, 2] = np.where(label[:, 2] == 1, 1, np.nan)  # no negative is known
    got = fit_probe(X, label, "multilabel", 0.03)
    z = (X - X.mean(0)) / X.std(0)
    for c, rows in ((0, slice(50, None)), (1, slice(None, 150))):
        model = LogisticRegression(C=1 / (0.03 * 150), max_iter=300)
        want = model.fit(z[rows], label[rows, c]).decision_function(z)
        np.testing.assert_allclose(got.logits(X)[:, c], want, atol=1e-6)
    assert (got.weight[2] == 0).all()
    assert got.bias[2] == 5  # clipped log-odds
    three = THREE.copy()
    three[:40] = np.nan
    z_got = fit_probe(X, three, "multiclass", 0.03).logits(X)
    model = LogisticRegression(C=1 / (0.03 * 160), max_iter=300)
    want = model.fit(z[40:], three[40:].argmax(1)).decision_function(z)
    np.testing.assert_allclose(z_got, want, atol=1e-6)


def test_nothing_labelled_gives_even_odds():
    probe = fit_probe(X, np.full((200, 1), np.nan), "binary", 0.1)
    assert (probe.logits(X) == 0).all()


def test_weights_are_sample_weights():
    weight = RNG.integers(1, 4, 200).astype(float)
    rows = np.repeat(np.arange(200), weight.astype(int))
    z = (X - X.mean(0)) / X.std(0)
    got = fit_probe(X, BINARY, "binary", 0.03, weight[:, None], 2000).logits(X)[:, 0]
    model = LogisticRegression(C=1 / (0.03 * len(rows)), max_iter=2000)
    want = model.fit(z[rows], BINARY[rows, 0]).decision_function(z)  # each row that many times
    np.testing.assert_allclose(got, want, atol=1e-3)
    # Softmax: the weight of the true class counts, also where it is the smaller one.
    by_class = np.array([0.2, 1.0, 3.0])
    weight = np.where(THREE == 1, by_class, 1.0)
    got = fit_probe(X, THREE, "multiclass", 0.03, weight).logits(X)
    sample = by_class[THREE.argmax(1)]
    want = reference(X, THREE.argmax(1), 0.03, sample).decision_function(X)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_constant_features_do_no_harm():
    x = np.hstack([X, np.full((200, 1), 123.4567), np.zeros((200, 1))]).astype(np.float32)
    got = fit_probe(x, BINARY, "binary", 0.03)
    assert (got.weight[0, 12:] == 0).all()
    want = fit_probe(X, BINARY, "binary", 0.03).logits(X)
    np.testing.assert_allclose(got.logits(x), want, atol=2e-2)


def test_out_of_fold_scores_come_from_other_patients():
    patient = np.array([f"p{i // 4}" for i in range(200)])
    scores, fold = out_of_fold(X, BINARY, "binary", patient, [0.03, 0.3])
    assert set(fold) == set(range(5))
    assert set(scores) == {0.03, 0.3}
    for p in set(patient):
        assert len(set(fold[patient == p])) == 1
    for k in range(5):
        probe = fit_probe(X[fold != k], BINARY[fold != k], "binary", 0.3)
        np.testing.assert_allclose(scores[0.3][fold == k], probe.logits(X[fold == k]), atol=1e-9)
    again, same = out_of_fold(X, BINARY, "binary", patient, [0.3])
    assert np.array_equal(fold, same)
    assert np.array_equal(scores[0.3], again[0.3])


def test_out_of_fold_does_not_leak():
    """Labels that only a patient's other image could tell cannot be guessed."""
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(60), 4)
    label = rng.integers(0, 2, 60).astype(float)[patient][:, None]
    x = rng.normal(size=(60, 30))[patient] + 0.01 * rng.normal(size=(240, 30))
    scores, _ = out_of_fold(x, label, "binary", patient, [0.001])
    accuracy = ((scores[0.001] > 0) == label).mean()
    assert accuracy < 0.65


def test_few_patients_make_fewer_folds():
    patient = np.repeat(["a", "b", "c"], [60, 60, 80])
    _, fold = out_of_fold(X, BINARY, "binary", patient, [0.1])
    assert set(fold) == {0, 1, 2}


def test_log_loss_equals_scikit_learn():
    z = RNG.normal(size=(200, 3)) * 3
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    want = sklearn_log_loss(THREE.argmax(1), p)
    assert log_loss(z, THREE, "multiclass") == pytest.approx(want, abs=1e-12)
    want = sklearn_log_loss(BINARY[:, 0], 1 / (1 + np.exp(-z[:, 0])))
    assert log_loss(z[:, :1], BINARY, "binary") == pytest.approx(want, abs=1e-12)
    holed = np.vstack([THREE, np.full((50, 3), np.nan)])
    z2 = np.vstack([z, np.full((50, 3), 99.0)])
    for kind in ("multiclass", "multilabel"):
        assert log_loss(z2, holed, kind) == pytest.approx(log_loss(z, THREE, kind))
    assert np.isfinite(log_loss(np.array([[1000.0], [-1000.0]]), np.array([[1.0], [0]]), "binary"))


def test_noise_calls_for_more_strength_than_signal():
    patient = np.arange(200)
    strong = (SIGNAL > 0).astype(float)[:, None]
    noise = RNG.integers(0, 2, (200, 1)).astype(float)
    assert best_strength(X, strong, "binary", patient) <= 0.03
    assert best_strength(X, noise, "binary", patient) == STRENGTHS[-1]


def test_a_scan_looks_closer_where_the_features_tell_most():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (60, 1)).astype(float)
    features = {(b, "avg"): label * b + rng.normal(size=(60, 4)) for b in range(1, 7)}
    patient = np.arange(60) // 2
    found, fold = probe.scan(features, label, "binary", patient)
    closer = {where for where, strength in found if strength != probe.SCAN_STRENGTHS[0]}
    assert closer == {(4, "avg"), (5, "avg"), (6, "avg")}
    assert {where for where, _ in found} == set(features)
    alone, same = probe.out_of_fold(features[6, "avg"], label, "binary", patient, (1.0,), 100)
    assert np.array_equal(found[(6, "avg"), 1.0], alone[1.0])
    assert np.array_equal(fold, same)
