import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from autopeft.errors import UserError
from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.metrics import METRICS
from autopeft.metrics.classification import fit_threshold
from autopeft.metrics.front import Front
from autopeft.objective import (
    UNDEFINED,
    AtLeast,
    AtMost,
    Objective,
    Term,
    list_objectives,
    load_objective,
    measure,
    overall,
    parse_bound,
    worst_group,
)


def evaluate(female=0, male=0, params=10, reference=None, margin=0.01, n=60):
    """An evaluation whose groups have AUROC 1 but for some swapped pairs; deterministic."""
    y = np.tile([0.0, 1.0], n)
    score = y.copy()
    sex = np.repeat(["F", "M"], n)
    for start, wrong in ((0, female), (n, male)):
        score[start : start + 2 * wrong] = 1 - y[start : start + 2 * wrong]
    p = Predictions(
        score[:, None], y[:, None], np.arange(2 * n), np.zeros(2 * n), {"sex": sex}, ("c",),
        "binary", "search",
    )  # fmt: skip
    return Evaluation(
        p, Cost(params, 4 * params), {"sex": ("F", "M")}, reference or {}, margin=margin
    )


def cost(field):
    return lambda e: e.cost.trainable_params if field == "params" else e.cost.adapter_bytes


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_named_terms_know_their_direction():
    assert Term("auroc").direction == "maximize"
    assert Term("trainable_params").direction == "minimize"
    refused(lambda: Term("auroc", "minimize"), "auroc", "maximize")
    refused(lambda: Term(lambda e: 1.0), "direction")
    refused(lambda: Term("auroc", "up"), "direction")


def test_unknown_metrics_offer_the_nearest():
    refused(lambda: Term("aurocc"), '"auroc"')
    refused(lambda: AtLeast("worst_group_auc", 0.5), '"worst_group_auroc"')
    refused(lambda: Objective((Term("auroc"),), rung="auroq"), '"auroc"')
    refused(lambda: Objective((Term("auroc"),), shown=("gap",)), "auroc_gap")
    refused(lambda: Term(3, "maximize"), "neither")


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        (0.5, 0.5),
        (1, 1.0),
        ("0.5", 0.5),
        ("reference", 0.9),
        ("reference - 0.01", 0.89),
        ("reference-margin", 0.88),
        (" margin + reference ", 0.92),
        ("reference - margin - 1e-2", 0.87),
        ("-0.5", -0.5),
        ("reference + .1", 1.0),
    ],
)
def test_bounds(bound, value):
    e = evaluate(reference={"auroc": 0.9}, margin=0.02)
    assert AtLeast("auroc", bound).limit(e) == pytest.approx(value)


@pytest.mark.parametrize(
    "bound",
    ["", "ref", "reference * 2", "reference -", "__import__('os')", "1 2", "reference margin"]
    + [math.nan, math.inf, True, None, "1.2.3", "nan", "referencemargin"],
)
def test_bad_bounds_are_refused(bound):
    refused(lambda: parse_bound(bound), "cannot be read")


def test_violations_are_at_most_zero_when_feasible():
    e = evaluate(female=6, reference={"auroc": 0.9})
    auroc = METRICS["auroc"](e)
    objective = Objective(
        (Term("auroc"),),
        (AtLeast("auroc", "reference - margin"), AtMost("trainable_params", 8)),
    )
    assert objective.violations(e) == {
        "auroc at least reference - margin": pytest.approx(0.89 - auroc),
        "trainable_params at most 8": 2,
    }
    assert objective.references == ("auroc",)


def test_an_undefined_constraint_is_violated_and_finite():
    """TRAPS B5: a missing or NaN value would count as feasible."""
    e = Evaluation(evaluate().search, Cost(1, 1))
    found = Objective((Term("auroc"),), (AtLeast("worst_group_auroc", 0.5),)).violations(e)
    assert list(found.values()) == [UNDEFINED]
    assert math.isfinite(UNDEFINED)


def test_a_reference_that_was_never_measured_is_an_error():
    with pytest.raises(ValueError, match="auroc"):
        AtLeast("auroc", "reference").violation(evaluate())


