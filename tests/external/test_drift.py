import json

import numpy as np
import pytest

from autopeft.external.drift import difference, drift, recorded


def row(label="ill", **metrics):
    told = dict.fromkeys(
        ("auroc", "average_precision", "brier", "sensitivity", "specificity", "ppv",
         "calibration_intercept", "calibration_slope")
    )  # fmt: skip
    return {"label": label, "metrics": told | metrics}


def at(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def run_numbers(name="winner"):
    table = {
        "fingerprint": "abc",
        "test": {"auroc": at(0.9, 0.85, 0.94)},
        "operating": {
            "rates": {"sensitivity": at(0.88, 0.8, 0.93), "specificity": None},
            "average_precision": 0.7,
            "calibration": {
                "all": {
                    "brier": at(0.1, 0.08, 0.12),
                    "classes": {"ill": {"intercept": at(0.0, -0.2, 0.2), "slope": None}},
                },
                "sex=F": {"brier": None, "classes": {"ill": {"slope": at(1.0, 0.8, 1.2)}}},
            },
        },
    }
    groups = [
        {"model": name, "attribute": "sex", "group": "sex=F", "label": "ill", "auroc": 0.8,
         "missed": 0.2, "interval": at(0.8, 0.7, 0.88)},
        {"model": "someone else", "attribute": "sex", "group": "sex=F", "label": "ill",
         "auroc": 0.1, "missed": None, "interval": None},
    ]  # fmt: skip
    return {
        "best": table, "baselines": {"lora_r8": {**table, "fingerprint": "other"}},
        "groups": groups, "thresholds": {"ill": 0.3},
    }  # fmt: skip


def test_every_number_that_was_recorded_is_held_against_the_new_one():
    labels = [row(
        auroc=at(0.8, 0.7, 0.9), average_precision=at(0.5, 0.4, 0.6), brier=at(0.2, 0.18, 0.22),
        sensitivity=at(0.7, 0.6, 0.8), specificity=at(0.6, 0.5, 0.7),
        calibration_intercept=at(1.0, 0.8, 1.2), calibration_slope=at(0.5, 0.4, 0.6),
    )]  # fmt: skip
    groups = [
        {"attribute": "sex", "group": g, **row(auroc=at(0.75, 0.6, 0.85), sensitivity=at(0.9),
         calibration_slope=at(0.5, 0.4, 0.6))}
        for g in ("sex=F", "sex=M")
    ]  # fmt: skip
    found = {(r["group"], r["metric"]): r for r in drift("winner", run_numbers(), labels, groups)}
    assert set(found) == {
        (None, m)
        for m in ("auroc", "average_precision", "brier", "sensitivity", "calibration_intercept")
    } | {("sex=F", m) for m in ("auroc", "sensitivity", "calibration_slope")}
    assert found[None, "auroc"]["difference"]["value"] == pytest.approx(-0.1)
    assert found[None, "average_precision"]["difference"] == at(pytest.approx(-0.2))
    assert found["sex=F", "auroc"]["old"]["value"] == 0.8  # not of another model
    assert found["sex=F", "sensitivity"]["difference"]["value"] == pytest.approx(0.1)


def test_the_unpaired_interval_is_newcombe_s():
    # Newcombe 1998, method 10: 56/70 against 48/80, Wilson's intervals squared and added.
    from scipy.stats import binomtest

    def share(k, n):
        ci = binomtest(k, n).proportion_ci(method="wilson")
        return at(k / n, ci.low, ci.high)

    found = difference(share(56, 70), share(48, 80))
    assert found["value"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_it_covers_what_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(600):
        means = []
        for true, n in ((0.3, 40), (0.0, 80)):
            x = rng.normal(true, 1, n)
            half = 1.96 * x.std(ddof=1) / n**0.5
            means.append(at(x.mean(), x.mean() - half, x.mean() + half))
        found = difference(*means)
        hits += found["low"] < 0.3 < found["high"]
    assert 0.92 < hits / 600 < 0.98


def test_no_bounds_where_one_side_has_none():
    assert difference(at(0.5, 0.4, 0.6), at(0.6)) == at(pytest.approx(-0.1))


def test_the_run_is_found_above_the_folder_and_only_its_own_adapter(tmp_path):
    run = tmp_path / "run"
    for place in ("best", "baselines/lora_r8"):
        (run / place).mkdir(parents=True)
    assert recorded(run / "best", "abc") is None
    (run / "result.json").write_text(json.dumps(run_numbers()))
    assert recorded(run / "best", "abc")[0] == "winner"
    assert recorded(run / "baselines" / "lora_r8", "other")[0] == "lora_r8"
    assert recorded(run / "best", "put there later") is None
    assert recorded(tmp_path, "abc") is None
    (run / "result.json").write_text("{")
    assert recorded(run / "best", "abc") is None
