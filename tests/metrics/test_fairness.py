import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS, fairness
from autopeft.metrics.classification import auroc

SEX = {"sex": ("F", "M")}


def evaluation(p, counted=None, **more):
    return Evaluation(p, Cost(10, 40), SEX if counted is None else counted, **more)


def simulate(table, seed=0, n=400, classes=1, ties=False):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, classes)) < 0.4).astype(float)
    y[rng.random((n, classes)) < 0.05] = np.nan
    score = rng.normal(size=(n, classes)) + np.nan_to_num(y)
    sex, age = rng.choice(["F", "M"], n), rng.choice(["<40", "<60", ">=60"], n)
    score = np.round(score) if ties else score
    return table(score, y, groups={"sex": sex, "age": age})


def expected(p, attribute, groups):
    """[groups, classes] by scikit-learn."""
    found = np.zeros((len(groups), len(p.classes)))
    for g, group in enumerate(groups):
        for c in range(len(p.classes)):
            rows = (p.groups[attribute] == group) & ~np.isnan(p.target[:, c])
            found[g, c] = roc_auc_score(p.target[rows, c], p.score[rows, c])
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 3), ties=st.booleans())
def test_worst_group_and_gap_equal_sklearn(table, seed, classes, ties):
    p = simulate(table, seed, classes=classes, ties=ties)
    counted = {"sex": ("F", "M"), "age": ("<40", "<60", ">=60")}
    by = {a: expected(p, a, groups) for a, groups in counted.items()}
    e = evaluation(p, counted)
    worst = min(values.mean(axis=1).min() for values in by.values())
    assert fairness.worst_group_auroc(e) == pytest.approx(worst, abs=1e-12)
    gap = max(np.ptp(values, axis=0).mean() for values in by.values())
    assert fairness.auroc_gap(e) == pytest.approx(gap, abs=1e-12)
    group, value = fairness.worst_group(e)
    assert value == pytest.approx(worst, abs=1e-12)
    found = {g: v for a, gs in counted.items() for g, v in fairness.group_aurocs(p, a, gs).items()}
    assert found[group] == value


def test_group_order_does_not_matter(table):
    p = simulate(table)
    one, two = evaluation(p, {"sex": ("F", "M")}), evaluation(p, {"sex": ("M", "F")})
    assert fairness.worst_group_auroc(one) == fairness.worst_group_auroc(two)
    assert fairness.auroc_gap(one) == fairness.auroc_gap(two)


def test_trap_a1_one_class_group_is_not_fair(table):
    """fairlearn skips the group and says "difference 0.0"; here there is no gap to speak of."""
    rng = np.random.default_rng(0)
    sex = np.repeat(["F", "M"], 40)
    y = np.concatenate([np.tile([0, 1], 20), np.ones(40)])
    p = table(rng.normal(size=80) + y, y, groups={"sex": sex})
    assert fairness.group_aurocs(p, "sex", ("F", "M"))["M"] is None
    assert fairness.auroc_gap(evaluation(p)) is None


def test_a_group_below_ten_patients_on_a_side_is_not_scored(table):
    sex = np.repeat(["F", "M"], 40)
    y = np.concatenate([np.tile([0, 1], 20), [1] * 9 + [0] * 31])
    p = table(np.arange(80.0), y, groups={"sex": sex})
    found = fairness.group_aurocs(p, "sex", ("F", "M"))
    assert found["M"] is None
    assert found["F"] is not None
    assert fairness.auroc_gap(evaluation(p)) is None


