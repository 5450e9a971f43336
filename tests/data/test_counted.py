from dataclasses import replace

import numpy as np
import pytest
import synthetic

from autopeft.data.counted import check_groups, choose_inner, counted_groups
from autopeft.errors import UserError
from autopeft.settings import Settings


def task(search, label=None):
    """A task with ``search = {sex: (positive, negative)}`` patients, and 1 + 1 elsewhere."""
    rows = []
    for split in ("train", "search", "confirm", "test"):
        counts = search if split == "search" else dict.fromkeys(search, (1, 1))
        for sex, (positive, negative) in counts.items():
            rows += [(split, sex, 1)] * positive + [(split, sex, 0)] * negative
    split, sex, sick = zip(*rows, strict=True)
    label = [[s] for s in sick] if label is None else label(np.array(sick), np.array(split))
    return synthetic.task(range(len(rows)), label, {"sex": sex}, split)


def settings(**changes):
    return Settings(**{"inner": "holdout", "min_group": 10, **changes})


def test_a_group_counts_from_min_group_on():
    made = task({"sex=F": (10, 12), "sex=M": (9, 40), "unknown": (50, 50)})
    counted = counted_groups(made, 10)
    assert counted.groups == {"sex": ("sex=F",)}
    assert counted.left_out == {"sex": {"sex=M": (9, 40)}}
    assert counted.notes == (
        "sex=M does not count: 9 positive and 40 negative patients in search (--min-group 10)",
    )
    assert counted_groups(made, 9).groups == {"sex": ("sex=F", "sex=M")}


def test_patients_count_once_whatever_their_images():
    groups = {"sex": ["sex=F"] * 6 + ["sex=M"] * 2}
    patient = ["a", "a", "a", "a", "b", "b", "c", "d"]
    label = [[1], [0], [0], [1], [0], [0], [1], [0]]
    made = synthetic.task(patient, label, groups, ["search"] * 8)
    table = made.counts("search").set_index("group")
    assert table.loc["sex=F", ["positives", "negatives"]].tolist() == [1, 1]


def test_for_several_labels_half_of_them_must_be_scorable():
    def labels(sick, split):
        rare = np.where(np.arange(len(sick)) % 7 == 0, sick, 0)
        return np.stack([sick, 1 - sick, rare], axis=1)

    counted = counted_groups(task({"sex=F": (20, 20), "sex=M": (15, 30)}, labels), 10)
    assert counted.groups == {"sex": ("sex=F", "sex=M")}
    assert counted.labels == {"sex": ("c0", "c1")}


def with_train(search, train):
    """The same groups in train and search, 1 + 1 patients elsewhere."""
    rows = []
    for split in ("train", "search", "confirm", "test"):
        counts = {"search": search, "train": train}.get(split, dict.fromkeys(search, (1, 1)))
        for sex, (positive, negative) in counts.items():
            rows += [(split, sex, 1)] * positive + [(split, sex, 0)] * negative
    split, sex, sick = zip(*rows, strict=True)
    return synthetic.task(range(len(rows)), [[s] for s in sick], {"sex": sex}, split)


def test_auto_takes_folds_where_the_smallest_group_is_too_small_in_search():
    few, more = {"sex=F": (20, 12), "sex=M": (7, 40)}, {"sex=F": (60, 50), "sex=M": (20, 90)}
    found = check_groups(with_train(few, more), settings(inner="auto"))
    assert found.inner == "cv5"
    assert found.why == "sex=M has 7 positive and 40 negative patients in search, --min-group 10"
    assert found.groups == {"sex": ("sex=F", "sex=M")}  # counted over all folds
    assert found.left_out == {"sex": {}}
    held = counted_groups(with_train(few, more), 10)
    assert held.groups == {"sex": ("sex=F",)}
    assert check_groups(with_train(few, more), settings(inner="auto"), needed=False).inner == (
        "holdout"  # 27 positive and 52 negative patients: nobody asked for groups
    )


def test_folds_name_who_is_too_few_in_all_of_them():
    few = {"sex=F": (20, 12), "sex=M": (20, 40), "sex=X": (1, 2)}
    more = {"sex=F": (60, 50), "sex=M": (20, 90), "sex=X": (4, 3)}
    found = check_groups(with_train(few, more), settings(inner="auto"))
    assert found.groups == {"sex": ("sex=F", "sex=M")}
    assert found.notes == (
        "sex=X does not count: 5 positive and 5 negative patients in all folds (--min-group 10)",
    )
    gone = with_train({"sex=F": (20, 12), "sex=X": (1, 2)}, {"sex=F": (60, 50), "sex=X": (4, 3)})
    with pytest.raises(UserError, match="patients in all folds: sex=X has 5 positive"):
        check_groups(gone, settings(inner="auto"))


def test_auto_without_groups_looks_at_everyone():
    made = task({"sex=F": (2, 40), "sex=M": (7, 40)})
    found = check_groups(made, settings(inner="auto"), needed=False)
    assert (found.inner, found.why) == (
        "cv5",
        "search has 9 positive and 80 negative patients, --min-group 10",
    )
    found = check_groups(made, settings(inner="auto", min_group=9), needed=False)
    assert (found.inner, found.why) == (
        "holdout",
        "search has 9 positive and 80 negative patients",
    )


