"""LiRA and RMIA against loops over single patients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from autopeft.metrics.likelihood import judge, likelihood_ratio, rmia


def masks(rng, patients, models=8):
    """Each patient in half of the models, at random."""
    return np.argsort(rng.random((models, patients)), axis=0) < models // 2


def trainings(rng, patients, memory, models=8):
    """Confidence of each model in each patient, whose own level is not the attacker's business."""
    inside = masks(rng, patients, models)
    level = rng.normal(0, 3, patients)
    return level + memory * inside + rng.normal(size=inside.shape), inside


def others(inside, target, patient, k):
    """Three models with and three without the patient, in turn behind the attacked one."""
    turn = [(target + 1 + i) % len(inside) for i in range(len(inside) - 1)]
    seen = [m for m in turn if inside[m, patient]][:k]
    return seen, [m for m in turn if not inside[m, patient]][:k]


def test_lira_is_a_ratio_of_normal_densities():
    rng = np.random.default_rng(0)
    score, inside = trainings(rng, 30, 1.0)
    got = likelihood_ratio(score, inside)
    for target in range(8):
        found = [others(inside, target, p, 3) for p in range(30)]
        assert all(len(a) == len(b) == 3 and target not in a + b for a, b in found)
        sigma = [
            np.sqrt(np.mean([score[found[p][side], p].var(ddof=1) for p in range(30)]))
            for side in (0, 1)
        ]
        for p in range(30):
            means = [score[rows, p].mean() for rows in found[p]]
            logs = [norm.logpdf(score[target, p], m, s) for m, s in zip(means, sigma, strict=True)]
            assert got[target, p] == pytest.approx(logs[0] - logs[1])


def test_rmia_is_the_share_of_dominated_pairs():
    rng = np.random.default_rng(1)
    _, inside = trainings(rng, 20, 1.0)
    p, z = rng.uniform(0.1, 1, (8, 20)), rng.uniform(0.1, 1, (8, 15))
    got = rmia(p, inside, z, gamma=1.2, a=0.3)
    for target in range(8):
        rest = [m for m in range(8) if m != target]
        for x in range(20):
            seen, unseen = others(inside, target, x, 3)
            own = p[target, x] / ((p[seen, x].mean() + p[unseen, x].mean()) / 2)
            wins = 0
            for i in range(15):
                base = (1.3 * z[rest, i].mean() + 0.7) / 2
                wins += own / (z[target, i] / base) >= 1.2
            assert got[target, x] == pytest.approx(wins / 15)


def test_both_find_what_is_there_and_more_than_a_threshold_does():
    rng = np.random.default_rng(2)
    score, inside = trainings(rng, 400, 1.5)
    likelihood = 1 / (1 + np.exp(-score))
    population = 1 / (1 + np.exp(-rng.normal(0, 3, 300) - rng.normal(size=(8, 300))))
    lira = judge("likelihood ratio", likelihood_ratio(score, inside), inside, n=100)
    other = judge("rmia", rmia(likelihood, inside, population), inside, n=100)
    plain = roc_auc_score(inside.ravel(), score.ravel())
    assert min(lira.auc, other.auc) > plain + 0.1
    assert lira.succeeded
    assert other.succeeded
    assert lira.null == 0.5
    assert lira.low < lira.value == lira.auc - 0.5 < lira.high
    assert (lira.fpr, lira.members) == (
        0.10,
        int(min(inside.sum(1).min(), (~inside).sum(1).min())),
    )


def test_without_memory_nothing_is_found():
    """Also not from the numbers of models: three that saw a member and four that did not."""
    values = []
    for seed in range(40):
        rng = np.random.default_rng(10000 + seed)
        score, inside = trainings(rng, 200, 0.0)
        values.append(judge("", likelihood_ratio(score, inside), inside, n=0).value)
    assert abs(np.mean(values)) < 0.01  # with all seven models it is -.03
    rng = np.random.default_rng(3)
    score, inside = trainings(rng, 400, 0.0)
    found = judge("", likelihood_ratio(score, inside), inside, n=200)
    assert found.low < 0 < found.high


def test_the_judge_is_the_mean_auc_over_models():
    rng = np.random.default_rng(4)
    score, inside = trainings(rng, 60, 0.5)
    found = judge("", score, inside, n=0)
    expected = np.mean([roc_auc_score(i, s) for i, s in zip(inside, score, strict=True)])
    assert found.auc == pytest.approx(expected)


def test_what_cannot_be_attacked_is_refused():
    rng = np.random.default_rng(5)
    score, inside = trainings(rng, 40, 0.0, models=4)  # in two, out of two
    with pytest.raises(ValueError, match="three models"):
        likelihood_ratio(score, inside)
    score, inside = trainings(rng, 40, 0.0)
    with pytest.raises(ValueError, match="no model was trained on"):
        rmia(score, inside, np.zeros((8, 0)))
    score, inside = trainings(rng, 12, 0.0)
    assert judge("", score, inside) is None  # six on a side
