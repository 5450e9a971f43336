import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS, intervals, resampling
from autopeft.metrics.classification import auroc, brier
from autopeft.metrics.intervals import (
    Interval,
    bootstrap,
    levelled_down,
    non_inferior,
    paired,
    recipe_interval,
    verdict,
)

COUNTED = {"sex": ("F", "M")}


def clustered(rng, patients, images, prevalence=0.3, effect=1.0, between=1.0, within=0.3):
    """Scores whose patients share a level: [score], [target], [patient]."""
    y = np.repeat((rng.random(patients) < prevalence).astype(float), images)
    level = np.repeat(between * rng.normal(size=patients), images)
    score = level + within * rng.normal(size=patients * images) + effect * y
    return score, y, np.repeat(np.arange(patients), images)


def simulate(table, seed=0, patients=80, repeat=0, classes=1, shift=0.0):
    rng = np.random.default_rng(7)
    base, y, patient = clustered(rng, patients, 2, prevalence=0.4)
    noise = np.random.default_rng(seed).normal(size=(len(y), classes))
    score = np.round(base[:, None] + noise + shift * y[:, None], 1)
    sex = np.where(patient % 2 == 0, "F", "M")
    target = np.repeat(y[:, None], classes, axis=1)
    return table(score, target, patient=patient, groups={"sex": sex}, repeat=repeat)


def by_hand(p, metric, n, seed):
    """The same draws, but every resample is a table of copied rows."""
    ids, unit = np.unique(p.patient, return_inverse=True)
    found = []
    for drawn in np.random.default_rng(seed).integers(0, len(ids), (n, len(ids))):
        times = np.bincount(drawn, minlength=len(ids))[unit]
        found.append(metric(p.take(np.repeat(np.arange(len(unit)), times))))
    return found


def test_bootstrap_equals_copying_the_rows_of_drawn_patients(table):
    p = simulate(table)

    def sklearn(q):
        return roc_auc_score(q.target[:, 0], q.score[:, 0])

    found, expected = bootstrap(p, n=300, seed=3), by_hand(p, sklearn, 300, 3)
    assert found.value == pytest.approx(sklearn(p))
    assert [found.low, found.high] == pytest.approx(np.quantile(expected, [0.025, 0.975]).tolist())
    assert found.floor == pytest.approx(np.quantile(expected, 0.05))
    assert found.se == pytest.approx(np.std(expected, ddof=1))
    assert (found.patients, found.dropped) == (80, 0)
    assert bootstrap(p, sklearn, n=300, seed=3).to_dict() == pytest.approx(found.to_dict())