def test_auto_is_a_holdout_from_five_thousand_patients_on():
    few = {"sex=F": (20, 12), "sex=M": (20, 40), "sex=X": (1, 2)}
    for negative, inner in ((4817, "cv5"), (4818, "holdout")):
        more = {"sex=F": (60, negative), "sex=M": (10, 3), "sex=X": (1, 1)}
        made = with_train(few, more)
        found = choose_inner(made, settings(inner="auto"), needed=True)
        assert (made.patients, found[0]) == (negative + 182, inner)


def test_a_share_of_the_labels_and_folds_exclude_each_other():
    made = task({"sex=F": (2, 2), "sex=M": (2, 2)})
    few = settings(inner="auto", label_fraction=0.1)
    assert choose_inner(made, few, needed=False)[0] == "holdout"
    with pytest.raises(UserError, match="beyond the share"):
        choose_inner(made, settings(inner="cv5", label_fraction=0.1), needed=False)


def test_train_patients_with_labels_of_a_policy_never_judge():
    few, more = {"sex=F": (20, 12), "sex=M": (7, 40)}, {"sex=F": (60, 50), "sex=M": (20, 90)}
    made = replace(with_train(few, more), policy_differs=True)
    for dataset, fix in (
        ("chexpert", "Take --data-option uncertain=ignore, or --inner holdout."),
        ("phantom", "Take --data-option label_noise_split=all, or --inner holdout."),
        ("labels.csv", "Take --inner holdout."),
    ):
        with pytest.raises(UserError) as caught:
            check_groups(made, settings(inner="cv5", dataset=dataset))
        assert (caught.value.where, caught.value.fix) == ("--inner cv5", fix)
    found = check_groups(made, settings(inner="auto", min_group=41), needed=False)
    assert (found.inner, found.why) == (
        "holdout",
        "search has 27 positive and 52 negative patients, --min-group 41, but train has labels "
        "that nobody is judged by",
    )
    assert check_groups(made, settings(), needed=False).inner == "holdout"
    with pytest.raises(UserError, match=r"Drop this --group\.$"):  # no folds are offered
        check_groups(made, settings(inner="auto"))


def test_with_an_earlier_adapter_auto_takes_no_folds():
    made = task({"sex=F": (2, 40), "sex=M": (7, 40)})
    found = choose_inner(made, settings(inner="auto", init_adapter="runs/a/best"), needed=False)
    assert found == (
        "holdout",
        "search has 9 positive and 80 negative patients, --min-group 10, but train patients may "
        "have trained the --init-adapter",
    )
    asked = settings(inner="cv5", init_adapter="runs/a/best")
    assert choose_inner(made, asked, needed=False) == ("cv5", "")  # `seen` looks at the patients


def test_what_the_user_says_is_not_explained():
    made = task({"sex=F": (20, 20), "sex=M": (20, 20)})
    for inner in ("holdout", "cv5"):
        found = check_groups(made, settings(inner=inner))
        assert (found.inner, found.why) == (inner, "")


def test_auto_takes_holdout_where_all_groups_count():
    made = task({"sex=F": (20, 12), "sex=M": (11, 40)})
    found = check_groups(made, settings(inner="auto"))
    assert found.groups == {"sex": ("sex=F", "sex=M")}
    assert found.inner == "holdout"


def test_a_holdout_that_loses_an_attribute_offers_folds_where_they_would_do():
    few = {"sex=F": (20, 12), "sex=M": (7, 40)}
    kept = with_train(few, {"sex=F": (60, 50), "sex=M": (20, 90)})
    with pytest.raises(UserError, match="Drop this --group, or take --inner cv5."):
        check_groups(kept, settings())
    lost = with_train(few, {"sex=F": (60, 50), "sex=M": (2, 90)})
    with pytest.raises(UserError, match=r"Drop this --group\.$"):
        check_groups(lost, settings())


def test_holdout_names_the_groups_that_do_not_count():
    made = task({"sex=F": (20, 12), "sex=M": (11, 40), "sex=X": (1, 2)})
    counted = check_groups(made, settings())
    assert counted.groups == {"sex": ("sex=F", "sex=M")}
    assert "sex=X does not count: 1 positive and 2 negative" in counted.notes[0]


def test_holdout_refuses_an_attribute_that_drops_out():
    made = task({"sex=F": (30, 25), "sex=M": (11, 40)})
    with pytest.raises(UserError) as caught:
        check_groups(made, settings(min_group=20))
    message = str(caught.value)
    assert "fewer than two groups of 'sex'" in message
    assert "sex=M has 11 positive and 40 negative" in message
    assert "Drop this --group, or lower --min-group to 11" in message
    assert len(check_groups(made, settings(min_group=11)).groups["sex"]) == 2


def test_no_number_is_offered_where_none_would_do():
    for positive in (0, 1, 8):  # objectives on groups need ten; the folds hold one more
        made = task({"sex=F": (20, 12), "sex=M": (positive, 40)})
        for inner in ("auto", "holdout"):
            with pytest.raises(UserError) as caught:
                check_groups(made, settings(inner=inner))
            assert "lower --min-group" not in str(caught.value).lower()


def test_both_groups_too_small():
    made = task({"sex=F": (15, 12), "sex=M": (13, 40)})
    with pytest.raises(UserError, match="lower --min-group to 12"):
        check_groups(made, settings(min_group=50))


def test_groups_that_nobody_needs_stop_nothing():
    made = task({"sex=F": (2, 2), "sex=M": (2, 2)})
    counted = check_groups(made, settings(inner="auto"), needed=False)
    assert counted.groups == {"sex": ()}
    assert len(counted.notes) == 2
