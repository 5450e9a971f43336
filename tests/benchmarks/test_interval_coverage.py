"""The simulation behind the coverage table: its truth is true, and it goes on where it stopped."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import interval_coverage as coverage  # noqa: E402

from autopeft.metrics.classification import auroc, fit_threshold, sensitivity  # noqa: E402
from autopeft.metrics.groups import class_counts  # noqa: E402

SMALL = [
    coverage.Setting(40, 15),
    coverage.Setting(80, 40, kind="bands"),
    coverage.Setting(40, 15, kind="operating"),
]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(coverage, "SETTINGS", SMALL)
    monkeypatch.setattr(coverage, "RESAMPLES", 20)


def lines(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_truth_is_the_auroc_of_a_large_table():
    s = coverage.Setting(30_000, 9_000, auroc=0.9)
    a, b = coverage.table(np.random.default_rng(0), s, models=2)
    assert auroc(a) == pytest.approx(0.90, abs=0.004)
    assert auroc(b) == pytest.approx(0.87, abs=0.004)
    positive, negative = class_counts(a)
    assert (positive[0], negative[0]) == (9_000, 21_000)
    level = np.corrcoef(a.score[:-1, 0], a.score[1:, 0])[0, 1]
    assert level > 0.3  # images of one patient stand side by side


def test_the_truth_at_an_operating_point_is_that_of_a_large_table():
    s = coverage.Setting(200, 60, kind="operating")
    found = {m: value for m, _, value in coverage.operating_methods(np.random.default_rng(3), s)}
    (search,) = coverage.table(np.random.default_rng(3), s)
    large = coverage.table(np.random.default_rng(9), coverage.Setting(40_000, 12_000))[0]
    truth = sensitivity(large, fit_threshold(search))["finding"]
    assert found["sensitivity, refitted"] == found["sensitivity, frozen"]
    assert found["sensitivity, frozen"] == pytest.approx(truth, abs=0.01)


def test_it_goes_on_where_it_stopped(small, tmp_path, monkeypatch, capsys):
    def call(path, *args):
        monkeypatch.setattr(sys, "argv", ["interval_coverage.py", str(path), *args])
        coverage.main()
        return capsys.readouterr().out

    twice, once = tmp_path / "twice.csv", tmp_path / "once.csv"
    call(twice, "--repeats", "1")
    call(twice, "--repeats", "2")
    printed = call(once, "--repeats", "2")
    assert len(lines(once)) == 2 * (8 + 4 + 2)
    assert sorted(lines(twice)) == sorted(lines(once))
    assert call(once, "--repeats", "2", "--only", "bands") == printed
    assert call(once, "--summary") == printed
    assert printed.count("|tables|") == 3
    assert "|40|15|3|0.85|2|" in printed
    assert call(tmp_path / "none.csv", "--minutes", "0") == ""


def test_the_summary_counts(small, tmp_path, capsys):
    path = tmp_path / "some.csv"
    rows = [("0.1", "0.0", "0.2"), ("0.1", "0.0", "0.2"), ("0.5", "0.4", "0.6"), ("", "", "")]
    with path.open("w", newline="") as file:
        for seed, bounds in enumerate(rows):
            csv.writer(file).writerow([SMALL[0].name, seed, "one", *bounds, 0.15])
    coverage.summary(path)
    assert "|40|15|3|0.85|4|66.7 (0.200, 1 undefined)|" in capsys.readouterr().out
    coverage.summary(path, least=5)
    assert capsys.readouterr().out == ""