def test_worst_group_resamples_equal_sklearn(table):
    p = simulate(table, patients=120)

    def worst(q):
        sex = q.groups["sex"]
        return min(roc_auc_score(q.target[sex == g, 0], q.score[sex == g, 0]) for g in ("F", "M"))

    found = bootstrap(p, "worst_group_auroc", n=100, counted=COUNTED)
    low, high = np.quantile(by_hand(p, worst, 100, 0), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_draws_do_not_depend_on_the_size_of_a_block():
    blocks = {}
    for rows in (1, 5_000, 10**6):
        blocks[rows] = np.concatenate(list(resampling.patient_weights(40, rows, 300, 0)), axis=1)
    assert {b.shape for b in blocks.values()} == {(40, 300)}
    assert np.array_equal(blocks[1], blocks[5_000])
    assert np.array_equal(blocks[1], blocks[10**6])
    assert (blocks[1].sum(axis=0) == 40).all()


def test_trap_a7_resampled_rows_are_too_narrow(table):
    score, y, patient = clustered(np.random.default_rng(0), 300, 8, effect=0.8)
    patients = bootstrap(table(score, y, patient=patient), n=500)
    rows = bootstrap(table(score, y), n=500)
    assert patients.high - patients.low > 2 * (rows.high - rows.low)


def test_one_patient_with_all_images_has_no_interval(table):
    p = table([0.1, 0.4, 0.3, 0.9], [0, 1, 0, 1], patient=["a"] * 4)
    assert auroc(p) == 1.0
    assert bootstrap(p) is None
    assert paired(p, p) is None


def test_undefined_resamples_are_dropped_and_counted(table):
    rng = np.random.default_rng(0)
    y = np.array([1, 1, 1] + [0] * 27)
    found = bootstrap(table(rng.normal(size=30), y), n=1000)
    expected = (1 - 3 / 30) ** 30  # no positive drawn
    assert found.dropped / 1000 == pytest.approx(expected, abs=0.03)
    assert np.isfinite([found.low, found.high]).all()


def test_no_interval_where_the_metric_is_undefined(table):
    p = simulate(table)
    one_class = table([0.1, 0.2, 0.3], [1, 1, 1])
    assert bootstrap(one_class) is None
    assert bootstrap(p, "worst_group_auroc") is None  # no group counts
    assert bootstrap(p, "auroc_gap", counted=COUNTED) is None  # of one model: see its docstring


def test_no_interval_when_most_resamples_are_undefined(table, monkeypatch):
    y = [1, 0, 0]  # the positive patient is not drawn in 8 of 27, alone in 1 of 27 resamples
    found = bootstrap(table([0.1, 0.2, 0.3], y), n=2000)
    assert found.dropped / 2000 == pytest.approx(9 / 27, abs=0.04)
    monkeypatch.setattr(intervals, "DEFINED", 0.8)
    assert bootstrap(table([0.1, 0.2, 0.3], y), n=2000) is None


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    metric=st.sampled_from(["auroc", "worst_group_auroc", "auroc_gap", "auroc:c0", "auroc:sex=F"]),
)
def test_a_model_is_exactly_as_good_as_itself(table, seed, metric):
    p = simulate(table, seed)
    sex = {"sex": np.char.add("sex=", p.groups["sex"])}
    p = table(p.score, p.target, patient=p.patient, groups=sex)
    same = paired(p, p, metric, n=50, counted={"sex": ("sex=F", "sex=M")})
    assert (same.value, same.low, same.high, same.floor, same.se) == (0, 0, 0, 0, 0)
    stretched = table(3 * p.score + 2, p.target, patient=p.patient, groups=p.groups)
    same = paired(p, stretched, metric, n=50, counted={"sex": ("sex=F", "sex=M")})
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_paired_uses_the_same_draws_for_both(table):
    a, b = simulate(table, 1, shift=0.5), simulate(table, 2)
    found = paired(a, b, n=200, seed=5)
    expected = np.subtract(by_hand(a, auroc, 200, 5), by_hand(b, auroc, 200, 5))
    assert found.value == pytest.approx(auroc(a) - auroc(b))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    back = paired(b, a, n=200, seed=5)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    apart = np.hypot(bootstrap(a, n=200, seed=5).se, bootstrap(b, n=200, seed=5).se)
    assert found.se < apart  # the patients are shared, so the difference is surer than its sides


def test_paired_takes_the_mean_over_repeats(table):
    a, b = [simulate(table, s, shift=0.4) for s in range(3)], [simulate(table, s) for s in (8, 9)]
    found = paired(a, b, n=100)
    draws = [np.mean([by_hand(p, auroc, 100, 0) for p in side], axis=0) for side in (a, b)]
    assert found.value == pytest.approx(np.mean([*map(auroc, a)]) - np.mean([*map(auroc, b)]))
    assert found.se == pytest.approx(np.std(draws[0] - draws[1], ddof=1))


def test_gap_differences_and_single_groups_can_be_paired(table):
    a, b = simulate(table, 1, classes=2), simulate(table, 2, classes=2)
    gap = paired(a, b, "auroc_gap", n=50, counted=COUNTED)
    assert gap.low <= gap.value <= gap.high
    group = paired(a, b, "auroc:F", n=50, counted=COUNTED)
    rows = a.groups["sex"] == "F"
    assert group.value == pytest.approx(auroc(a.take(rows)) - auroc(b.take(rows)))
    label = bootstrap(a, "auroc:c1", n=50)
    assert label.value == pytest.approx(roc_auc_score(a.target[:, 1], a.score[:, 1]))


