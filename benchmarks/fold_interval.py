"""Does the interval of a value over five folds cover what it should? (docs/cv5.md)

Patients with Gaussian features, ridge discriminants trained on four folds and scored on the fifth;
the truth is the mean AUROC of such trainings on other patients. Shown: how often intervals of
several variances hold it.

    python benchmarks/fold_interval.py [--tables 500]
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from autopeft.evaluation import Predictions
from autopeft.metrics.classification import auroc
from autopeft.metrics.folds import fold_interval
from autopeft.metrics.groups import patient_index
from autopeft.metrics.resampling import patient_weights, prepared

FOLDS, PREVALENCE, FEATURES, RIDGE = 5, 0.3, 40, 20.0


def patients(rng: np.random.Generator, n: int, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, d] and labels [n]; both labels are there."""
    y = (rng.random(n) < PREVALENCE).astype(float)
    return rng.normal(size=(n, len(mean))) + y[:, None] * mean, y


def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Direction of a ridge discriminant."""
    apart = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
    spread = np.cov(x, rowvar=False)
    return np.linalg.solve(spread + RIDGE / len(x) * np.eye(x.shape[1]), apart)


def table(rng: np.random.Generator, n: int, mean: np.ndarray) -> Predictions:
    """One data set, scored fold by fold."""
    x, y = patients(rng, n, mean)
    order = np.lexsort((rng.random(n), y))
    fold = np.empty(n, int)
    fold[order] = np.arange(n) % FOLDS
    score = np.empty(n)
    for k in range(FOLDS):
        score[fold == k] = x[fold == k] @ fit(x[fold != k], y[fold != k])
    return Predictions(
        score[:, None], y[:, None], np.arange(n), fold, {}, ("x",), "binary", "search"
    )


def truth(rng: np.random.Generator, n: int, mean: np.ndarray) -> float:
    """Mean AUROC of trainings on four fifths of n patients, on everybody."""
    values = []
    for _ in range(4000):
        w = fit(*patients(rng, n * (FOLDS - 1) // FOLDS, mean))
        values.append(norm.cdf(w @ mean / np.sqrt(2 * (w @ w))))
    return float(np.mean(values))


def variances(p: Predictions) -> tuple[float, float]:
    """Patient variance inside folds, and variance of the folds' own values."""
    unit, count = patient_index(p)
    known = prepared(p, unit, "auroc")
    drawn = [known.values(w) for w in patient_weights(count, count, 300, 0, p.part[:count])]
    each = [auroc(p.take(p.part == k)) for k in range(FOLDS)]
    return float(np.concatenate(drawn).var(ddof=1)), float(np.var(each, ddof=1))


def satterthwaite(v: float, s: float, n: int) -> float:
    """Half-width as in ``autopeft.metrics.folds``."""
    degrees = (v + s / 4) ** 2 / (v**2 / (n - 1) + (s / 4) ** 2 / (FOLDS - 1))
    return float(student.ppf(0.975, degrees) * (v + s / 4) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=500)
    args = parser.parse_args()
    t, z = 2.776, 1.96
    rules = {
        "patients alone, z": lambda v, s: z * v**0.5,
        "S^2 / 5, t": lambda v, s: t * (s / 5) ** 0.5,
        "(1/5 + 1/4) S^2, t (Nadeau & Bengio)": lambda v, s: t * (0.45 * s) ** 0.5,
        "patients + 1/4 S^2, z": lambda v, s: z * (v + s / 4) ** 0.5,
        "patients + 1/4 S^2, t": lambda v, s: t * (v + s / 4) ** 0.5,
        "patients + 1/4 S^2, t by Satterthwaite (autopeft)": satterthwaite,
        "patients + (1/5 + 1/4) S^2, t": lambda v, s: t * (v + 0.45 * s) ** 0.5,
    }
    print("| patients | true AUROC | interval | covers | mean half-width |\n|---|---|---|---|---|")
    for n in (100, 300, 1000):
        rng = np.random.default_rng(n)
        mean = np.zeros(FEATURES)
        mean[:5] = 0.55
        true = truth(rng, n, mean)
        found = [table(rng, n, mean) for _ in range(args.tables)]
        values = np.array([auroc(p) for p in found])
        parts = np.array([variances(p) for p in found])
        sd = values.std(ddof=1)
        for name, half in rules.items():
            more = (n,) if half is satterthwaite else ()
            halves = np.array([half(v, s, *more) for v, s in parts])
            covers = np.mean(np.abs(values - true) <= halves)
            print(f"| {n} | {true:.3f} | {name} | {covers:.1%} | {halves.mean():.3f} |")
        print(f"| {n} | {true:.3f} | 1.96 true standard deviations | | {1.96 * sd:.3f} |")
        some = [fold_interval(p, n=300) for p in found[:20]]
        same = [satterthwaite(v, s, n) for v, s in parts[:20]]
        assert np.allclose([(i.high - i.low) / 2 for i in some], same, rtol=0.15)


if __name__ == "__main__":
    main()
