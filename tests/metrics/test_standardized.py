import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from autopeft.metrics.standardized import common_weights, standardized_gap, stratum_of

SEX = ("F", "M")


def simulate(table, seed=0, n=4000, classes=1):
    """AP films are harder; men have more of them, and more disease. Within a view all is equal."""
    rng = np.random.default_rng(seed)
    sex, age = rng.choice(["F", "M"], n), rng.choice(["<60", ">=60"], n)
    lying = rng.random(n) < np.where(sex == "M", 0.8, 0.2)
    y = (rng.random((n, classes)) < np.where(sex == "M", 0.5, 0.2)[:, None]).astype(float)
    score = rng.normal(size=y.shape) + np.where(lying, 0.4, 2.4)[:, None] * y
    groups = {"sex": sex, "age": age, "view": np.where(lying, "AP", "PA")}
    return table(score, y, groups=groups)


def test_a_gap_made_of_views_goes_away(table):
    p = simulate(table)
    found = standardized_gap(p, "sex", SEX, ["view", "age"])
    assert found.raw_gap > 0.12
    assert found.gap < 0.04
    assert found.kept == 1
    assert (found.by, found.groups, found.strata) == (("view", "age"), SEX, 4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_weights_give_every_group_the_standard_s_mix(table, seed):
    p = simulate(table, seed, n=600)
    weight = common_weights(p, "sex", SEX, ["view", "age"], 0)
    stratum, y = stratum_of(p, ["view", "age"]), p.target[:, 0]
    used = weight > 0
    for label in (0, 1):
        for s in np.unique(stratum[used & (y == label)]):
            cell = used & (stratum == s) & (y == label)
            sums = [weight[cell & (p.groups["sex"] == g)].sum() for g in SEX]
            assert sums == pytest.approx([cell.sum()] * 2)


def test_the_weighted_auroc_is_sklearn_s(table):
    p = simulate(table, n=800, classes=2)
    found = standardized_gap(p, "sex", SEX, ["view"])
    for g, group in enumerate(SEX):
        rows = p.groups["sex"] == group
        values = [
            roc_auc_score(
                p.target[rows, c],
                p.score[rows, c],
                sample_weight=common_weights(p, "sex", SEX, ["view"], c)[rows],
            )
            for c in range(2)
        ]
        assert found.aurocs[g] == pytest.approx(np.mean(values))


def test_without_strata_nothing_changes(table):
    found = standardized_gap(simulate(table), "sex", SEX, [])
    assert found.aurocs == pytest.approx(found.raw)
    assert found.gap == pytest.approx(found.raw_gap)


def test_a_stratum_that_a_group_lacks_is_left_out_and_told(table):
    p = simulate(table)
    view = np.where((p.groups["sex"] == "M") & (np.arange(4000) % 4 == 0), "chair", "PA")
    q = table(p.score, p.target, groups={**p.groups, "view": view})
    found = standardized_gap(q, "sex", SEX, ["view"])
    assert found.kept == pytest.approx((view != "chair").mean())
    apart = table(p.score, p.target, groups={**p.groups, "view": p.groups["sex"]})
    nothing = standardized_gap(apart, "sex", SEX, ["view"])
    assert (nothing.aurocs, nothing.gap, nothing.kept) == (None, None, 0)


def test_no_gap_without_two_scored_groups(table):
    p = simulate(table)
    assert standardized_gap(p, "sex", ("F",), ["view"]) is None
    alone = table(p.score, p.target, patient=np.zeros(4000), groups=p.groups)
    assert standardized_gap(alone, "sex", SEX, ["view"]) is None


def test_rows_in_another_order(table):
    p = simulate(table, n=600)
    mixed = p.take(np.random.default_rng(0).permutation(600))
    one, other = (standardized_gap(q, "sex", SEX, ["view", "age"]) for q in (p, mixed))
    assert one.aurocs == pytest.approx(other.aurocs)
