import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from autopeft.metrics import classification as m

labels = st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=1, max_size=40)
seeds = st.integers(0, 2**16)


def draw(y, seed, ties):
    score = np.random.default_rng(seed).normal(size=len(y))
    return np.round(score) if ties else score


@settings(deadline=None)
@given(y=labels, seed=seeds, ties=st.booleans())
def test_auroc_and_average_precision_equal_sklearn(table, y, seed, ties):
    y = np.array(y)
    score, known = draw(y, seed, ties), ~np.isnan(y)
    p = table(score, y)
    if len(set(y[known])) < 2:
        assert m.auroc(p) is None
        assert m.auroc_by_class(p) == {"c0": None}
        assert m.average_precision(p) is None
        return
    assert m.auroc(p) == pytest.approx(sk.roc_auc_score(y[known], score[known]), abs=1e-12)
    expected = sk.average_precision_score(y[known], score[known])
    assert m.average_precision(p) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(seed=seeds, n=st.integers(4, 40))
def test_weights_equal_sklearn(seed, n):
    rng = np.random.default_rng(seed)
    score, weight = np.round(rng.normal(size=n), 1), rng.integers(1, 5, n).astype(float)
    y = np.array([0, 1] + rng.integers(0, 2, n - 2).tolist())
    expected = sk.roc_auc_score(y, score, sample_weight=weight)
    assert m.auroc_binary(score, y, weight=weight) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(y=labels, seed=seeds)
def test_brier_log_loss_accuracy_equal_sklearn(table, y, seed):
    y = np.array(y)
    p, known = table(draw(y, seed, False), y), ~np.isnan(y)
    q, truth = p.probability[known, 0], y[known]
    if not known.any():
        assert m.brier(p) is m.log_loss(p) is m.accuracy(p) is None
        return
    assert m.brier(p) == pytest.approx(np.mean((q - truth) ** 2))
    assert m.log_loss(p) == pytest.approx(sk.log_loss(truth, q, labels=[0, 1]))
    assert m.accuracy(p) == pytest.approx(sk.accuracy_score(truth, q >= 0.5))


@settings(deadline=None)
@given(seed=seeds)
def test_multiclass_equals_sklearn(table, seed):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(3), rng.integers(0, 3, 20)])
    p = table(rng.normal(size=(23, 3)), np.eye(3)[y], kind="multiclass")
    assert m.log_loss(p) == pytest.approx(sk.log_loss(y, p.probability))
    assert m.accuracy(p) == pytest.approx(sk.accuracy_score(y, p.score.argmax(axis=1)))
    for by_class, sklearn in (
        (m.auroc_by_class, sk.roc_auc_score),
        (m.average_precision_by_class, sk.average_precision_score),
    ):
        each = [sklearn(y == c, p.probability[:, c]) for c in range(3)]
        assert [*by_class(p).values()] == pytest.approx(each)
    whole = sk.roc_auc_score(y, p.probability, multi_class="ovr")
    assert m.auroc(p) == pytest.approx(whole)


def test_macro_leaves_undefined_classes_out_and_names_them(table):
    y = np.array([[0, 1], [1, 1], [0, 1], [1, np.nan]])
    p = table(np.array([[0, 1], [1, 2], [2, 3], [3, 4.0]]), y)
    assert m.auroc_by_class(p) == {"c0": 0.75, "c1": None}
    assert m.auroc(p) == 0.75


def test_parts_are_never_ranked_against_each_other(table):
    """PROTOCOL 1: each model ranks its own fold perfectly, at its own level."""
    y, part = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    score = np.array([0.0, 1.0, 5.0, 6.0])
    assert m.auroc(table(score, y)) == 0.75
    assert m.auroc(table(score, y, part=part)) == 1.0
    assert m.average_precision(table(score, y, part=part)) == 1.0


def test_trap_a3_one_number_for_the_split_not_a_mean_of_batches(table):
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.02).astype(float)
    score = rng.normal(size=2000) + 1.2 * y
    batches = [m.auroc_binary(score[i : i + 64], y[i : i + 64]) for i in range(0, 2000, 64)]
    assert None in batches  # a batch without a positive is undefined, and nobody can miss it
    whole = m.auroc(table(score, y))
    assert whole == pytest.approx(sk.roc_auc_score(y, score))
    assert abs(np.mean([b for b in batches if b is not None]) - whole) > 1e-3
    shuffled = rng.permutation(2000)
    assert m.auroc(table(score[shuffled], y[shuffled])) == whole


