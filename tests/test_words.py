import json
from pathlib import Path

import pytest

from autopeft import words

REPORT = Path(__file__).parent / "report"


def load(name="binary"):
    return json.loads((REPORT / f"{name}.json").read_text())


def test_interval():
    value = {"value": 0.8614, "low": 0.84, "high": 0.88}
    assert words.interval(value) == "0.861 (0.840 to 0.880)"
    assert words.interval(value, signed=True) == "+0.861 (+0.840 to +0.880)"
    assert words.interval({"value": 0.04, "low": None, "high": None}) == "0.040"
    assert words.interval(None) == "n/a"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("auroc", "AUROC"),
        ("worst_group_auroc", "worst group AUROC"),
        ("auroc:Pleural Effusion", "AUROC, Pleural Effusion"),
        ("brier", "brier"),
    ],
)
def test_metric_name(name, said):
    assert words.metric_name(name) == said


@pytest.mark.parametrize("given", ["aim", "/home/me/aim.py", "./aim.py", r"C:\me\aim.yaml"])
def test_plugin_name_has_no_path(given):
    assert words.plugin_name(given) == "aim"


def test_contrast_lines():
    numbers = load()
    lines = words.contrast_lines(numbers)
    assert lines == [
        "worst group AUROC on test, winner minus lora_r8_group: "
        "+0.014 (-0.004 to +0.031) this adapter",
        "the same over fresh seeds: +0.011 (-0.010 to +0.033) this recipe",
        "AUROC on confirm, whose patients also chose the winner, winner minus lora_r8_readout "
        "(the strongest other model there): +0.004 (-0.006 to +0.015) not worse (margin 0.01)",
    ]
    kept = {"kept": False, "difference": {"value": -0.002, "low": -0.02, "high": 0.01}}
    numbers["accuracy_kept"]["test"] = kept
    assert words.contrast_lines(numbers)[-1] == (
        "the same on test, whose patients chose nothing: "
        "-0.002 (-0.020 to +0.010) not shown to be kept"
    )
    del numbers["accuracy_kept"]["test"]
    numbers["accuracy_kept"]["kept"] = False
    numbers["contrast"] |= {"recipe": None, "primary_undefined_on_test": True}
    lines = words.contrast_lines(numbers)
    assert "AUROC stands in its place" in lines[1]
    assert lines[2].endswith("not shown to be kept (margin 0.01)")


def test_the_winner_in_words():
    config = load()["best"]["config"]
    assert words.method_words(config) == "lora (lora_alpha=16, r=8) on fc1, qkv of blocks 8-11"
    assert words.readout_words(config) == "the head reads after 12 blocks, token+avg"
    said = "adamw, lr 0.000613, weight decay 0.0001, sampling by label and group"
    assert words.training_words(config) == said
    config["train"] |= {"loss": "focal", "drop_path": 0.1, "sampling": "plain"}
    said = "adamw, lr 0.000613, weight decay 0.0001, drop path 0.1, loss focal"
    assert words.training_words(config) == said


def test_other_models_in_words():
    models = words.models(load())
    assert list(models)[:2] == ["winner", "linear_probe"]
    probe, bitfit = models["linear_probe"]["config"], models["bitfit"]["config"]
    assert words.method_words(probe).startswith("linear probe")
    assert words.training_words(probe) == "solved to its optimum, L2 strength 0.1"
    bitfit["strata"][0]["blocks"] = [7, 7]
    assert words.method_words(bitfit) == "bitfit on block 7"


def test_size_is_relative_to_the_backbone_where_it_is_known():
    numbers = load()
    said = "148,225 trained parameters"
    assert words.size_words(numbers) == f"{said} (0.68% of the backbone's)"
    numbers["backbone"].pop("params")
    assert words.size_words(numbers) == said


def test_what_is_not_known():
    numbers = load()
    assert words.not_known(numbers) == [
        "sex is unknown for 7 test patients",
        "age is unknown for 15 test patients",
        "groups with too few search patients to count: race=Asian",
        "other hospitals, scanners and populations than this data set's",
    ]
    row = numbers["groups"][0]
    row |= {"auroc": None, "interval": None, "text": "n/a (9+/88-)"}
    assert "too few test patients to score: sex=F (9+/88-)" in words.not_known(numbers)
    assert words.not_known(load("multilabel")) == [
        "no patient groups were declared: nobody looked at differences between them",
        "no threshold could be fitted on search: Pleural Effusion",
    ]


def test_gap_and_external_checks():
    assert words.gap_line(load()).startswith("largest AUROC difference between groups of one")
    assert words.gap_line(load("multilabel")) is None
    assert words.external_lines(load()) == []
    (line,) = words.external_lines(load("multilabel"))
    assert line.startswith("valid_radiologist, 200 patients, look 1: AUROC 0.900 (")


def test_a_group_without_the_attribute():
    assert words.group_name({"attribute": "age:60", "group": "unknown"}) == "age unknown"
    assert words.group_name({"attribute": "age:60", "group": "age<60"}) == "age<60"


def test_control_characters_do_not_reach_a_terminal():
    assert words.printable("a\x1b[31mb\nc") == "a?[31mb?c"
    assert words.printable("Ergüsse, 胸水") == "Ergüsse, 胸水"
