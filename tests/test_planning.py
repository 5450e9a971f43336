"""A plan: what it says, what it costs, and that it leaves nothing behind."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from tiny_run import flags, tiny

import autopeft
from autopeft.errors import UserError
from autopeft.plan_words import duration, plan_lines, size
from autopeft.planning import plan

GROUPS = {"group": ("sex", "age:60"), "objective": "fairness", "inner": "holdout"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of runs that the plans of this file share, for the phantom's images."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(runs):
    """The plan of a tiny run, timed for as short as it goes."""
    return plan(**tiny(runs, trials=9, name="first"), timing=1.0).numbers


def test_it_leaves_nothing_but_the_cache(found, runs):
    assert [p.name for p in runs.iterdir()] == [".cache"]
    # No decoded images either: the few of the timing are thrown away.
    assert all(p.name.startswith("phantom-") for p in (runs / ".cache").iterdir())


def test_it_is_plain_data(found):
    assert json.loads(json.dumps(found, allow_nan=False)).keys() >= {
        "run", "state", "data", "groups", "inner", "power", "gaps", "timing", "seconds",
        "search", "budget", "disk", "memory", "protocol",
    }  # fmt: skip
    assert (found["run"], found["state"], found["budget"]) == ("first", "new", None)


def test_the_data_are_counted(found):
    data = found["data"]
    assert data["patients"] == 60
    assert sum(s["patients"] for s in data["splits"].values()) == 60
    assert sum(s["images"] for s in data["splits"].values()) == data["images"]
    test = data["splits"]["test"]["classes"]["lesion"]
    assert test["positives"] + test["negatives"] == data["splits"]["test"]["patients"]
    assert data["identical"] == {"copies": 0, "patients": 0, "splits": 0, "whole": True}


def test_times_are_ranges_and_add_up(found):
    seconds = found["seconds"]
    parts = seconds["parts"]
    assert list(parts) == [
        "start", "decode", "prefix", "baselines", "search", "confirm", "test", "answer",
    ]  # fmt: skip
    for part in (*parts.values(), seconds["total"]):
        assert 0 < part["low"] <= part["value"] <= part["high"] < 600
    for key in ("low", "high"):
        assert seconds["total"][key] == pytest.approx(sum(p[key] for p in parts.values()))
    assert 0 < seconds["confirm_share"] < 1
    assert found["search"]["trials"] == 9
    assert found["search"]["rungs"][0] >= 9
    assert found["search"]["finished"][0] >= 1
    assert all(v >= 0 and math.isfinite(v) for v in found["disk"].values())
    assert found["memory"]["worker"] > 10**8


def test_more_work_takes_longer(found, runs):
    more = plan(**tiny(runs, trials=27, epochs=9, seeds=4), timing=1.0).numbers["seconds"]["parts"]
    few = found["seconds"]["parts"]
    for part in ("baselines", "search", "confirm"):
        assert more[part]["value"] > few[part]["value"]


def test_two_workers_take_less_and_ray_is_not_started(found, runs):
    two = plan(**tiny(runs, trials=9, runner="ray", workers=2), timing=1.0).numbers
    assert two["seconds"]["workers"] == 2
    if "ray" in sys.modules:
        assert not sys.modules["ray"].is_initialized()


def test_a_budget_says_what_fits(runs):
    def fits(budget):
        return plan(**tiny(runs, trials=24, budget=budget), timing=1.0).numbers["budget"]

    little, plenty = fits(1.0), fits(36_000.0)
    assert little["slow"]["trials"] == little["fast"]["trials"] == 1
    assert plenty["slow"]["trials"] == plenty["asked"] == 24
    assert little["kept_back"] > 0


def test_without_a_timing_there_are_no_times(runs):
    found = plan(**tiny(runs), timing=0).numbers
    assert found["timing"] == {"none": "--timing 0"}
    assert "seconds" not in found
    assert "TIME     not estimated: --timing 0" in plan_lines(found)


def test_a_timing_that_fails_is_said(runs, monkeypatch):
    from autopeft import trial
    from autopeft.job import Outcome

    monkeypatch.setattr(trial, "run", lambda setup, job: Outcome("oom", "no memory"))
    found = plan(**tiny(runs), timing=1.0).numbers
    assert found["timing"] == {"none": "a rung job failed while timing: no memory"}


def test_groups_and_what_they_can_show(runs):
    many = {"patients": "400", "size": "32", "contrast": "2"}
    options = tiny(runs, data_option=many, **{**GROUPS, "min_group": 10})
    found = plan(**options, timing=0).numbers
    assert set(found["groups"]["counted"]) == {"sex", "age:60"}
    assert found["inner"]["chosen"] == "holdout"
    power = found["power"]
    assert power["metric"] == "worst_group_auroc"
    for split in ("confirm", "test"):
        every = power[split]["all"]
        assert every["low"] < every["value"] < every["high"]
        groups = [d["value"] for name, d in power[split].items() if name != "all"]
        assert all(value is None or value > every["value"] for value in groups)
    assert power["test"]["all"]["value"] < power["confirm"]["all"]["value"]
    assert set(found["gaps"]) == {"sex", "age:60"}
    text = "\n".join(plan_lines(found))
    assert 'expect "cannot tell" of equal models' in text
    assert "smallest detectable gap" in text


def test_a_wide_margin_can_be_shown(runs):
    many = {"patients": "400", "size": "32", "contrast": "2"}
    found = plan(**tiny(runs, data_option=many, margin=0.5), timing=0).numbers
    assert any("can be shown" in line and "cannot" not in line for line in plan_lines(found))


def test_two_plans_of_one_run_declare_the_same(runs):
    one, two, other = (
        plan(**tiny(runs, **changes), timing=0).numbers["protocol"]
        for changes in ({}, {"name": "another"}, {"margin": 0.02})
    )
    assert one == two
    assert one["sha256"] != other["sha256"]


def test_bad_input_is_that_of_a_search(tmp_path):
    table = tmp_path / "labels.csv"
    rows = [f"gone{i}.png,{i},{i % 2}" for i in range(60)]
    table.write_text("\n".join(["path,patient_id,label", *rows]))
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="60 of 60 images are missing"):
        plan(str(table), **tiny(runs, data_option=None))
    with pytest.raises(UserError, match="--space"):
        plan(**tiny(runs, space="quikc"))
    assert not runs.exists()


def test_the_command_line_prints_it_and_writes_nothing(tmp_path):
    words = flags(tiny(tmp_path / "runs", name="x"))
    done = subprocess.run(
        [sys.executable, "-m", "autopeft.cli", "plan", *words, "--timing", "0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line.split()[0] for line in done.stdout.splitlines() if line[:1].isupper()]
    assert heads[:4] == ["DATA", "GROUPS", "POWER", "TIME"]
    assert str(tmp_path) not in done.stdout
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".cache"]


def test_words():
    assert duration(11 * 60, 18 * 60) == "about 11 to 18 min"
    assert duration(3, 7.6) == "about 3 to 8 s"
    assert duration(100, 130) == "about 1.7 to 2.2 min"
    assert duration(7200, 36000) == "about 2 to 10 h"
    assert (size(1.5e9), size(2e6), size(3000), size(5)) == ("1.5 GB", "2.0 MB", "3.0 kB", "5 B")


def test_the_public_name():
    assert autopeft.plan is plan