def test_a_gap_needs_a_floor_and_cannot_promote():
    """TRAPS A4: alone it is won by a constant."""
    refused(lambda: Objective((Term("auroc_gap"),)), "floor")
    refused(lambda: Objective((Term("auroc"), Term("auroc_gap"))), "floor")
    refused(lambda: Objective((Term("auroc"),), rung="auroc_gap"), "promote")
    Objective((Term("auroc_gap"),), (AtLeast("auroc", "reference - margin"),))
    refused(lambda: Objective(()), "term")


@pytest.mark.parametrize("metric", ["brier", "auroc_gap", "trainable_params"])
def test_the_verdict_is_about_something_that_is_better_when_higher(metric):
    refused(lambda: Objective((Term("auroc"),), primary=metric), "verdict", "auroc")
    refused(lambda: Objective((Term("auroc"),), rung=metric), "promote")


def test_needs_are_those_of_the_metrics():
    assert Objective((Term("auroc"),)).needs == ()
    assert Objective((Term("worst_group_auroc"),)).needs == ("groups",)
    assert Objective((Term("auroc"),), choose=worst_group).needs == ("groups",)
    assert Objective((Term("auroc"),), needs=("probe",)).needs == ("probe",)
    assert Objective((Term("auroc"),), shown=("auroc_gap",)).needs == ()


def test_functions_are_metrics_too():
    def square(e):
        return e.cost.trainable_params**2

    objective = Objective((Term(square, "minimize"),), (AtMost(square, 50),))
    assert objective.values(evaluate(params=3)) == (9.0,)
    assert objective.violations(evaluate(params=3)) == {"square at most 50": -41.0}
    assert objective.metrics(evaluate(params=3))["square"] == 9.0
    assert measure(lambda e: None, evaluate()) is None
    assert measure(lambda e: np.nan, evaluate()) is None
    assert measure(lambda e: np.float32(2), evaluate()) == 2.0
    refused(lambda: measure(lambda e: 1 / 0, evaluate()), "ZeroDivisionError", "test_objective.py")
    refused(lambda: measure(lambda e: "high", evaluate()), "must return a number")


def test_front_of_evaluations():
    e = [
        evaluate(0, 20),  # best women, worst men
        evaluate(12, 12),  # best worst group, lower overall
        evaluate(25, 25),  # dominated
    ]
    objective = Objective((Term("auroc"), Term("worst_group_auroc")), choose=worst_group)
    front = objective.front(e)
    assert list(front) == [0, 1]
    assert len(front) == 2
    assert front.feasible
    assert objective.choose([e[i] for i in front]) == 1
    assert overall([e[i] for i in front]) == 0


def test_nothing_feasible_gives_the_least_violating_and_says_so():
    e = [evaluate(20, 20), evaluate(5, 5), evaluate(10, 10)]
    front = Objective((Term("auroc"),), (AtLeast("auroc", 0.99),)).front(e)
    assert front == Front((1,), False)
    assert Objective((Term("auroc"),)).front([]) == Front((), False)


def test_violations_of_different_units_are_compared_relative_to_their_bounds():
    objective = Objective(
        (Term("auroc"),), (AtLeast("auroc", 0.9), AtMost("trainable_params", 1_000_000))
    )
    slightly_large, poor = evaluate(params=1_000_100), evaluate(25, 25, params=10)
    assert list(objective.front([poor, slightly_large])) == [1]


def test_ties_go_to_the_fewest_trainable_parameters_then_to_the_first():
    e = [evaluate(params=30), evaluate(params=10), evaluate(params=10)]
    assert overall(e) == 1
    assert worst_group(e) == 1
    assert overall([evaluate(5, 5, params=1), evaluate(0, 0, params=99)]) == 1
    with pytest.raises(ValueError, match="empty"):
        overall([])


def test_worst_group_prefers_overall_auroc_before_size():
    e = [evaluate(5, 5, params=1), evaluate(5, 0, params=99)]
    assert worst_group(e) == 1


def test_an_undefined_value_never_wins():
    unknown = Evaluation(evaluate().search, Cost(1, 1))
    assert worst_group([unknown, evaluate(29, 29)]) == 1


def complete(e):
    """The same with what thresholds and memorization need: two halves of the patients."""
    p, n = e.search, len(e.search.patient)
    quarters = np.arange(n) // 2 % 2 == 0
    train, probe = p.take(quarters), p.take(~quarters)
    strangers = (replace(train, score=0 * train.score), replace(probe, score=0 * probe.score))
    return replace(
        e, thresholds=fit_threshold(p), train=train, probe=probe, null=strangers
    )  # fmt: skip


