from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm
from sklearn.metrics import roc_auc_score

from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS
from autopeft.metrics import gaps as gaps_module
from autopeft.metrics.gaps import gap_word, gaps, group_covariance, holm
from autopeft.metrics.groups import Scored, scored_groups

GROUPS = ("g=0", "g=1", "g=2")
COUNTED = {"g": GROUPS}


def simulate(table, seed=0, patients=240, images=2, classes=1, loss=0.0):
    """Patients whose images share labels and half of the score's variance."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(patients), rng.integers(1, images + 1, patients))
    y = (rng.random((patients, classes)) < 0.4).astype(float)[unit]
    group = (np.arange(patients) % 3)[unit]
    shift = np.where(group == 0, 1.4 - loss, 1.4)[:, None]
    noise = rng.normal(size=(patients, 1))[unit] + rng.normal(size=y.shape)
    names = np.array(GROUPS, dtype=object)[group]
    return table(shift * y + noise / 2**0.5, y, patient=unit, groups={"g": names})


def delong(score, target):
    """Variance of one AUROC, by its textbook formula (DeLong et al. 1988)."""
    up, down = score[target == 1], score[target == 0]
    wins = (up[:, None] > down) + 0.5 * (up[:, None] == down)
    return wins.mean(1).var(ddof=1) / len(up) + wins.mean(0).var(ddof=1) / len(down)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_with_one_image_each_it_is_delong_and_a_chi_square(table, seed, ties):
    p = simulate(table, seed, images=1)
    p = replace(p, score=np.round(p.score)) if ties else p
    (found,) = gaps(p, COUNTED, permutations=0)
    rows = [p.groups["g"] == g for g in GROUPS]
    value = np.array([roc_auc_score(p.target[r, 0], p.score[r, 0]) for r in rows])
    variance = np.array([delong(p.score[r, 0], p.target[r, 0]) for r in rows])
    mean = (value / variance).sum() / (1 / variance).sum()
    statistic = ((value - mean) ** 2 / variance).sum()
    assert found.mean.aurocs == pytest.approx(value)
    assert found.mean.chi2 == pytest.approx(statistic)
    assert found.mean.p == pytest.approx(chi2.sf(statistic, 2))
    assert found.mean.value == pytest.approx(np.ptp(value))
    assert found.mean.patients == 240
    assert found.mean.worst == GROUPS[int(value.argmin())]
    assert found.mean.best == GROUPS[int(value.argmax())]


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_copied_images_change_nothing(table, seed):
    """Ten copies of every image are not more evidence; as rows they would be ten times more."""
    p = simulate(table, seed, images=1)
    copied = p.take(np.repeat(np.arange(240), 10))
    (one,), (ten,) = gaps(p, COUNTED, permutations=0), gaps(copied, COUNTED, permutations=0)
    assert ten.mean.p == pytest.approx(one.mean.p)
    assert (ten.mean.low, ten.mean.high) == pytest.approx((one.mean.low, one.mean.high))
    as_rows = replace(copied, patient=np.arange(2400))
    (wrong,) = gaps(as_rows, COUNTED, permutations=0)
    assert wrong.mean.chi2 > 9 * one.mean.chi2


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 3))
def test_the_order_of_rows_and_groups_changes_nothing(table, seed, classes):
    p = simulate(table, seed, classes=classes)
    rows = np.random.default_rng(seed).permutation(len(p.patient))
    (a,) = gaps(p, COUNTED, permutations=0)
    (b,) = gaps(p.take(rows), {"g": GROUPS[::-1]}, permutations=0)
    for one, other in zip((a.mean, *a.labels), (b.mean, *b.labels), strict=True):
        for name in ("value", "chi2", "p", "detectable"):
            assert getattr(one, name) == pytest.approx(getattr(other, name)), name
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.01)


def test_labels_of_one_patient_move_together(table):
    """Two copies of a label are one label: the mean's variance is not halved."""
    p = simulate(table)
    twice = table(np.hstack([p.score] * 2), np.hstack([p.target] * 2), p.patient, None, p.groups)
    (one,), (two,) = gaps(p, COUNTED, permutations=0), gaps(twice, COUNTED, permutations=0)
    assert two.mean.p == pytest.approx(one.mean.p)
    assert one.mean.label == "c0"
    assert two.mean.label is None
    assert [gap.label for gap in two.labels] == ["c0", "c1"]


