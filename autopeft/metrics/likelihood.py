"""Attacks with models that a patient was in and models that they were not in.

One recipe is trained M times on halves of the patients (``autopeft.parts``), each patient in half
of the trainings. Each model is attacked in turn; the others show how its patients look to a model
that has seen them and to one that has not. What is found holds for the recipe trained on n/2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats
from autopeft.metrics.groups import LEAST
from autopeft.metrics.memorization import ONE_PERCENT_FROM, Attack, true_positive_rate
from autopeft.metrics.pairs import pair

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


def likelihood_ratio(score: Floats, inside: Bools) -> Floats:
    """LiRA, online, with one variance for all patients (Carlini et al. 2022, arXiv:2112.03570).

    Of each patient: log N(s; mean of the models with them, v_in) - log N(s; mean of the models
    without, v_out). With so few models a variance of each patient's own would be noise, so v_in
    and v_out are pooled over all patients (around each patient's own mean; the degrees of freedom
    that the means took are given back). As many models with as without a patient are used: the
    attacked model is one of a kind, and a mean of three is further off than a mean of four, which
    alone would tell a member from others.

    Args:
        score: logit-scaled confidence of each model in each patient, [M, P].
        inside: whether the model was trained on the patient, [M, P].

    Returns:
        [M, P]: the higher, the more like a member of model m.

    Raises:
        ValueError: a patient has fewer than two other models on a side.
    """
    found = np.empty(score.shape)
    for target, seen, unseen in _shadows(inside):
        own = score[target]
        with_them, without = (np.take_along_axis(score, rows, axis=0) for rows in (seen, unseen))
        found[target] = _log_normal(own, with_them) - _log_normal(own, without)
    return found


def rmia(
    likelihood: Floats,
    inside: Bools,
    population: Floats,
    gamma: float = 1.0,
    a: float = 0.3,
) -> Floats:
    """RMIA, online (Zarifzadeh, Liu & Shokri 2024, arXiv:2312.03262).

    The share of a population z that x dominates: r(x) / r(z) >= gamma, where r(x) = p(x | model)
    / p(x) and p(x) is the mean of the models with x and of those without. No model has seen a z,
    so p(z) is made from the models without: ((1 + a) p_out(z) + 1 - a) / 2, as in the authors'
    ml_privacy_meter, whose gamma and a are the defaults. Within one model the order of the
    patients is that of r(x): population and gamma only make different models' scores comparable.

    Args:
        likelihood: probability that each model gives a patient's labels, [M, P] in (0, 1].
        inside: whether the model was trained on the patient, [M, P].
        population: the same of patients that no model has seen, [M, Z].
        gamma: by how much x must dominate.
        a: how far p_out stands for p.

    Returns:
        [M, P], shares of the population.

    Raises:
        ValueError: nobody is in the population, or as in ``likelihood_ratio``.
    """
    if not population.shape[1]:
        raise ValueError("RMIA needs patients that no model was trained on")
    found = np.empty(likelihood.shape)
    for target, seen, unseen in _shadows(inside):
        means = [np.take_along_axis(likelihood, rows, 0).mean(axis=0) for rows in (seen, unseen)]
        ratio = likelihood[target] / np.maximum(sum(means) / 2, _TINY)
        out = np.delete(population, target, axis=0).mean(axis=0)
        other = population[target] / np.maximum(((1 + a) * out + 1 - a) / 2, _TINY)
        found[target] = np.searchsorted(np.sort(other), ratio / gamma, side="right") / len(other)
    return found


def judge(
    name: str,
    score: Floats,
    inside: Bools,
    n: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
) -> Attack | None:
    """How well scores tell members: AUC and TPR of each model, the mean over models.

    Each patient is a member of half of the models and a non-member of the others, so nothing has
    to be matched and the null is .5. The interval resamples patients, not trainings.

    Args:
        name: of the attack.
        score: [M, P].
        inside: [M, P].
        n: resamples; 0: no interval.
        seed: of the resamples.
        alpha: 1 - coverage.

    Returns:
        None where a model has fewer than 10 patients on a side.
    """
    models, patients = score.shape
    least = int(min(inside.sum(axis=1).min(), (~inside).sum(axis=1).min()))
    if least < LEAST:
        return None
    fpr = 0.01 if least >= ONE_PERCENT_FROM else 0.10
    units = np.arange(patients)
    ranked = [pair(score[m], inside[m].astype(np.float64), units) for m in range(models)]

    def look(weight: Floats) -> tuple[Floats, Floats]:
        auc = np.mean([r.auroc(weight) for r in ranked], axis=0)
        rates = [
            true_positive_rate(s[i], s[~i], weight[i], weight[~i], fpr)
            for s, i in zip(score, inside, strict=True)
        ]
        return auc, np.mean(rates, axis=0)

    auc, tpr = (float(v[0]) for v in look(np.ones((patients, 1))))
    bounds = [auc - 0.5, auc - 0.5, tpr, tpr]
    if n:
        rng, drawn = np.random.default_rng(seed), []
        for start in range(0, n, 64):
            count = min(64, n - start)
            weight = rng.multinomial(patients, np.full(patients, 1 / patients), count).T
            drawn.append(np.stack(look(weight.astype(np.float64))))
        both = np.concatenate(drawn, axis=1) - np.array([[0.5], [0.0]])
        bounds = np.nanquantile(both, [alpha / 2, 1 - alpha / 2], axis=1).T.ravel().tolist()
    low, high, tpr_low, tpr_high = bounds
    return Attack(name, auc, 0.5, auc - 0.5, low, high, tpr, tpr_low, tpr_high, fpr, least, least)


_TINY = 1e-300


def _shadows(inside: Bools) -> Iterator[tuple[int, Indices, Indices]]:
    """Each model, and for each patient k other models with them and k without, [k, P] each.

    k is the same for everyone; who is left over is decided by the models' numbers alone.
    """
    models = len(inside)
    others = [inside.sum(axis=0) - 1, models - inside.sum(axis=0) - 1]  # at the least
    k = int(min(others[0].min(), others[1].min()))
    if k < 2:
        raise ValueError("each patient must be in, and out of, three models at least")
    for target in range(models):
        turn = (target + 1 + np.arange(models - 1)) % models
        there = inside[turn]
        seen, unseen = (np.argsort(~t, axis=0, kind="stable")[:k] for t in (there, ~there))
        yield target, turn[seen], turn[unseen]


def _log_normal(value: Floats, sample: Floats) -> Floats:
    """Log-density [P] of values under each patient's mean and the pooled variance."""
    mean = sample.mean(axis=0)
    k = len(sample)
    variance = max(float(((sample - mean) ** 2).mean()) * k / (k - 1), 1e-12)
    density: Floats = -((value - mean) ** 2) / (2 * variance) - np.log(variance) / 2
    return density
