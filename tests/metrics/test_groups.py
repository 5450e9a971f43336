import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from sklearn.metrics import recall_score

from autopeft.metrics.groups import (
    cell_text,
    count_text,
    group_table,
    patient_counts,
    scorable_groups,
    scored_groups,
    unscored_groups,
)


def cells(table, counts, images=1, seed=0):
    """A table with given patients: {group: [(positives, negatives) of each class]}."""
    rng = np.random.default_rng(seed)
    y, group, patient = [], [], []
    for name, pairs in counts.items():
        n = max(p + q for p, q in pairs)
        block = np.full((n, len(pairs)), np.nan)
        for c, (positive, negative) in enumerate(pairs):
            block[:positive, c] = 1
            block[positive : positive + negative, c] = 0
        y.append(np.repeat(block, images, axis=0))
        group += [name] * (n * images)
        patient += [f"{name}{i}" for i in range(n) for _ in range(images)]
    y = np.concatenate(y)
    return table(rng.normal(size=y.shape), y, patient=patient, groups={"sex": group})


def test_patients_are_counted_not_images(table):
    p = cells(table, {"F": [(12, 3)], "M": [(20, 30)]}, images=4)
    positive, negative = patient_counts(p, "sex", ("F", "M"))
    assert positive.tolist() == [[12], [20]]
    assert negative.tolist() == [[3], [30]]


def test_a_patient_with_one_positive_image_is_positive(table):
    p = table(
        [0.0, 0.0, 0.0],
        [0, 1, np.nan],
        patient=["a", "a", "b"],
        groups={"sex": ["F", "F", "F"]},
    )
    positive, negative = patient_counts(p, "sex", ("F",))
    assert positive.tolist() == [[1]]
    assert negative.tolist() == [[0]]


def test_the_label_set_is_what_all_groups_can_score(table):
    """PROTOCOL 3: macro over different labels per group is an artefact."""
    p = cells(
        table,
        {"F": [(20, 20), (20, 20), (5, 30)], "M": [(20, 20), (20, 20), (20, 20)]},
    )
    (scored,) = scored_groups(p, {"sex": ("F", "M")})
    assert scored.groups == ("F", "M")
    assert scored.columns == (0, 1)


def test_fewer_than_half_of_the_labels_left_gives_no_summary(table):
    enough, few = (20, 20), (5, 20)
    p = cells(table, {"F": [enough, enough, few, few], "M": [few, few, enough, enough]})
    assert scored_groups(p, {"sex": ("F", "M")}) == ()


def test_a_group_that_can_score_nothing_is_left_out_alone(table):
    p = cells(table, {"F": [(20, 20)], "M": [(20, 20)], "X": [(12, 3)]})
    (scored,) = scored_groups(p, {"sex": ("F", "M", "X")})
    assert scored.groups == ("F", "M")


def test_a_counted_group_that_is_not_scored_is_named(table):
    p = cells(table, {"F": [(20, 20)], "M": [(20, 20)], "X": [(12, 9)], "unknown": [(20, 20)]})
    assert unscored_groups(p, {"sex": ("F", "M")}) == ()
    assert unscored_groups(p, {"sex": ("F", "M", "X", "unknown")}) == ("X",)
    assert unscored_groups(p, {"sex": ("F", "X", "absent")}) == ("X", "absent")
    assert unscored_groups(p, {"sex": ("F", "M")}, {"sex": ()}) == ("F", "M")  # no summary


def test_labels_fixed_before_trial_1_hold_on_every_split(table):
    p = cells(table, {"F": [(60, 60), (12, 60)], "M": [(60, 60), (60, 60)]})
    (scored,) = scored_groups(p, {"sex": ("F", "M")}, {"sex": ("c0",)})
    assert scored.columns == (0,)


def test_unknown_is_counted_and_never_scored(table):
    p = cells(table, {"F": [(20, 20)], "unknown": [(30, 30)]})
    assert scored_groups(p, {"sex": ("unknown",)}) == ()
    rows = {row.group: row for row in group_table(p)}
    assert list(rows) == ["F", "unknown"]
    assert rows["unknown"].text == "n/a (30+/30-)"
    assert rows["F"].auroc is not None


def test_the_table_says_how_many_where_it_says_nothing(table):
    p = cells(table, {"F": [(12, 3)], "M": [(15, 15)]}, images=2)
    few, enough = group_table(p, thresholds=(0.5,))
    assert few.text == "n/a (12+/3-)"
    assert few.missed is None
    assert enough.images == 60
    member = p.groups["sex"] == "M"
    q = p.probability[member, 0][p.target[member, 0] == 1]
    assert enough.missed == np.mean(q < 0.5)
    assert enough.text == f"{enough.auroc:.3f}"


def test_labels_fixed_below_half_of_all_give_no_summary(table):
    p = cells(table, {"F": [(20, 20)] * 3, "M": [(20, 20)] * 3})
    assert scored_groups(p, {"sex": ("F", "M")}, {"sex": ("c0",)}) == ()
    assert scored_groups(p, {"sex": ("F", "M")}, {"sex": ()}) == ()


def test_labels_that_only_some_groups_can_score_are_kept_per_label(table):
    enough, few = (20, 20), (5, 20)
    p = cells(table, {"F": [enough, enough], "M": [few, enough], "X": [enough, few]})
    found = scorable_groups(p, "sex", ("F", "M", "X", "unknown"))
    assert [(s.groups, s.columns) for s in found] == [(("F", "X"), (0,)), (("F", "M"), (1,))]
    assert scorable_groups(p, "sex", ("M",)) == ()


def test_counts_below_eleven_do_not_leave_the_house():
    assert cell_text(0.8614, 12, 3) == "0.861"
    assert cell_text(None, 12, 3) == "n/a (12+/3-)"
    assert cell_text(None, 12, 3, shared=True) == "n/a (12+/<11-)"
    assert [count_text(n, shared=True) for n in (0, 10, 11)] == ["<11", "<11", "11"]
    assert count_text(3) == "3"


def test_missed_findings_are_one_minus_fairlearns_recall_by_group(table):
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.4).astype(float)
    p = table(rng.normal(size=400) + y, y, groups={"sex": rng.choice(["F", "M"], 400)})
    positive = p.target[:, 0] == 1
    frame = MetricFrame(
        metrics=recall_score,
        y_true=p.target[positive, 0].astype(int),
        y_pred=(p.probability[positive, 0] >= 0.7).astype(int),
        sensitive_features=p.groups["sex"][positive],
    )
    rows = {row.group: row.missed for row in group_table(p, thresholds=(0.7,))}
    for group in ("F", "M"):
        assert rows[group] == pytest.approx(1 - frame.by_group[group])