@pytest.mark.parametrize("name", list_objectives())
def test_builtin_objectives_are_one_page_that_works(name):
    objective = load_objective(name)
    assert objective.name == name
    assert len(objective.description) > 200
    reference = dict.fromkeys(objective.references, 0.5)
    e = [
        complete(evaluate(3 * i, 2 * i, params=i, reference=reference, n=120)) for i in range(1, 5)
    ]
    for one in e:
        assert None not in objective.values(one)
        assert all(v <= 0 for v in objective.violations(one).values())
        assert None not in objective.metrics(one).values()
    front = objective.front(e)
    assert front.feasible
    assert objective.choose([e[i] for i in front]) in range(len(front))


def test_fairness_is_what_the_protocol_says():
    objective = load_objective("fairness")
    assert [t.name for t in objective.terms] == ["auroc", "worst_group_auroc"]
    assert objective.directions == ("maximize", "maximize")
    assert [c.name for c in objective.constraints] == ["auroc at least reference - margin"]
    assert (objective.primary, objective.rung) == ("worst_group_auroc", "auroc")
    assert objective.needs == ("groups",)
    assert objective.choose.name == "worst_group"
    assert objective.shown == ("auroc_gap",)


@pytest.mark.parametrize("name", list_objectives())
def test_what_an_untrained_model_wins_never_promotes(name):
    """A gap, memorization or calibration is best before training: a floor, and another rung."""
    objective = load_objective(name)
    assert METRICS[objective.rung].every_fidelity
    assert all(METRICS[objective.terms[i].name].every_fidelity for i, _ in objective.promoting)
    if name != "auroc":
        assert "auroc at least reference - margin" in [c.name for c in objective.constraints]


def test_what_gaps_need_not_to_level_down():
    for name in ("fairness_gap", "equalized_odds"):
        floors = [c.name for c in load_objective(name).constraints]
        assert "worst_group_auroc at least reference - margin" in floors
    assert load_objective("worst_group").rung == "worst_group_auroc"
    assert load_objective("balanced").needs == ("groups", "memorization")
    assert load_objective("memorization").needs == ("memorization",)


def test_a_users_file_comes_through_the_same_door(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Small adapters."""\n'
        "from autopeft.objective import AtLeast, Objective, Term\n\n\n"
        "def size(evaluation):\n    return evaluation.cost.adapter_bytes / 1e6\n\n\n"
        "OBJECTIVE = Objective(\n"
        '    terms=(Term("auroc"), Term(size, "minimize")),\n'
        '    constraints=(AtLeast("auroc", "reference - 0.02"),),\n)\n'
    )
    objective = load_objective(str(path))
    assert (objective.name, objective.description) == ("mine", "Small adapters.")
    e = [evaluate(i, i, params=100 - i, reference={"auroc": 0.9}) for i in (0, 1, 30)]
    assert list(objective.front(e)) == [0, 1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", ("OBJECTIVE",)),
        ("OBJECTIVE = 3", ("OBJECTIVE",)),
        ('OBJECTIVE = Objective((Term("aurocc"),))', ("line 2", '"auroc"')),
        ('OBJECTIVE = Objective((Term("auroc"),), goal=1)', ("line 2", "TypeError", "goal")),
        ('OBJECTIVE = Objective((Term("auroc"),)', ("line 2", "SyntaxError")),
    ],
)
def test_a_broken_objective_is_one_line(tmp_path, body, words):
    path = tmp_path / "mine.py"
    path.write_text(f"from autopeft.objective import Objective, Term\n{body}\n")
    refused(lambda: load_objective(str(path)), "mine.py", *words)


def test_a_metric_that_fails_names_the_users_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from autopeft.objective import Objective, Term\n\n\n"
        "def bad(evaluation):\n    return evaluation.nothing\n\n\n"
        'OBJECTIVE = Objective((Term(bad, "maximize"),))\n'
    )
    objective = load_objective(str(path))
    refused(lambda: objective.values(evaluate()), "mine.py, line 5", "AttributeError", "bad")


def test_names_are_sorted():
    assert all(a < b for a, b in pairwise(list_objectives()))