def test_many_images_of_few_patients_do_not_make_a_group(table):
    sex = np.repeat(["F", "M"], 40)
    patient = np.concatenate([np.arange(40), 100 + np.arange(40) // 10])
    p = table(np.arange(80.0), np.tile([0, 1], 40), patient=patient, groups={"sex": sex})
    assert fairness.group_aurocs(p, "sex", ("F", "M"))["M"] is None


def test_what_is_scored_does_not_depend_on_the_scores(table):
    p = simulate(table)
    constant = table(np.zeros(400), p.target[:, 0], groups=p.groups)
    for q in (p, constant):
        assert list(fairness.group_aurocs(q, "sex", ("F", "M")).values()).count(None) == 0


def test_trap_a4_the_gap_rewards_a_constant_and_worst_group_does_not(table):
    rng = np.random.default_rng(1)
    n = 4000
    sex = rng.choice(["F", "M"], n)
    y = (rng.random(n) < 0.3).astype(float)
    good = rng.normal(size=n) + np.where(sex == "F", 2.2, 1.8) * y
    hurt = good + (sex == "F") * rng.normal(size=n) * 0.75
    each = {"constant": np.zeros(n), "trained": good, "hurt": hurt}
    found = {k: evaluation(table(s, y, groups={"sex": sex})) for k, s in each.items()}
    gap = {k: fairness.auroc_gap(e) for k, e in found.items()}
    worst = {k: fairness.worst_group_auroc(e) for k, e in found.items()}
    assert gap["constant"] == 0 < gap["trained"]
    assert gap["hurt"] < gap["trained"]
    assert worst["trained"] > worst["constant"] + 0.3
    assert worst["trained"] >= worst["hurt"]  # levelling down gains nothing
    assert not METRICS["auroc_gap"].every_fidelity
    assert not METRICS["equalized_odds_difference"].every_fidelity


def test_one_group_with_everybody_equals_the_overall_auroc(table):
    p = simulate(table, classes=2)
    whole = table(p.score, p.target, groups={"sex": ["F"] * 400})
    e = evaluation(whole, {"sex": ("F",)})
    assert fairness.worst_group_auroc(e) == pytest.approx(auroc(whole), abs=1e-15)
    assert fairness.auroc_gap(e) is None


def test_without_counted_groups_fairness_is_undefined(table):
    e = evaluation(simulate(table), {})
    assert fairness.worst_group_auroc(e) is None
    assert fairness.worst_group(e) is None
    assert fairness.auroc_gap(e) is None


def test_parts_count_inside_groups_too(table):
    rng = np.random.default_rng(0)
    part, y = np.repeat([0, 1], 40), np.tile([0.0, 1.0], 40)
    sex = np.tile(np.repeat(["F", "M"], 2), 20)
    score = y + 5 * part + 0.1 * rng.random(80)
    p = table(score, y, part=part, groups={"sex": sex})
    assert fairness.worst_group_auroc(evaluation(p)) == 1.0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), ties=st.booleans())
def test_bpsn_and_bnsp_equal_sklearn_on_the_named_rows(table, seed, ties):
    """Borkan et al. 2019: background positives against the group's negatives, and the reverse."""
    p = simulate(table, seed, classes=2, ties=ties)
    for found in fairness.across_groups(p, "age", ("<40", ">=60")):
        c, own = p.classes.index(found.label), p.groups["age"] == found.group
        y, score = p.target[:, c], p.score[:, c]
        bpsn, bnsp = (~own & (y == 1)) | (own & (y == 0)), (own & (y == 1)) | (~own & (y == 0))
        assert found.bpsn == pytest.approx(roc_auc_score(y[bpsn], score[bpsn]))
        assert found.bnsp == pytest.approx(roc_auc_score(y[bnsp], score[bnsp]))


def test_a_shifted_group_is_seen_across_groups_only(table):
    p = simulate(table, n=2000)
    shifted = table(p.score + (p.groups["sex"] == "F")[:, None], p.target, groups=p.groups)
    assert fairness.auroc_gap(evaluation(shifted)) == fairness.auroc_gap(evaluation(p))
    before, after = (fairness.across_groups(q, "sex", ("F",))[0] for q in (p, shifted))
    assert after.bpsn < before.bpsn - 0.1  # healthy women score too high: false alarms
    assert after.bnsp > before.bnsp + 0.1


def test_across_groups_needs_patients_on_its_own_side_only(table):
    sex = np.repeat(["F", "M", "unknown"], 40)
    y = np.concatenate([np.ones(40), np.tile([0, 1], 40)])
    p = table(np.random.default_rng(0).normal(size=120) + y, y, groups={"sex": sex})
    women, men = fairness.across_groups(p, "sex", ("F", "M"))
    assert women.bpsn is None
    assert women.bnsp is not None
    assert men.bpsn is not None  # the women's positives, the men's negatives
    assert men.bnsp is None  # nobody else is known and negative
    alone = table(p.score, p.target, patient=np.zeros(120), groups=p.groups)
    assert fairness.across_groups(alone, "sex", ("F",))[0].bnsp is None
