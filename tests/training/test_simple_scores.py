"""Predictors without fine-tuning: thumbnails, groups as numbers, a regression, a choice of k."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from autopeft.training import neighbors
from autopeft.training.images import ImageStore, Rule
from autopeft.training.neighbors import CHOICES, best_k
from autopeft.training.probe import best_strength
from autopeft.training.simple_scores import group_columns, logistic_scores, one_hot, thumbnails


@pytest.mark.parametrize(("side", "channels"), [(32, 1), (30, 3), (8, 1), (11, 1)])
def test_a_thumbnail_holds_the_means_of_areas(tmp_path, side, channels):
    array = np.random.default_rng(0).integers(0, 256, (5, side, side, channels), np.uint8)
    store = ImageStore(tmp_path, array, Rule(channels))
    index = np.array([3, 0, 3])
    got = thumbnails(store, index)
    assert got.shape == (3, 64)
    assert np.array_equal(got[0], got[2])
    edges = [i * side // 8 for i in range(9)]
    for i, row in enumerate(index):
        for a in range(8):
            for b in range(8):
                area = array[row, edges[a] : edges[a + 1], edges[b] : edges[b + 1]]
                assert got[i, 8 * a + b] == pytest.approx(area.mean() / 255, abs=1e-6)
    assert thumbnails(store, index[:0]).shape == (0, 64)


def test_groups_become_columns():
    train = {"sex": np.array(["F", "M", "unknown", "M"]), "site": np.array(["x"] * 4)}
    columns = group_columns(train)
    assert columns == (("sex", "F"), ("sex", "M"))  # one site says nothing
    assert one_hot(train, columns).tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]
    missing = one_hot(train, columns, missing=np.nan)
    assert np.isnan(missing[2]).all()
    assert not np.isnan(missing[[0, 1, 3]]).any()
    other = {"sex": np.array(["diverse", "F"]), "site": np.array(["x", "y"])}
    assert one_hot(other, columns).tolist() == [[0, 0], [1, 0]]  # unseen: in none
    assert group_columns({}) == ()
    assert one_hot({}, ()).shape == (0, 0)


def test_the_regression_is_scikit_learn_s():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 4))
    y = (x[:, 0] - x[:, 1] + rng.normal(size=200) > 0).astype(float)[:, None]
    patient = np.arange(200) // 2
    got = logistic_scores(x[:150], y[:150], "binary", patient[:150], x[150:])
    strength = best_strength(x[:150], y[:150], "binary", patient[:150])
    mean, spread = x[:150].mean(0), x[:150].std(0)
    model = LogisticRegression(C=1 / (strength * 150)).fit((x[:150] - mean) / spread, y[:150, 0])
    want = model.decision_function((x[150:] - mean) / spread)
    np.testing.assert_allclose(got[:, 0], want, atol=2e-3)


def test_k_grows_with_the_noise():
    rng = np.random.default_rng(0)
    center = np.repeat([0, 1], 300)
    x = np.stack([np.cos(center), np.sin(center)], axis=1) + 0.05 * rng.normal(size=(600, 2))
    clean = center.astype(float)[:, None]
    noisy = np.where(rng.random((600, 1)) < 0.4, 1 - clean, clean)
    patient = rng.permutation(600)
    assert (
        best_k(x, noisy, "binary", patient)
        >= 50
        > best_k(x[::20], clean[::20], "binary", patient[::20])
    )
    assert best_k(x, noisy, "binary", patient) in CHOICES


def test_no_patient_votes_on_themselves(monkeypatch):
    """A patient's images have equal features here: none may be on both sides."""
    patient = np.random.default_rng(3).permutation(np.arange(120) // 3)
    x = np.eye(40)[patient]
    seen = []

    def watched(base, labels, features, k, kind):
        seen.append(features.argmax(1))
        assert not set(base.argmax(1)) & set(features.argmax(1))
        return np.zeros((len(features), 1), np.float32)

    monkeypatch.setattr(neighbors, "knn_scores", watched)
    neighbors.best_k(x, np.ones((120, 1)), "binary", patient.astype(str))
    assert sorted(np.concatenate(seen[:: len(CHOICES)])) == sorted(patient)


def test_k_is_chosen_with_missing_labels_and_few_patients():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3))
    y = np.full((30, 2), np.nan)
    y[:, 0] = rng.integers(0, 2, 30)
    assert best_k(x, y, "multilabel", np.arange(30)) in CHOICES
    assert best_k(x, y, "multilabel", np.arange(30) // 15) in CHOICES
    assert best_k(x, y, "multilabel", np.zeros(30)) == CHOICES[-1]  # nobody to ask: the widest
    one_hot_label = np.eye(3)[np.arange(30) % 3]
    assert best_k(x, one_hot_label, "multiclass", np.arange(30)) in CHOICES