def test_any_function_of_predictions_has_an_interval(table):
    p = simulate(table)
    found = bootstrap(p, brier, n=100)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(by_hand(p, brier, 100, 0), [0.025, 0.975]))
    )


@pytest.mark.parametrize("metric", intervals.COMPARABLE)
def test_everything_a_verdict_can_be_about_can_be_paired(table, metric):
    a, b = simulate(table, 1), simulate(table, 2)
    found = paired(a, b, metric, n=50, counted=COUNTED)
    e, f = (METRICS[metric](Evaluation(p, Cost(1, 1), COUNTED)) for p in (a, b))
    assert METRICS[metric].direction == "maximize"
    assert found.value == pytest.approx(e - f)
    assert found.low <= found.value <= found.high


def test_other_rows_cannot_be_compared(table):
    p = simulate(table)
    with pytest.raises(ValueError, match="same rows"):
        paired(p, p.take(np.arange(len(p.patient))[::-1]))
    with pytest.raises(ValueError, match="same rows"):
        paired(p, table(p.score, p.target, patient=p.patient[::-1], groups=p.groups))
    with pytest.raises(ValueError, match="same rows"):
        paired(p, table(p.score, 1 - p.target, patient=p.patient, groups=p.groups))


def test_unknown_metrics_are_refused(table):
    with pytest.raises(ValueError, match="auroc:Nobody"):
        bootstrap(simulate(table), "auroc:Nobody")


def test_recipe_interval_adds_the_seeds(table):
    a = [simulate(table, s, repeat=s, shift=0.5) for s in range(1, 4)]
    b = [simulate(table, s + 50, repeat=s) for s in range(1, 4)]
    found, patients = recipe_interval(a, b, n=200), paired(a, b, n=200)
    each = [auroc(x) - auroc(y) for x, y in zip(a, b, strict=True)]
    se = np.sqrt(patients.se**2 + np.var(each, ddof=1) / 3)
    low, high = stats.t.interval(0.95, df=2, loc=np.mean(each), scale=se)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(each), low, high))
    assert found.floor == pytest.approx(np.mean(each) - stats.t.ppf(0.95, 2) * se)
    alone = recipe_interval(a, n=200)
    assert alone.value == pytest.approx(np.mean([auroc(x) for x in a]))
    assert alone.high - alone.low > bootstrap(a, n=200).high - bootstrap(a, n=200).low


def test_a_recipe_s_interval_is_one_of_areas_and_a_difference_may_be_below_0(table):
    a = [simulate(table, s, repeat=s, shift=3.0) for s in range(1, 4)]
    b = [simulate(table, s + 50, repeat=s, shift=-3.0) for s in range(1, 4)]
    alone = recipe_interval(a, n=200)
    assert alone.value > 0.9
    assert alone.value + 4.3 * alone.se > 1 >= alone.high  # t of two degrees of freedom
    assert recipe_interval(b, a, n=200).low < 0


def test_no_recipe_interval_below_three_seeds(table):
    a = [simulate(table, s) for s in range(3)]
    assert recipe_interval(a[:2], n=50) is None
    with pytest.raises(ValueError, match="paired"):
        recipe_interval(a, a[:2])


def interval(low, high):
    return Interval((low + high) / 2, low, high, low + 0.001, 0.01, 100)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.001, 0.02, "better"),
        (-0.005, 0.02, "not worse"),
        (-0.009, -0.001, "not worse"),  # worse, but by less than what was declared to matter
        (-0.03, -0.001, "worse"),
        (-0.03, 0.02, "cannot tell"),
        (0.0, 0.02, "not worse"),
        (-0.01, 0.02, "cannot tell"),
    ],
)
def test_verdict(low, high, word):
    assert verdict(interval(low, high), margin=0.01) == word


def test_nothing_is_shown_without_an_interval():
    assert verdict(None, 0.01) == "cannot tell"
    assert not non_inferior(None, 0.01)


def test_non_inferiority_reads_the_one_sided_bound():
    assert non_inferior(interval(-0.0105, 0.0), 0.01)
    assert not non_inferior(interval(-0.0115, 0.0), 0.01)


