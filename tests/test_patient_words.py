"""What is said of patients follows the numbers; where one is absent, nothing is said."""

from __future__ import annotations

import pytest

from autopeft import patient_words

EVERY = (
    patient_words.gap_lines,
    patient_words.change_lines,
    patient_words.operating_lines,
    patient_words.calibration_lines,
    patient_words.contribution_lines,
    patient_words.simple_lines,
    patient_words.shortcut_lines,
    patient_words.memorization_lines,
)


def gap(attribute, text, low=0.01):
    mean = {"value": 0.041, "low": low, "high": 0.07, "expected": 0.012, "detectable": 0.03}
    return {"attribute": attribute, "text": text, "mean": mean, "p": 0.004}


def band(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


@pytest.fixture
def numbers():
    winner = {
        "gaps": [gap("sex", "gap shown"), gap("age:60", "cannot tell")],
        "bounds": [
            {"attribute": "sex", "share": 0.2, "low": 0.01, "high": 0.05, "least": 0, "most": 0.3}
        ],
        "standardized": [
            {"attribute": "sex", "by": ["age:60"], "gap": 0.02, "raw_gap": 0.04, "kept": 0.9}
        ],
        "rates": [
            {"attribute": a, "group": f"{a}={g}", "label": "x", "false_alarms": v}
            for a, g, v in (
                ("sex", "F", 0.2),
                ("view", "AP", 0.38),
                ("sex", "M", 0.25),
                ("view", "PA", 0.12),
                ("sex", "X", None),
            )
        ],
        "odds": {"equalized_odds_difference": 0.1, "demographic_parity_difference": None},
    }
    rate = {"value": 0.9, "low": 0.8, "high": 0.95}
    fit = {"intercept": band(0.1), "slope": {**band(0.9), "enough": True}}
    wild = {"intercept": None, "slope": {**band(1.6), "enough": True}}
    few = {"intercept": None, "slope": {**band(9.0), "enough": False}}
    calibration = {
        "all": {"ece": 0.03, "classes": {"x": fit}},
        "sex=F": {"ece": None, "classes": {"x": wild}},
        "sex=M": {"ece": None, "classes": {"x": few}},
    }
    return {
        "contrast": {"baseline": "lora_r8"},
        "groups": [
            {"model": "winner", "group": "sex=F", "counted": True, "missed": 0.13},
            {"model": "winner", "group": "sex=M", "counted": False, "missed": 0.5},
        ],
        "fairness": {
            "models": {"winner": winner, "lora_r8": {"gaps": [gap("sex", "gap below 0.034")]}},
            "bands": {"sex=F": band(-0.02), "sex=M": band(0.03), "sex=X": None},
        },
        "best": {"operating": {"rates": {"sensitivity": rate}, "calibration": calibration}},
        "contributions": [{"sentence": "fine-tuning: adds"}],
        "simple": {
            "thumbnail": {"test": {"auroc": rate, "difference": band(0.01)}},
            "knn": {"test": {}},
        },
        "shortcuts": {"winner": [{"sentence": "one"}], "features": [{"sentence": "two"}]},
        "memorization": {
            "words": "no attack that we ran succeeded",
            "models": {
                "winner": [
                    {
                        "name": "loss",
                        "auc": 0.56,
                        "null": 0.54,
                        "value": 0.02,
                        "low": -0.1,
                        "high": 0.1,
                        "tpr": 0.1,
                        "fpr": 0.1,
                    }
                ]
            },
            "recipes": {},
            "generalization": {"all": band(0.05)},
        },
    }


def test_a_gap_is_told_with_its_null_its_test_and_what_could_be_seen(numbers):
    first, second, unknown, even = patient_words.gap_lines(numbers)
    assert first == (
        "sex: gap shown (AUROC 0.041 (0.010 to 0.070), about 0.012 without any bias, p 0.004, "
        "smallest detectable 0.030); lora_r8 gap below 0.034"
    )
    assert second.startswith("age: cannot tell (")
    assert "lora_r8" not in second  # not measured there
    assert "sex is unknown for 20% of the patients" in unknown
    assert "0.020 instead of 0.040" in even


def test_a_gap_without_a_test_says_no_more_than_its_word(numbers):
    bare = numbers["fairness"]["models"]["winner"]["gaps"][0]
    bare["mean"] |= {"low": None, "expected": None, "detectable": None}
    bare["p"] = None
    assert patient_words.gap_lines(numbers)[0].startswith("sex: gap shown (AUROC 0.041); ")
    bare["mean"] = None
    assert patient_words.gap_lines(numbers)[0].startswith("sex: gap shown; ")


def test_the_group_that_lost_most_is_named(numbers):
    (line,) = patient_words.change_lines(numbers)
    assert "sex=F -0.020 (-0.030 to -0.010), all 2 groups together" in line


def test_decisions_name_counted_groups_alone(numbers):
    rates, missed, alarms, odds = patient_words.operating_lines(numbers)
    assert "sensitivity 0.900 (0.800 to 0.950)" in rates
    assert missed == "missed findings, share of positive images: sex=F 13%"
    assert "found 90% of the positives on search" in rates
    assert alarms == (
        "false alarms, share of negative images where they differ most: view=AP 38%, view=PA 12%"
    )
    assert "0.100 (equalized odds)" in odds
    assert "positive n/a" in odds


def test_calibration_leaves_out_slopes_of_too_few(numbers):
    whole, error, worst = patient_words.calibration_lines(numbers)
    assert whole.startswith("slope 0.90 (0.89 to 0.91)")
    assert error == "calibration error, mean over labels: 0.030"
    assert worst.startswith("slope furthest from 1 among 1: sex=F, 1.60 (1.59 to 1.61); the furth")
    numbers["best"]["operating"]["calibration"]["all"]["ece"] = 0.0
    assert patient_words.calibration_lines(numbers)[1].endswith(
        "not above what chance alone makes"
    )


def test_several_labels_are_named(numbers):
    numbers["thresholds"] = {"x": 0.5, "y": 0.5}
    for row in numbers["groups"]:
        row["label"] = "y"
    assert "sex=F y 13%" in patient_words.operating_lines(numbers)[1]
    gap_ = numbers["fairness"]["models"]["winner"]["gaps"][0]
    gap_["labels"] = [{"label": "x", **band(0.02)}, {"label": "y", **band(0.2)}]
    assert patient_words.gap_lines(numbers)[1] == (
        "sex, the label with the largest gap: y 0.200 (0.190 to 0.210)"
    )


def test_the_rest(numbers):
    assert patient_words.contribution_lines(numbers) == ["fine-tuning: adds"]
    assert patient_words.simple_lines(numbers) == [
        "8 x 8 pixels: AUROC 0.900 (0.800 to 0.950) on test, winner minus it "
        "+0.010 (+0.000 to +0.020)",
        "neighbors on frozen features: AUROC n/a on test, winner minus it n/a",
    ]
    assert patient_words.shortcut_lines(numbers) == ["one", "two"]
    words, attack, general = patient_words.memorization_lines(numbers)
    assert words.startswith("winner: no attack that we ran succeeded; the search chose on these")
    assert "AUC 0.560, minus the null's 0.540 +0.020" in attack
    assert "+0.020 (-0.100 to +0.100); it finds 10% of" in attack
    assert general.endswith("+0.050 (+0.040 to +0.060)")


@pytest.mark.parametrize("lines", EVERY)
def test_an_old_result_says_nothing(lines):
    assert lines({"contrast": {"baseline": "lora_r8"}, "best": {}, "groups": []}) == []


def test_a_temperature_is_told_with_what_it_mends_and_what_not(numbers):
    assert patient_words._temperature_lines(numbers["best"]) == []
    told = numbers["best"]["operating"]
    told["temperature"] = {"x": 1.4}
    told["log_loss"] = 0.61
    after = {"all": {"ece": 0.02, "classes": {"x": {"intercept": None, "slope": band(1.02)}}}}
    told["after_temperature"] = {"log_loss": 0.55, "calibration": after}
    numbers["best"]["config"] = {"train": {"loss": "bce", "sampling": "plain"}}
    (line,) = patient_words._temperature_lines(numbers["best"])
    assert "(1.40)" in line
    assert "slope 0.90 -> 1.02" in line
    assert "log-loss 0.610 -> 0.550" in line
    assert "prevalence" not in line
    numbers["best"]["config"]["train"]["sampling"] = "group"
    assert "prevalence" in patient_words._temperature_lines(numbers["best"])[0]
    assert line in patient_words.calibration_lines(numbers)[1]
    told["temperature"] = {"x": None}
    assert patient_words._temperature_lines(numbers["best"]) == []


def test_planted_labels_are_told_beside_what_chance_repeats(numbers):
    fitted = {"share": 0.7, "by_chance": 0.2, "excess": 0.5, "planted": 40}
    numbers["memorization"]["planted"] = {"winner": fitted, "full": None}
    (line,) = [t for t in patient_words.memorization_lines(numbers) if "on purpose" in t]
    assert "40 labels" in line
    assert "repeats 70% of them" in line
    assert "20% of such labels" in line
