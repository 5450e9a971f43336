"""The second count: right on tables made by hand, and it sees what is wrong."""

from __future__ import annotations

import copy
import json

import pytest

from autopeft import recount

NUMBERS = {
    "best": {"test": {"auroc": {"value": 0.75}}, "search": {"auroc": {"value": 1.0}}},
    "baselines": {"lora_r8": {"test": {"auroc": {"value": 0.5}}}},
    "thresholds": {"x": 0.7},
    "patients": {"test": 3, "search": 2},
    "images": {"test": 4, "search": 2},
    "trials": {"complete": 2, "pruned": 1, "failed": 0},
    "contrast": {
        "metric": "auroc",
        "baseline": "lora_r8",
        "word": "better",
        "worst_group": None,
        "primary_undefined_on_test": False,
        "adapter": {"value": 0.25, "low": 0.01, "high": 0.5, "enough": True},
    },
    "accuracy_kept": {
        "kept": True, "margin": 0.01, "floor": -0.005, "difference": {"enough": True},
    },
}  # fmt: skip
SCORES = """path,patient_id,split,model,repeat,label,target,score
a,1,test,winner,0,x,1,0.9
b,1,test,winner,0,x,1,0.4
c,2,test,winner,0,x,0,0.5
d,3,test,winner,0,x,0,0.1
d,3,test,winner,0,x,,0.99
a,1,test,winner,1,x,0,0.9
a,1,test,lora_r8,0,x,1,0.3
b,1,test,lora_r8,0,x,1,0.3
c,2,test,lora_r8,0,x,0,0.3
d,3,test,lora_r8,0,x,0,0.3
e,4,search,winner,0,x,1,0.8
f,5,search,winner,0,x,1,0.7
g,5,search,winner,0,x,0,0.2
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "predictions.csv").write_text(SCORES)
    splits = [*("1 test", "1 test", "2 test", "3 test"), "4 search", "5 search"]
    rows = [f"{i}.png,{s.replace(' ', ',')}" for i, s in enumerate(splits)]
    (tmp_path / "splits.csv").write_text("\n".join(["path,patient_id,split", *rows, ""]))
    (tmp_path / "trials.csv").write_text("number,state\n0,complete\n1,complete\n2,pruned\n")
    (tmp_path / "protocol.yaml").write_text("margin: 0.01\n")
    return tmp_path


def changed(path, value):
    """The numbers with another one at a path."""
    numbers = copy.deepcopy(NUMBERS)
    *parents, last = path.split(".")
    place = numbers
    for key in parents:
        place = place[key]
    place[last] = value
    return numbers


COUNTS = (recount.aurocs, recount.thresholds, recount.counts, recount.words)


def test_it_agrees_with_what_was_counted_by_hand(folder):
    assert [count(NUMBERS, folder) for count in COUNTS] == [
        recount.Recount(3, ()),
        recount.Recount(1, ()),
        recount.Recount(7, ()),
        recount.Recount(4, ()),
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("best.test.auroc.value", 0.751),
        ("best.search.auroc", None),
        ("thresholds.x", 0.8),
        ("thresholds.x", None),
        ("patients.test", 4),
        ("images.search", 1),
        ("trials.pruned", 0),
        ("contrast.word", "not worse"),
        ("contrast.adapter.enough", False),
        ("contrast.adapter.low", -0.005),
        ("contrast.adapter.value", 0.2),
        ("accuracy_kept.kept", False),
        ("accuracy_kept.floor", -0.02),
        ("accuracy_kept.margin", 0.02),
    ],
)
def test_one_other_number_is_seen(folder, path, value):
    numbers = changed(path, value)
    seen = [d for count in COUNTS for d in count(numbers, folder).differences]
    assert len(seen) >= 1
    assert json.dumps([vars(d) for d in seen])


@pytest.mark.parametrize(
    ("low", "high", "floor", "word"),
    [
        (0.01, 0.1, 0.005, "better"),
        (0.01, 0.1, -0.005, "not worse"),
        (0.01, 0.1, -0.02, "cannot tell"),
        (-0.005, 0.1, 0.005, "not worse"),
        (-0.02, 0.1, 0.005, "cannot tell"),
        (-0.1, -0.02, -0.1, "worse"),
    ],
)
def test_the_word_for_the_worst_group_needs_every_group(low, high, floor, word):
    contrast = {
        "metric": "worst_group_auroc",
        "worst_group": {"low": floor},
        "primary_undefined_on_test": False,
        "adapter": {"low": low, "high": high, "enough": True},
    }
    assert recount._word(contrast, 0.01) == word
    contrast["primary_undefined_on_test"] = True  # what is shown is AUROC, and no verdict
    assert recount._word(contrast, 0.01) == "cannot tell"
