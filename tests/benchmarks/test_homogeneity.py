"""The simulation behind docs/fairness.md: its truth is what it says, and it goes on."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from autopeft.metrics.classification import auroc_binary

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "homogeneity.py"


@pytest.fixture(scope="module")
def homogeneity():
    import sys

    spec = importlib.util.spec_from_file_location("homogeneity", FILE)
    module = sys.modules["homogeneity"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_groups_have_the_aurocs_that_are_promised(homogeneity, monkeypatch):
    monkeypatch.setitem(homogeneity.SIZES, "many", [(3000, 5000)] * 4)
    scenario = homogeneity.Scenario("many", 0.1, "even", labels=2)
    assert scenario.aurocs.tolist() == pytest.approx([0.75, 0.75 + 1 / 30, 0.75 + 2 / 30, 0.85])
    p = homogeneity.simulate(scenario, np.random.default_rng(0))
    for group, truth in zip(homogeneity.GROUPS, scenario.aurocs, strict=True):
        rows = p.groups["group"] == group
        for c in range(2):
            found = auroc_binary(p.score[rows, c], p.target[rows, c])
            assert found == pytest.approx(truth, abs=0.015)


def test_it_goes_on_where_it_was(homogeneity, monkeypatch, tmp_path):
    small = [homogeneity.Scenario("10+/30-", gap) for gap in (0.0, 0.1)]
    monkeypatch.setattr(homogeneity, "scenarios", lambda: small)
    path = tmp_path / "gaps.csv"
    homogeneity.run(path, 2, 1)
    first = path.read_text()
    homogeneity.run(path, 3, 1)
    assert path.read_text().startswith(first)
    rows = homogeneity.read(path)
    assert [(r["gap"], r["table"]) for r in rows] == [
        ("0.0", "0"),
        ("0.0", "1"),
        ("0.1", "0"),
        ("0.0", "2"),
    ]
    text = "\n".join(homogeneity.lines(rows))
    assert "| 10+/30- | 1 | 3 |" in text
    assert "| 10+/30- | 0.1 | one group | 1 |" in text
