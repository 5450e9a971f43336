"""The p of the baselines beside the declared one: corrected for there being several."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from autopeft import verdict
from autopeft.bench import Model
from autopeft.evaluation import Predictions
from autopeft.metrics.intervals import Interval


def interval(value, se, enough=True):
    return Interval(value, value - 2 * se, value + 2 * se, value - 2 * se, se, 100, 0, enough)


@pytest.mark.parametrize(("value", "se"), [(0.02, 0.01), (-0.02, 0.01), (0.0, 0.01), (0.3, 0.02)])
def test_p_is_two_sided_and_normal(value, se):
    assert verdict._p(interval(value, se)) == pytest.approx(2 * norm.sf(abs(value) / se))


def test_p_of_a_model_with_itself_is_one_and_of_too_few_patients_none():
    assert verdict._p(interval(0.0, 0.0)) == 1.0
    assert verdict._p(interval(0.1, 0.0)) == 0.0
    assert verdict._p(interval(0.1, 0.01, enough=False)) is None


def scored(quality, seed):
    rng = np.random.default_rng(seed)
    y = (np.random.default_rng(0).random(300) < 0.4).astype(np.float64)[:, None]
    return Predictions(
        quality * y + rng.normal(size=y.shape), y, np.arange(300), np.zeros(300),
        {}, ("c",), "binary", "test",
    )  # fmt: skip


def test_baselines_beside_the_declared_one_are_corrected_for_their_number():
    scores = {"winner": (2.0, 1), "opponent": (1.6, 2), "a": (1.4, 3), "b": (0.2, 4)}
    answer = SimpleNamespace(
        audience=SimpleNamespace(counted={}, labels=None),
        opponent=Model("opponent", None),
        baselines=[Model(name, None) for name in ("opponent", "a", "b")],
        scored={(name, 0, "test"): scored(*how) for name, how in scores.items()},
    )
    found = verdict._others(answer, "auroc")
    assert found["opponent"]["p_holm"] is None  # it is the declared contrast
    raw = {}
    for name in ("a", "b"):
        pair = [[answer.scored[(n, 0, "test")]] for n in ("winner", name)]
        raw[name] = verdict._p(verdict.compare(answer.audience, "auroc", *pair))
    assert raw["b"] < raw["a"]
    assert found["b"]["p_holm"] == pytest.approx(min(1, 2 * raw["b"]))
    assert found["a"]["p_holm"] == pytest.approx(max(raw["a"], found["b"]["p_holm"]))
