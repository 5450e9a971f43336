import numpy as np
import pytest
import synthetic

from autopeft.data.counted import check_groups, counted_groups
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


def test_auto_refuses_what_would_be_cross_validation():
    made = task({"sex=F": (20, 12), "sex=M": (7, 40)})
    with pytest.raises(UserError) as caught:
        check_groups(made, settings(inner="auto"))
    message = str(caught.value)
    assert "sex=M has 7 positive and 40 negative" in message
    assert "sex=F" not in message
    # Neither holdout (one group would be left) nor --min-group 7 (below 10) would do.
    assert message.endswith("Drop the --group.")


def test_auto_offers_what_works():
    made = task({"sex=F": (20, 12), "sex=M": (15, 40), "sex=X": (14, 14)})
    with pytest.raises(UserError, match="Lower --min-group to 12, or drop the --group") as caught:
        check_groups(made, settings(inner="auto", min_group=20))
    assert "holdout (" not in str(caught.value)
    assert check_groups(made, settings(inner="auto", min_group=12)).left_out == {"sex": {}}
    made = task({"sex=F": (20, 12), "sex=M": (15, 40), "sex=X": (3, 14)})
    with pytest.raises(UserError, match=r"Take --inner holdout \(.*\), or drop the --group\.$"):
        check_groups(made, settings(inner="auto"))
    assert len(check_groups(made, settings()).groups["sex"]) == 2


def test_auto_takes_holdout_where_all_groups_count():
    made = task({"sex=F": (20, 12), "sex=M": (11, 40)})
    assert check_groups(made, settings(inner="auto")).groups == {"sex": ("sex=F", "sex=M")}


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
    for positive in (0, 1, 9):  # objectives on groups need ten
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


def test_cross_validation_is_refused_clearly():
    made = task({"sex=F": (20, 20), "sex=M": (20, 20)})
    with pytest.raises(UserError, match=r"--inner cv5: .*not in this version.*--inner holdout"):
        check_groups(made, settings(inner="cv5"), needed=False)
