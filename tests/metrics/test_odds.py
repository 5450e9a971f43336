import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, selection_rate
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS, odds

COUNTED = {"sex": ("F", "M"), "age": ("<40", "<60", ">=60")}
MEASURES = {
    "equalized_odds_difference": odds.equalized_odds_difference,
    "equalized_odds_ratio": odds.equalized_odds_ratio,
    "demographic_parity_difference": odds.demographic_parity_difference,
    "demographic_parity_ratio": odds.demographic_parity_ratio,
}


def simulate(table, seed=0, n=400, classes=1, images=1):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, classes)) < 0.4).astype(float)
    y[rng.random((n, classes)) < 0.05] = np.nan
    score = rng.normal(size=(n, classes)) + np.nan_to_num(y)
    groups = {"sex": rng.choice(["F", "M"], n), "age": rng.choice(["<40", "<60", ">=60"], n)}
    return table(score, y, patient=np.arange(n) // images, groups=groups)


def evaluation(p, thresholds=(0.5,), counted=None):
    return Evaluation(p, Cost(1, 1), COUNTED if counted is None else counted, {}, thresholds)


def brute(p, thresholds, counted):
    """Every measure from plain counts: attribute -> measure -> mean over classes."""
    found = {}
    for attribute, groups in counted.items():
        each = {name: [] for name in MEASURES}
        for c, limit in enumerate(thresholds):
            rows = ~np.isnan(p.target[:, c])
            y, made = p.target[rows, c], p.probability[rows, c] >= limit
            member = p.groups[attribute][rows]
            tpr, fpr, share = (
                np.array([made[(member == g) & part].mean() for g in groups])
                for part in (y == 1, y == 0, y >= 0)
            )
            each["equalized_odds_difference"].append(max(np.ptp(tpr), np.ptp(fpr)))
            each["equalized_odds_ratio"].append(min(r.min() / r.max() for r in (tpr, fpr)))
            each["demographic_parity_difference"].append(np.ptp(share))
            each["demographic_parity_ratio"].append(share.min() / share.max())
        found[attribute] = {name: np.mean(values) for name, values in each.items()}
    return found


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 2))
def test_all_four_equal_plain_counts(table, seed, classes):
    p, limits = simulate(table, seed, classes=classes), (0.6, 0.5)[:classes]
    expected = brute(p, limits, COUNTED)
    for name, measure in MEASURES.items():
        worst = max if name.endswith("difference") else min
        values = [expected[a][name] for a in COUNTED]
        assert measure(evaluation(p, limits)) == pytest.approx(worst(values)), name
        assert METRICS[name](evaluation(p, limits)) == measure(evaluation(p, limits))


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_rows_and_groups_changes_nothing(table, seed):
    p = simulate(table, seed, images=2)
    mixed = p.take(np.random.default_rng(seed).permutation(400))
    turned = {"sex": ("M", "F")}
    for measure in MEASURES.values():
        value = measure(evaluation(p, counted={"sex": ("F", "M")}))
        assert value == pytest.approx(measure(evaluation(mixed, counted=turned)), abs=1e-12)


def test_selection_rates_are_fairlearn_s(table):
    p = simulate(table)
    known = ~np.isnan(p.target[:, 0])
    frame = MetricFrame(
        metrics=selection_rate,
        y_true=p.target[known, 0],
        y_pred=(p.probability[known, 0] >= 0.5).astype(int),
        sensitive_features=p.groups["sex"][known],
    )
    sex = {"sex": ("F", "M")}
    found = odds.demographic_parity_difference(evaluation(p, counted=sex))
    assert found == pytest.approx(frame.difference())
    assert odds.demographic_parity_ratio(evaluation(p, counted=sex)) == pytest.approx(
        frame.ratio()
    )


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_trap_a2_a_one_class_group_is_never_equal(table, name, label):
    """fairlearn makes a rate of 0 of an empty denominator; here there is no answer."""
    sex = np.repeat(["F", "M"], 40)
    y = np.concatenate([np.tile([0, 1], 20), np.full(40, label)])
    p = table(np.tile([1.0, -1.0], 40), y, groups={"sex": sex})
    assert MEASURES[name](evaluation(p, counted={"sex": ("F", "M")})) is None


@pytest.mark.parametrize("name", MEASURES)
def test_one_patient_with_all_images_is_no_group(table, name):
    p = simulate(table)
    alone = table(p.score, p.target, patient=np.zeros(400), groups=p.groups)
    assert MEASURES[name](evaluation(alone)) is None


@pytest.mark.parametrize("name", MEASURES)
def test_a_model_that_never_says_yes_is_not_equal_in_ratio(table, name):
    p = simulate(table)
    silent = table(np.full(400, -9.0), p.target[:, 0], groups=p.groups)
    expected = 0.0 if name.endswith("difference") else None
    assert MEASURES[name](evaluation(silent)) == expected


@pytest.mark.parametrize("name", MEASURES)
def test_without_a_threshold_there_is_no_decision(table, name):
    p = simulate(table)
    assert MEASURES[name](evaluation(p, ())) is None
    assert MEASURES[name](evaluation(p, (None,))) is None


def test_none_of_them_may_stop_a_half_trained_model():
    assert not any(METRICS[name].every_fidelity for name in MEASURES)


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 1000))
def test_equalized_odds_is_the_larger_of_two_differences(table, seed):
    p = simulate(table, seed, classes=2)
    limits, gaps = (0.6, 0.4), []
    for c, limit in enumerate(limits):
        rows = ~np.isnan(p.target[:, c])
        y, made = p.target[rows, c], (p.probability[rows, c] >= limit).astype(int)
        sex = p.groups["sex"][rows]
        rates = [
            [recall_score(y[sex == g], made[sex == g], pos_label=side) for g in ("F", "M")]
            for side in (0, 1)
        ]
        gaps.append(max(abs(a - b) for a, b in rates))
    found = odds.equalized_odds_difference(evaluation(p, limits, {"sex": ("F", "M")}))
    assert found == pytest.approx(np.mean(gaps))
