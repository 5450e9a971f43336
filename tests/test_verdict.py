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


def said(monkeypatch, lost=(), feasible=True, constraints=(), kept=True, replay=False, **contrast):
    """The verdict of a declared contrast."""
    monkeypatch.setattr(verdict, "_unscored", lambda answer, split: ())
    answer = SimpleNamespace(
        feasible=feasible,
        won=SimpleNamespace(ranked_by_replay=replay),
        objective=SimpleNamespace(constraints=constraints, terms=()),
        metric="auroc",
        settings=SimpleNamespace(margin=0.01),
    )
    told = {
        "declared_metric": "auroc", "baseline": "bitfit", "same_candidate": False,
        "winner_is": "", "primary_undefined_on_test": False,
        "word": "better", "adapter": {"high": 0.1}, **contrast,
    }  # fmt: skip
    return verdict.sentence(answer, told, {"kept": kept}, lost)


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        ({}, "Better than bitfit in AUROC."),
        (
            {
                "declared_metric": "worst_group_auroc",
                "metric": "auroc",
                "primary_undefined_on_test": True,
                "word": "cannot tell",
            },
            "Cannot tell the winner from bitfit: worst group AUROC is undefined on the test "
            "patients.",
        ),
        ({"declared_metric": "worst_group_auroc"}, "Better than bitfit in worst group AUROC."),
        ({"word": "cannot tell"}, "Cannot tell the winner from bitfit in AUROC."),
        ({"word": "worse"}, "Worse than bitfit in AUROC: searching did not help."),
        (
            {"word": "not worse"},
            "Not worse than bitfit in AUROC by more than the margin; not shown to be better.",
        ),
        (
            {"word": "not worse", "adapter": {"high": -0.001}},
            "Worse than bitfit in AUROC, by less than the margin: searching did not help.",
        ),
        (
            {"word": "cannot tell", "baseline": "linear_probe"},
            "Cannot tell the winner from linear_probe in AUROC (a linear probe may be enough).",
        ),
        (
            {"same_candidate": True},
            "Searching did not help: the winner is the baseline bitfit.",
        ),
        # Whatever it is compared with, what won was there without a search.
        (
            {"winner_is": "linear_probe"},
            "Better than bitfit (the winner is itself the baseline linear_probe: searching did "
            "not help) in AUROC.",
        ),
        (
            {"winner_is": "linear_probe", "word": "worse"},
            "Worse than bitfit (the winner is itself the baseline linear_probe: searching did "
            "not help) in AUROC.",
        ),
    ],
)
def test_the_words_are_fixed(monkeypatch, contrast, words):
    assert said(monkeypatch, **contrast) == words


def test_what_else_a_verdict_has_to_say(monkeypatch):
    floor = said(monkeypatch, constraints=("floor",), kept=False)
    assert floor == "Better than bitfit in AUROC; not shown to keep accuracy (margin 0.01)."
    assert "overall accuracy kept (margin 0.01)" in said(monkeypatch, constraints=("floor",))
    assert "no trial met the constraints on search" in said(monkeypatch, feasible=False)
    assert "levelled down: sex=F lost more" in said(monkeypatch, lost=["sex=F"])
    for same in (True, False):
        text = said(monkeypatch, replay=True, same_candidate=same)
        assert "inalists ranked by replay on search patients" in text
