"""A plan: what it says, what it costs, and that it leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import pytest
from tiny_run import flags, tiny

import autopeft
from autopeft import planning, timing
from autopeft.errors import RunError, UserError
from autopeft.metrics.power import smallest_difference
from autopeft.plan_words import _power, duration, plan_lines, size
from autopeft.planning import plan

GROUPS = {"group": ("sex", "age:60"), "objective": "fairness", "inner": "holdout"}
MANY = {"patients": "400", "size": "32", "contrast": "2"}


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


def test_every_job_is_timed_where_there_are_groups(runs, monkeypatch):
    seen = {}

    def others_only(setup, facts, decode, seconds):
        rows = {split: timing._first(rows, timing.FEW) for split, rows in setup.rows.items()}
        watch = timing._Watch(facts, time.monotonic() + 600)
        seen.update(watch.others(replace(setup, rows=rows)))
        raise RunError("seen enough")

    monkeypatch.setattr(planning, "time_worker", others_only)
    plan(**tiny(runs, data_option=MANY, min_group=10, **GROUPS), timing=1.0)
    assert set(seen) == {"score", "readouts", "probe", "simple"}


def test_a_timing_that_fails_is_said(runs, monkeypatch):
    from autopeft import trial
    from autopeft.job import Outcome

    monkeypatch.setattr(trial, "run", lambda setup, job: Outcome("oom", "no memory"))
    found = plan(**tiny(runs), timing=1.0).numbers
    assert found["timing"] == {"none": "a rung job failed while timing: no memory"}


def test_groups_and_what_they_can_show(runs):
    options = tiny(runs, data_option=MANY, min_group=10, **GROUPS)
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
        worst = power["worst_group"][split]
        scored = [d["sides"] for n, d in power[split].items() if n != "all" and d["value"]]
        assert worst["groups"] == len(scored)
        assert (worst["value"] is None) == (not scored)
    worst = power["worst_group"]["test"]
    unpaired = [smallest_difference(s, 0.0) for s in scored]
    assert len(scored) == 4
    assert min(unpaired) <= worst["value"] <= max(unpaired) < worst["enough"]
    assert power["test"]["all"]["value"] < power["confirm"]["all"]["value"]
    assert set(found["gaps"]) == {"sex", "age:60"}
    text = "\n".join(plan_lines(found))
    assert 'expect "cannot tell" of equal models' in text
    assert "smallest detectable gap" in text
    assert "confirm, worst group: too few patients in every group" in text
    assert "or more: all groups must pass" in text


def worst_lines(margin, all_value=0.01, **changes):
    """The lines of POWER for a worst-group objective."""
    sides = {"sides": [[75, 225]], "low": 0.04, "high": 0.07, "times": 1.0}
    worst = {"groups": 4, "value": 0.116, "enough": 0.149, "times": 9.0} | changes
    sets = {"all": {**sides, "value": all_value}, "sex=F": {**sides, "value": 0.052}}
    return _power({
        "metric": "worst_group_auroc", "margin": margin, "confirm": sets, "test": sets,
        "worst_group": {"confirm": worst, "test": worst},
        "assumed": {
            "auroc": 0.85, "correlation": 0.8, "correlations": [0.9, 0.6], "alpha": 0.05,
            "power": 0.8,
        },
    })  # fmt: skip


def test_what_everyone_together_can_show_is_no_promise_for_the_worst_group():
    cannot, may, can = ("\n".join(worst_lines(m)) for m in (0.06, 0.13, 0.15))
    assert "a margin of .06 cannot be shown" in cannot
    assert "a margin of .13 may or may not be shown" in may
    assert "a margin of .15 can be shown" in can
    assert "the verdict will be" not in "\n".join(worst_lines(0.06, all_value=None))
    none = "\n".join(worst_lines(0.06, value=None, enough=None, times=None, groups=0))
    assert "too few patients in every group" in none
    assert "margin" not in none


def test_what_a_killed_plan_left_is_removed_by_a_later_one(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, new, other = (tmp_path / n for n in ("autopeft-plan-a", "autopeft-plan-b", "mine"))
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "image").write_text("x")
    for folder in (old, other):
        os.utime(folder, (1.0, 1.0))
    plan(**tiny(runs), timing=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["autopeft-plan-b", "mine"]


def test_a_wide_margin_can_be_shown(runs):
    found = plan(**tiny(runs, data_option=MANY, margin=0.5), timing=0).numbers
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