def test_a_patient_in_two_groups_ties_them(table):
    p = simulate(table, images=1)
    both = replace(p, patient=np.arange(240) // 3)  # each patient has one image in each group
    scored = Scored("g", GROUPS, (0,))
    apart, tied = (group_covariance(q, scored)[1] for q in (p, both))
    assert np.abs(apart - np.diag(np.diag(apart))).max() == 0
    assert np.abs(tied - np.diag(np.diag(tied))).max() > 1e-6
    (found,) = gaps(both, COUNTED, permutations=0)
    assert found.mean.p is not None
    assert (found.mean.low == 0) == (found.mean.p >= 0.05)


def test_the_metric_is_the_mean_of_the_label_gaps(table):
    p = simulate(table, classes=3)
    (found,) = gaps(p, COUNTED, permutations=0)
    metric = METRICS["auroc_gap"](Evaluation(p, Cost(1, 1), COUNTED))
    assert found.label_gap == pytest.approx(metric)
    assert found.mean.value <= found.label_gap
    assert found.widest.value == max(gap.value for gap in found.labels)


def test_a_large_gap_is_shown_and_a_small_one_is_bounded_or_unknown(table):
    (large,) = gaps(simulate(table, patients=900, loss=1.0), COUNTED)
    assert (large.word, large.text) == ("gap shown", "gap shown")
    assert 0 < large.mean.low < large.mean.value < large.mean.high
    assert large.mean.expected < large.mean.value
    (few,) = gaps(simulate(table, patients=120), COUNTED)
    assert (few.word, few.mean.low) == ("cannot tell", 0)
    assert few.mean.high > 0.05
    (many,) = gaps(simulate(table, patients=9000), COUNTED, permutations=20)
    assert many.word == "gap below"
    assert many.text.startswith("gap below .0")
    assert float(many.text.removeprefix("gap below ")) >= many.mean.high


def test_words_follow_from_two_numbers():
    assert gap_word(0.01, 0.2) == "gap shown"
    assert gap_word(0.2, 0.05) == "gap below"
    assert gap_word(0.2, 0.051) == "cannot tell"
    assert gap_word(0.2, 0.051, limit=0.1) == "gap below"
    assert gap_word(None, None) == gap_word(None, 0.01) == "cannot tell"


def test_attributes_are_corrected_together(table):
    p = simulate(table, patients=600, loss=0.3)
    rng = np.random.default_rng(0)
    p = replace(p, groups={**p.groups, "sex": rng.choice(["F", "M"], len(p.patient))})
    one, other = gaps(p, COUNTED | {"sex": ("F", "M")}, permutations=0)
    assert (one.p, other.p) == holm((one.mean.p, other.mean.p))
    assert max(one.p / one.mean.p, other.p / other.mean.p) > 1
    (alone,) = gaps(p, COUNTED, permutations=0)
    assert alone.p == alone.mean.p


def test_holm_by_hand():
    """Smallest p times 4, the next times 3 ... and never below one before."""
    assert holm((0.01, 0.04, 0.03, 0.005)) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm((None, 0.9, 0.6)) == (None, 1.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(p=st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=6))
def test_holm_rejects_what_the_step_down_rule_rejects(p):
    found, known = holm(p), sorted(v for v in p if v is not None)
    assert [v is None for v in found] == [v is None for v in p]
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        while rejected < len(known) and known[rejected] * (len(known) - rejected) <= level:
            rejected += 1
        assert sum(v <= level for v in found if v is not None) == rejected
    for value, corrected in zip(p, found, strict=True):
        assert value is None or value <= corrected <= 1


def test_trap_a1_a_one_class_group_has_no_gap(table):
    p = simulate(table)
    target = p.target.copy()
    target[p.groups["g"] == "g=0"] = 1
    q = replace(p, target=target)
    (found,) = gaps(q, COUNTED, permutations=0)
    assert found.mean.groups == ("g=1", "g=2")
    assert gaps(q, {"g": GROUPS[:2]}) == ()


def test_one_patient_with_all_images_has_no_gap(table):
    p = simulate(table)
    assert gaps(replace(p, patient=np.zeros(len(p.patient))), COUNTED) == ()


@pytest.mark.parametrize("perfect", [True, False], ids=["perfect", "constant"])
def test_a_score_without_spread_is_not_fair(table, perfect):
    p = simulate(table)
    score = p.target.astype(float) if perfect else np.zeros(p.target.shape)
    (found,) = gaps(replace(p, score=score), COUNTED, permutations=0)
    assert found.mean.value == 0
    assert (found.mean.p, found.mean.low, found.mean.high, found.p) == (None,) * 4
    assert found.word == "cannot tell"


def test_fewer_than_half_of_the_labels_left_per_label_only(table):
    """The label-set rule: no summary over labels that most groups cannot score."""
    p = simulate(table, classes=3)
    target = p.target.copy()
    for c, group in ((0, "g=0"), (1, "g=1")):
        target[p.groups["g"] == group, c] = 0
    q = replace(p, target=target)
    assert scored_groups(q, COUNTED) == ()
    (found,) = gaps(q, COUNTED, permutations=0)
    assert (found.mean, found.p, found.label_gap, found.word) == (None, None, None, "cannot tell")
    assert [gap.label for gap in found.labels] == ["c0", "c1", "c2"]
    assert [gap.groups for gap in found.labels] == [
        ("g=1", "g=2"),
        ("g=0", "g=2"),
        GROUPS,
    ]


def test_folds_are_never_pooled(table):
    p = simulate(table, images=1)
    part = np.arange(240) // 120
    moved = replace(p, part=part, score=p.score + 50.0 * part[:, None])
    (one,) = gaps(replace(p, part=part), COUNTED, permutations=0)
    (other,) = gaps(moved, COUNTED, permutations=0)
    assert one.mean.p == pytest.approx(other.mean.p)


def test_the_numbers_are_plain_data(table):
    import json

    (found,) = gaps(simulate(table, classes=2), COUNTED, permutations=5)
    again = json.loads(json.dumps(found.to_dict()))
    assert again["mean"]["p"] == found.mean.p
    assert len(again["labels"]) == 2


def test_equal_groups_are_rejected_one_time_in_twenty(table):
    """Two images a patient, 120 patients a group; the benchmark has the full table."""
    p_values = []
    for seed in range(200):
        p = simulate(table, seed, patients=360)
        value, covariance = group_covariance(p, Scored("g", GROUPS, (0,)))
        half = covariance[0, 0] + covariance[1, 1]
        p_values.append(2 * norm.sf(abs(value[0] - value[1]) / half**0.5))
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10


def test_gaps_of_labels_that_cancel_are_not_hidden(table):
    """Equal mean AUROCs, each group better at one label: "gap below" would be a false comfort."""
    p = simulate(table, 3, patients=1500, images=1, classes=2)
    first = p.groups["g"] == GROUPS[0]
    score = np.array(p.score)
    score[first, 0] -= 0.6 * p.target[first, 0]
    score[first, 1] += 0.8 * p.target[first, 1]
    (found,) = gaps(replace(p, score=score), COUNTED, permutations=0)
    assert found.mean.p > 0.05
    assert found.mean.high < 0.1
    assert found.word == "gap shown"
    assert found.text.startswith("gap shown in ")
    (calm,) = gaps(p, COUNTED, permutations=0, limit=0.2)
    assert calm.text.startswith("gap below .")
    assert float(calm.text.split()[-1]) >= max(g.high for g in (calm.mean, *calm.labels)) - 1e-9


def test_a_label_is_shown_after_a_correction_for_all_labels_of_all_attributes(table, monkeypatch):
    p = simulate(table, 3, patients=600, images=1, classes=2)
    (one,) = gaps(p, COUNTED, permutations=0)

    def with_label_p(*values):
        labels = [replace(g, p=v) for g, v in zip(one.labels, (*values, 0.9), strict=True)]
        entry = replace(one, mean=replace(one.mean, p=0.5), labels=tuple(labels))
        monkeypatch.setattr(
            gaps_module, "_attribute", lambda p, attribute, *_: replace(entry, attribute=attribute)
        )
        return [e.word for e in gaps(p, {"g": GROUPS, "h": GROUPS}, permutations=0, limit=0.0)]

    assert with_label_p(0.012) == ["gap shown"] * 2  # 4 x .012
    assert with_label_p(0.02) == ["cannot tell"] * 2  # 2 x .02 alone would have passed


def test_what_could_be_detected_is_larger_where_several_attributes_are_tested(table):
    p = simulate(table, 4)
    half = np.array(["h=0", "h=1"], dtype=object)[np.unique(p.patient, return_inverse=True)[1] % 2]
    both = replace(p, groups={**p.groups, "h": half})
    (alone,) = gaps(both, COUNTED, permutations=0)
    found = gaps(both, {**COUNTED, "h": ("h=0", "h=1")}, permutations=0)
    ratio = (norm.ppf(1 - 0.0125) + norm.ppf(0.8)) / (norm.ppf(0.975) + norm.ppf(0.8))
    assert found[0].mean.detectable == pytest.approx(alone.mean.detectable * ratio)