@settings(deadline=None)
@given(seed=seeds, n=st.integers(1, 60), target=st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
def test_threshold_is_the_highest_that_reaches_the_sensitivity(table, seed, n, target):
    rng = np.random.default_rng(seed)
    p = table(np.round(rng.normal(size=n), 1), rng.integers(0, 2, n))
    (limit,) = m.fit_threshold(p, target)
    if not (p.target == 1).any():
        assert limit is None
        assert m.sensitivity(p, (limit,)) == {"c0": None}
        return
    reached = m.sensitivity(p, (limit,))["c0"]
    assert reached >= target - 1e-12
    higher = np.unique(p.probability)
    for t in higher[higher > limit]:
        assert m.sensitivity(p, (t,))["c0"] < target


@settings(deadline=None)
@given(seed=seeds)
def test_operating_point_equals_sklearn(table, seed):
    rng = np.random.default_rng(seed)
    p = table(rng.normal(size=30), np.array([0, 1] * 15))
    made = p.probability[:, 0] >= 0.6
    assert m.sensitivity(p, (0.6,))["c0"] == pytest.approx(sk.recall_score(p.target[:, 0], made))
    expected = sk.recall_score(p.target[:, 0], made, pos_label=0)
    assert m.specificity(p, (0.6,))["c0"] == pytest.approx(expected)


def test_trap_a5_a_threshold_fitted_on_the_judged_split_flatters(table):
    """On its own split it reaches the target by construction; frozen, only on average."""
    rng = np.random.default_rng(0)
    own, frozen = [], []
    for _ in range(50):
        y = (rng.random((2, 100)) < 0.2).astype(float)
        search, test = (table(rng.normal(size=100) + v, v) for v in y)
        own.append(m.sensitivity(test, m.fit_threshold(test))["c0"])
        frozen.append(m.sensitivity(test, m.fit_threshold(search))["c0"])
    assert min(own) >= 0.9
    assert min(frozen) < 0.9
    assert np.mean(own) > np.mean(frozen)


@settings(deadline=None)
@given(y=labels, seed=seeds, ties=st.booleans(), target=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_tpr_at_specificity_is_the_best_point_of_the_curve(table, y, seed, ties, target):
    y = np.array(y)
    score, known = draw(y, seed, ties), ~np.isnan(y)
    found = m.tpr_at_specificity(table(score, y), target)
    if len(set(y[known])) < 2:
        assert found is None
        return
    fpr, tpr, _ = sk.roc_curve(y[known], score[known], drop_intermediate=False)
    assert found == pytest.approx(tpr[fpr <= 1 - target + 1e-9].max(), abs=1e-12)


def test_tpr_at_specificity_gives_each_part_its_own_threshold(table):
    y, part = np.array([0, 0, 1, 0, 0, 1]), np.repeat([0, 1], 3)
    score = np.array([0.0, 1, 2, 5, 6, 7])
    assert m.tpr_at_specificity(table(score, y), 1.0) == 0.5
    assert m.tpr_at_specificity(table(score, y, part=part), 1.0) == 1.0
    with pytest.raises(ValueError, match="specificity"):
        m.tpr_at_specificity(table(score, y), 1.1)


@settings(deadline=None)
@given(y=labels, seed=seeds, ties=st.booleans())
def test_f1_equals_sklearn(table, y, seed, ties):
    y = np.array(y)
    p, known = table(draw(y, seed, ties), y), ~np.isnan(y)
    found = m.f1(p, (0.6,))["c0"]
    assert m.f1(p, (None,)) == {"c0": None}
    if len(set(y[known])) < 2:
        assert found is None
        return
    made = p.probability[known, 0] >= 0.6
    assert found == pytest.approx(sk.f1_score(y[known], made, zero_division=0), abs=1e-12)


def test_a_patient_with_all_images_changes_no_point_value(table):
    """The patient is the unit of intervals; a point value counts images, whoever they are of."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 40).astype(float)
    score = rng.normal(size=40)
    many, one = table(score, y), table(score, y, patient=["x"] * 40)
    for metric in (m.auroc, m.average_precision, m.tpr_at_specificity, m.brier, m.log_loss):
        assert metric(many) == metric(one)
    assert m.f1(many, (0.5,)) == m.f1(one, (0.5,))
    assert m.fit_threshold(many) == m.fit_threshold(one)


def test_nan_scores_are_refused_by_every_ranking(table):
    p = table([0.1, np.nan, 0.3], [0, 1, 1])
    for metric in (m.auroc, m.average_precision, m.tpr_at_specificity):
        with pytest.raises(ValueError, match="NaN"):
            metric(p)


def test_decisions_keep_what_is_unknown_unknown(table):
    p = table([[2.0, 2.0], [-2.0, 0.0]], [[1, 0], [np.nan, 1]])
    np.testing.assert_array_equal(m.decisions(p, (0.5, None)), [[1, np.nan], [np.nan, np.nan]])


def test_sensitivity_target_out_of_range_is_refused(table):
    with pytest.raises(ValueError, match="sensitivity"):
        m.fit_threshold(table([0.1, 0.2], [0, 1]), 0)