@pytest.mark.parametrize(("positives", "word"), [(9, "cannot tell"), (10, "better")])
def test_a_verdict_needs_ten_patients_on_either_side(table, positives, word):
    """Perfect against constant: a resample cannot doubt it, however few the patients."""
    y = (np.arange(100) < positives).astype(float)
    for target in (y, 1 - y):
        a, b = (
            table(np.repeat(s, 3), np.repeat(target, 3), np.arange(300) // 3)
            for s in (target, 0 * target)
        )
        sure = paired(a, b, n=100)
        assert (sure.low, sure.high, sure.enough) == (0.5, 0.5, positives == 10)
        assert sure.to_dict()["enough"] == sure.enough
        assert verdict(sure, 0.01) == word
        assert non_inferior(sure, 0.01) == sure.enough
        assert recipe_interval([a] * 3, [b] * 3, n=50).enough == sure.enough


def test_a_macro_has_enough_when_each_averaged_class_has(table):
    y = np.stack([np.arange(60) < k for k in (0, 5, 30)], axis=1).astype(float)
    p = table(np.random.default_rng(0).normal(size=y.shape), y)  # c0 is never averaged
    without = replace(p, score=p.score[:, ::2], target=y[:, ::2], classes=("c0", "c2"))
    for metric in ("auroc", "average_precision"):
        assert not bootstrap(p, metric, n=50).enough
        assert bootstrap(without, metric, n=50).enough
    assert not bootstrap(p, "auroc:c1", n=50).enough
    assert bootstrap(p, "auroc:c2", n=50).enough
    assert not bootstrap(p, "accuracy", n=50).enough
    one_hot = np.eye(3)[np.repeat([0, 1, 2], [2, 28, 30])]
    assert bootstrap(table(p.score, one_hot, kind="multiclass"), "accuracy", n=50).enough


def test_levelled_down_names_the_groups_that_lost():
    groups = {"F": interval(-0.05, -0.02), "M": interval(-0.05, 0.0), "X": None}
    assert levelled_down(groups, 0.01) == ("F",)


def covered(table, rng, patients, n, by_row=False):
    """Whether one simulated interval holds the true AUROC (binormal, two images a patient)."""
    score, y, patient = clustered(rng, patients, 2, within=0.5)
    truth = stats.norm.cdf(1 / np.sqrt(2 * (1 + 0.5**2)))
    found = bootstrap(table(score, y, patient=None if by_row else patient), n=n)
    return found.low <= truth <= found.high


def test_coverage_small(table):
    rng = np.random.default_rng(0)
    share = np.mean([covered(table, rng, 200, 200) for _ in range(150)])
    assert 0.89 <= share <= 0.99


@pytest.mark.slow
def test_coverage_is_what_it_says(table):
    """1,000 tables of 200 patients, about 60 of them positive: 92-98%; by row clearly less."""
    rng = np.random.default_rng(1)
    share = np.mean([covered(table, rng, 200, 1000) for _ in range(1000)])
    assert 0.92 <= share <= 0.98
    by_row = np.mean([covered(table, rng, 200, 500, by_row=True) for _ in range(400)])
    assert by_row < 0.90


@pytest.mark.slow
def test_paired_difference_rejects_equal_models_as_often_as_it_says(table):
    """Two equally good readers of the same patients: 0 is inside in about 95% of 600 tables."""
    rng, inside = np.random.default_rng(2), 0
    for _ in range(600):
        base, y, patient = clustered(rng, 200, 2)
        a, b = (table(base + rng.normal(size=400), y, patient=patient) for _ in "ab")
        found = paired(a, b, n=600)
        inside += found.low <= 0 <= found.high
    assert 0.92 <= inside / 600 <= 0.98


@pytest.mark.slow
def test_a_large_bootstrap_takes_seconds(table):
    """2,000 resamples of 20,000 rows and 14 labels: 1 s of one core where this was written."""
    rng = np.random.default_rng(0)
    y = (rng.random((20_000, 14)) < 0.2).astype(float)
    p = table(rng.normal(size=y.shape) + y, y, patient=rng.integers(0, 8000, 20_000))
    start = time.process_time()
    assert bootstrap(p).dropped == 0
    assert time.process_time() - start < 10
