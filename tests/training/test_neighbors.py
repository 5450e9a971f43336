"""k nearest neighbors: against scikit-learn's and a loop."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from autopeft.errors import UserError
from autopeft.training.neighbors import knn_scores


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    train, query = random.normal(size=(60, 5)), random.normal(size=(9, 5))
    return train, (random.random((60, 3)) < 0.4).astype(float), query


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_it_is_scikit_learn_s_weighted_vote(data):
    train, labels, query = data

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    # |a - b|^2 = 2 - 2 cos for unit vectors: exp(cos / T) is exp(-distance^2 / 2 T) times e^(1/T)
    vote = KNeighborsClassifier(7, weights=lambda d: np.exp(-(d**2) / 2 / 0.2), algorithm="brute")
    for c in range(3):
        expected = vote.fit(unit(train), labels[:, c]).predict_proba(unit(query))[:, 1]
        found = sigmoid(knn_scores(train, labels, query, 7, 0.2))[:, c]
        np.testing.assert_allclose(found, expected.clip(1e-4, 1 - 1e-4), rtol=1e-4)


def test_multiclass_gives_log_probabilities(data):
    train, labels, query = data
    one_hot = np.eye(3)[labels.sum(1).astype(int) % 3]
    found = np.exp(knn_scores(train, one_hot, query, 7, kind="multiclass"))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-3)


def test_a_missing_label_has_no_vote(data):
    train, labels, query = data
    holes = labels.copy()
    holes[::2, 0] = np.nan
    found = sigmoid(knn_scores(train, holes, query, 10, 0.1))
    for i, q in enumerate(query):
        cosine = train @ q / np.linalg.norm(train, axis=1) / np.linalg.norm(q)
        near = np.argsort(-cosine)[:10]
        near = [n for n in near if n % 2]
        weight = np.exp(cosine[near] / 0.1)
        expected = (weight * labels[near, 0]).sum() / weight.sum()
        assert found[i, 0] == pytest.approx(np.clip(expected, 1e-4, 1 - 1e-4), rel=1e-3)
    np.testing.assert_array_equal(
        found[:, 1:], sigmoid(knn_scores(train, labels, query, 10, 0.1))[:, 1:]
    )


def test_without_any_label_near_it_says_the_prevalence():
    train, labels = np.eye(4), np.array([[np.nan], [np.nan], [1.0], [0.0]])
    found = knn_scores(train, labels, np.array([[1.0, 0.5, 0, 0]]), k=2)
    assert found.tolist() == [[0.0]]


def test_more_neighbors_than_images_and_long_lists(data):
    train, labels, query = data
    a, b = (knn_scores(train, labels, query, k) for k in (60, 1000))
    np.testing.assert_array_equal(a, b)
    many = np.concatenate([query] * 200)
    np.testing.assert_allclose(
        knn_scores(train, labels, many)[-9:], knn_scores(train, labels, query), rtol=1e-5
    )
    assert knn_scores(train, labels, query[:0]).shape == (0, 3)


def test_refusals(data):
    with pytest.raises(UserError, match="whole number from 1"):
        knn_scores(*data, k=0)
    with pytest.raises(UserError, match="above 0"):
        knn_scores(*data, temperature=0)
