"""Attacks on tables whose truth is planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS
from autopeft.metrics.matching import LEVELS, match
from autopeft.metrics.memorization import (
    attack,
    attacks,
    confidence,
    log_likelihood,
    memorization,
    patient_signal,
    true_positive_rate,
    words,
)


def people(table, rng, n, fitted=0.0, images=1, classes=1, noise=0.0, prevalence=0.3, groups=None):
    """Patients of a model that knows something, and its members by heart (``fitted``)."""
    truth = (rng.random((n, classes)) < prevalence).astype(float)
    label = np.where(rng.random(truth.shape) < noise, 1 - truth, truth)
    score = 2 * truth - 1 + rng.normal(size=truth.shape) + fitted * (2 * label - 1)
    where = np.repeat(np.arange(n), images)
    return table(
        score[where] + 0.1 * rng.normal(size=(len(where), classes)),
        label[where],
        patient=[f"p{i}" for i in where],
        groups=groups,
        split="train",
    )


# ---- signals ------------------------------------------------------------------------------------


def test_signals_of_labels_of_their_own(table):
    p = table([[2.0, -1.0], [0.5, 3.0], [1.0, 1.0]], [[1, 0], [0, np.nan], [np.nan, np.nan]])
    q = p.probability
    expected = np.log(q[0, 0]) + np.log(1 - q[0, 1]), np.log(1 - q[1, 0])
    assert log_likelihood(p) == pytest.approx([*expected, np.nan], nan_ok=True)
    assert confidence(p) == pytest.approx([2 + 1, -0.5, np.nan], nan_ok=True)


def test_signals_of_classes_that_exclude_each_other(table):
    rng = np.random.default_rng(0)
    y = np.eye(4)[rng.integers(0, 4, 50)]
    p = table(rng.normal(size=y.shape) * 3, y, kind="multiclass")
    q = (p.probability * y).sum(axis=1)
    assert log_likelihood(p) == pytest.approx(np.log(q))
    assert confidence(p) == pytest.approx(np.log(q / (1 - q)))
    sure = table([[800.0, 0.0, -800.0]], [[1, 0, 0]], kind="multiclass")
    assert confidence(sure) == pytest.approx([800.0])  # where 1 - q is 0 in floats


def test_a_patient_s_signal_is_the_mean_over_their_labelled_images(table):
    p = table([1.0, 3.0, 5.0, 2.0], [1, 1, np.nan, np.nan], patient=["b", "b", "b", "a"])
    assert patient_signal(p, "confidence") == pytest.approx([np.nan, 2.0], nan_ok=True)


# ---- one attack ---------------------------------------------------------------------------------


def brute(train, probe, name):
    """AUC inside strata of label and number of images, weighed by m k / (m + k)."""
    sides = []
    for p in (train, probe):
        signal, found = patient_signal(p, name), {}
        for i, who in enumerate(sorted(set(p.patient))):
            rows = p.patient == who
            key = (*p.target[rows].max(axis=0), int(np.log2(rows.sum())))
            found.setdefault(key, []).append(signal[i])
        sides.append(found)
    total = weight = 0.0
    for key in set(sides[0]) & set(sides[1]):
        a, b = (np.array(s[key]) for s in sides)
        wins = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
        w = len(a) * len(b) / (len(a) + len(b))
        total, weight = total + w * wins, weight + w
    return total / weight


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 2), ties=st.booleans())
def test_the_auc_is_that_of_every_matched_pair(table, seed, classes, ties):
    rng = np.random.default_rng(seed)
    train, probe = (people(table, rng, 60, f, 1 + seed % 2, classes) for f in (0.5, 0.0))
    if ties:
        train, probe = (replace(p, score=np.round(p.score)) for p in (train, probe))
    found = attack(train, probe, n=0, name="confidence")
    assert found.level == LEVELS[0]
    assert found.auc == pytest.approx(brute(train, probe, "confidence"), abs=1e-12)
    assert (found.low, found.high) == (found.value, found.value)


def test_in_one_stratum_it_is_the_plain_auc_and_tpr(table):
    rng = np.random.default_rng(1)
    train, probe = (table(rng.normal(f, 1, 300), np.ones(300)) for f in (0.7, 0.0))
    found = attack(train, probe, n=0)
    member = np.repeat([1, 0], 300)
    signal = np.concatenate([log_likelihood(p) for p in (train, probe)])
    assert found.auc == pytest.approx(roc_auc_score(member, signal))
    fpr, tpr, _ = roc_curve(member, signal, drop_intermediate=False)
    assert found.tpr == pytest.approx(tpr[fpr <= 0.10 + 1e-12].max())


def test_weighted_true_positive_rate_is_scikit_learn_s():
    rng = np.random.default_rng(2)
    a, b = np.round(rng.normal(0.5, 1, 80), 1), np.round(rng.normal(size=120), 1)
    weights = rng.integers(0, 4, 80).astype(float), rng.integers(0, 4, 120).astype(float)
    got = true_positive_rate(a, b, weights[0][:, None], weights[1][:, None], 0.1)
    fpr, tpr, _ = roc_curve(
        np.repeat([1, 0], [80, 120]),
        np.concatenate([a, b]),
        sample_weight=np.concatenate(weights),
        drop_intermediate=False,
    )
    assert got == pytest.approx([tpr[fpr <= 0.1].max()])


def test_members_with_lower_loss_are_found_and_the_auc_rises_with_how_well_they_fit(table):
    found = []
    for fitted in (0.0, 0.5, 1.0, 2.0):
        rng = np.random.default_rng(3)
        sides = people(table, rng, 400, fitted), people(table, rng, 400)
        found.append(attack(*sides))
    values = [a.value for a in found]
    assert values == sorted(values)
    assert abs(values[0]) < 0.05
    assert values[-1] > 0.3
    assert [a.succeeded for a in found] == [False, True, True, True]
    assert all(a.low <= a.value <= a.high for a in found)


def test_members_whose_images_were_shown_more_often_are_found_more_often(table):
    rng = np.random.default_rng(4)
    once = people(table, rng, 300, fitted=0.4)
    often = people(table, rng, 300, fitted=0.4 * 4)  # four copies, four times the pull
    probe = people(table, rng, 300)
    assert attack(often, probe).value > attack(once, probe).value + 0.1


def test_nothing_learnt_and_a_fifth_of_the_labels_wrong_on_both_sides_is_nothing(table):
    """PROTOCOL 5: noise in the labels alone must not look like memory, or hide it."""
    inside, succeeded = 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        train, probe, *null = (people(table, rng, 150, noise=0.2) for _ in range(4))
        null = [replace(p, target=q.target) for p, q in zip(null, (train, probe), strict=True)]
        found = attack(train, probe, tuple(null), n=300)
        inside += found.low <= 0 <= found.high
        succeeded += found.succeeded
    assert inside >= 35  # 95% of 40 is 38
    assert succeeded <= 3


def test_noise_in_the_members_labels_alone_would_look_like_the_opposite_of_memory(table):
    rng = np.random.default_rng(5)
    train, probe = people(table, rng, 600, noise=0.2), people(table, rng, 600)
    assert attack(train, probe).high < 0  # why non-members come from the same split


def test_the_null_takes_away_what_is_no_memory(table):
    """Members that are easier by themselves: the attack alone is fooled, attack - null is not."""
    rng = np.random.default_rng(6)
    easy, hard = (
        table(z * (2 * y - 1), y)
        for z, y in ((rng.normal(m, 1, 500), rng.integers(0, 2, 500)) for m in (1.0, 0.5))
    )
    null = tuple(
        replace(p, score=p.score + rng.normal(0, 0.3, p.score.shape)) for p in (easy, hard)
    )
    alone, fair = attack(easy, hard), attack(easy, hard, null)
    assert alone.succeeded
    assert fair.auc == alone.auc
    assert not fair.succeeded
    assert fair.value == pytest.approx(fair.auc - fair.null)
    assert fair.high - fair.low < alone.high - alone.low  # what both share cancels


# ---- matching -----------------------------------------------------------------------------------


def test_other_prevalence_of_labels_is_no_memory(table):
    """Positives are fitted worse; there are more of them among the non-members."""
    rng = np.random.default_rng(7)

    def side(prevalence):
        y = (rng.random(800) < prevalence).astype(float)
        return table((2 * y - 1) * np.where(y == 1, 0.3, 2.0) + rng.normal(size=800), y)

    train, probe = side(0.1), side(0.5)
    signal = np.concatenate([log_likelihood(p) for p in (train, probe)])
    assert roc_auc_score(np.repeat([1, 0], 800), signal) > 0.6
    found = attack(train, probe)
    assert found.low < 0 < found.high


def test_other_policies_for_unknown_labels_are_not_compared(table):
    """Where the one side says NaN and the other 0, a sum over labels differs by itself."""
    rng = np.random.default_rng(8)
    train, probe = (people(table, rng, 400, classes=2, prevalence=0.2) for _ in "ab")
    missing = np.where(np.arange(400)[:, None] % 2 == [[0, 1]], train.target, np.nan)
    half = replace(train, target=np.where(np.arange(400)[:, None] < 60, missing, train.target))
    found = attack(half, probe)
    assert found.level == LEVELS[0]
    assert found.matched == pytest.approx(340 / 400)
    assert found.members == 340
    assert found.low < 0 < found.high


def test_views_and_numbers_of_images_are_matched(table):
    rng = np.random.default_rng(9)
    one, two = people(table, rng, 100), people(table, rng, 100, images=2)
    views = np.array(["view=AP", "view=PA"])[np.arange(100) % 2]
    a = replace(one, groups={"view": views})
    b = replace(people(table, rng, 100), groups={"view": np.roll(views, 1)})
    label = dict(zip(a.patient, zip(views, a.target[:, 0], strict=True), strict=True))
    found = match(a, b)
    assert found.level == 0
    names = [np.unique(p.patient) for p in (a, b)]
    other = dict(zip(b.patient, zip(b.groups["view"], b.target[:, 0], strict=True), strict=True))
    for m, s in zip(found.member, found.member_stratum, strict=True):
        for o in found.other[found.other_stratum == s]:
            assert label[names[0][m]] == other[names[1][o]]
    assert match(one, two).level == len(LEVELS) - 1  # no patient has as many images


def test_rare_patterns_are_matched_more_coarsely(table):
    rng = np.random.default_rng(10)
    train, probe = (people(table, rng, 60, classes=8, prevalence=0.5) for _ in "ab")
    found = match(train, probe)
    assert LEVELS[found.level] == "number of findings, view and number of images"
    assert found.share >= 0.8
    label = [p.target[np.argsort(p.patient)] for p in (train, probe)]
    for m, s in zip(found.member, found.member_stratum, strict=True):
        for o in found.other[found.other_stratum == s]:
            assert label[0][m].sum() == label[1][o].sum()


def test_scores_do_not_decide_who_is_compared(table):
    rng = np.random.default_rng(11)
    train, probe = (people(table, rng, 80, classes=3) for _ in "ab")
    again = match(replace(train, score=-train.score), replace(probe, score=probe.score * 0))
    first = match(train, probe)
    assert np.array_equal(first.member, again.member)
    assert np.array_equal(first.other_stratum, again.other_stratum)


# ---- what may be said ---------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "fpr"), [(1000, 0.01), (999, 0.10)])
def test_one_percent_false_alarms_need_a_thousand_non_members(table, n, fpr):
    rng = np.random.default_rng(12)
    train, probe = (
        table(rng.normal(size=1000), np.ones(1000)),
        table(rng.normal(size=n), np.ones(n)),
    )
    found = attack(train, probe, n=20)
    assert found.fpr == fpr
    assert found.non_members == n
    assert found.tpr_low <= found.tpr <= found.tpr_high
    assert abs(found.tpr - fpr) < 0.05


def test_the_interval_resamples_patients_not_images(table):
    rng = np.random.default_rng(13)
    few = [people(table, rng, 40, images=1) for _ in "ab"]
    many = [
        p.take(np.repeat(np.arange(40), 16)) for p in few
    ]  # each image sixteen times: nothing is known that was not
    a, b = (attack(*sides) for sides in (few, many))
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high))


def test_coverage_of_the_interval_for_a_known_effect(table):
    truth = float(norm.cdf(0.6 / np.sqrt(2)))
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        sides = (table(rng.normal(m, 1, 120), np.ones(120)) for m in (0.6, 0.0))
        found = attack(*sides, name="confidence", n=300, seed=seed)
        inside += found.low <= truth - 0.5 <= found.high
    assert inside >= 53  # 95% of 60 is 57


def test_too_few_patients_are_not_attacked(table):
    rng = np.random.default_rng(14)
    assert attack(people(table, rng, 9), people(table, rng, 50)) is None
    assert attacks(people(table, rng, 50), people(table, rng, 5)) == []
    nothing = table(np.zeros(30), np.full(30, np.nan))
    assert attack(nothing, nothing) is None


def test_the_metric_is_the_stronger_attack_minus_null_and_undefined_without_null(table):
    rng = np.random.default_rng(15)
    train, probe, *null = (people(table, rng, 120, f, classes=2) for f in (1.0, 0, 0, 0))
    null = tuple(replace(p, target=q.target) for p, q in zip(null, (train, probe), strict=True))
    e = Evaluation(probe, Cost(1, 4), train=train, probe=probe, null=null)
    both = [attack(train, probe, null, name, n=0).value for name in ("loss", "confidence")]
    assert memorization(e) == max(both) > 0.1
    assert METRICS["memorization"](e) == memorization(e)
    assert METRICS["memorization"].direction == "minimize"
    assert not METRICS["memorization"].every_fidelity
    for missing in ("train", "probe", "null"):
        assert memorization(replace(e, **{missing: None})) is None


def test_the_words_promise_nothing(table):
    rng = np.random.default_rng(16)
    train, probe = people(table, rng, 200, 1.5), people(table, rng, 200)
    assert words([]) == "memorization was not measured"
    none = words(attacks(people(table, np.random.default_rng(18), 200), probe))
    assert none == "no attack that we ran succeeded; not a privacy guarantee"
    assert (
        words(attacks(train, probe))
        == "training patients can be told from others (by loss, confidence)"
    )
