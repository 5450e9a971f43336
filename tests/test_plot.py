"""Figures hold what result.json holds, as well-formed SVG."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from autopeft.plot import Point, plot_front, plot_groups, read_points

REPORT = Path(__file__).parent / "report"
SVG = "{http://www.w3.org/2000/svg}"


def load(name):
    return json.loads((REPORT / f"{name}.json").read_text())


def parse(figure):
    return ElementTree.fromstring(figure.svg)


def titles(figure):
    """The tooltips of all marks."""
    found = (g.find(f"{SVG}title") for g in parse(figure).iter(f"{SVG}g"))
    return [title.text for title in found if title is not None]


def shown(figure):
    return ["".join(t.itertext()) for t in parse(figure).iter(f"{SVG}text")]


def test_points_are_the_fully_trained_trials():
    points = read_points(REPORT, ["auroc", "worst_group_auroc"])
    lines = (REPORT / "trials.csv").read_text().splitlines()
    assert len(points) == sum(",complete," in line for line in lines)
    assert {p.number for p in points} >= {9, 14, 21}
    assert [p.feasible for p in points if p.number == 14] == [True]
    assert not all(p.feasible for p in points)


def test_points_without_a_file_or_a_value(tmp_path):
    assert read_points(tmp_path, ["auroc"]) == []
    text = "number,state,fingerprint,auroc\n0,complete,a,\n1,complete,b,0.5\n2,pruned,c,0.4\n"
    (tmp_path / "trials.csv").write_text(text)
    assert read_points(tmp_path, ["auroc"]) == [Point(1, "b", {"auroc": 0.5})]


def test_front_of_two_terms():
    numbers = load("binary")
    figure = plot_front(numbers, read_points(REPORT, ["auroc", "worst_group_auroc"]))
    said = titles(figure)
    assert "trial 14, winner: AUROC 0.874, worst group AUROC 0.851" in said
    assert sum("winner" in t for t in said) == 1
    filled = [c for c in parse(figure).iter(f"{SVG}circle") if c.get("class") == "p1"]
    assert len(filled) == len(numbers["front"]) + 1  # and one in the legend
    assert {"AUROC", "worst group AUROC", "constraint not met", "baselines"} <= set(shown(figure))
    assert any(path.get("class") == "re" for path in parse(figure).iter(f"{SVG}path"))


def test_front_goes_up_and_right():
    def at(number):
        group = re.search(rf"trial {number}[,:].*?cx=\"([\d.]+)\" cy=\"([\d.]+)\"", figure.svg)
        return float(group[1]), float(group[2])

    figure = plot_front(load("binary"))
    assert at(14)[0] < at(21)[0] < at(9)[0]  # auroc .874 .879 .883
    assert at(14)[1] < at(21)[1] < at(9)[1]  # worst group .851 .844 .838: higher is up


def test_front_of_one_term_is_a_ranking():
    figure = plot_front(load("multilabel"), read_points(REPORT, ["auroc"]))
    values = [float(t.split()[-1]) for t in titles(figure)]
    assert values == sorted(values, reverse=True)
    assert "fully trained trials, best first" in shown(figure)


def test_a_term_to_minimize_is_ranked_upwards():
    numbers = load("multilabel")
    for entry in numbers["front"]:
        entry["values"] = {"brier": 0.1}
    points = [Point(1, "a", {"brier": 0.3}), Point(2, "b", {"brier": 0.2})]
    said = titles(plot_front(numbers, points))
    assert [float(t.split()[-1]) for t in said] == [0.1, 0.2, 0.3]


def test_no_front_no_figure():
    assert plot_front({**load("binary"), "front": []}) is None
    numbers = load("multilabel")
    numbers["front"][0]["values"] = {"auroc": None}
    assert plot_front(numbers) is None


def test_one_single_value_has_an_axis():
    numbers = {**load("multilabel"), "reference": {}}
    assert titles(plot_front(numbers)) == ["trial 9, winner: AUROC 0.891"]


def test_groups_show_both_models_and_what_is_not_scored():
    numbers = load("binary")
    figure = plot_groups(numbers, "pneumonia")
    rows = [r for r in numbers["groups"] if r["model"] == "winner"]
    assert len(titles(figure)) == 2 * (1 + sum(r["auroc"] is not None for r in rows))
    row = next(r for r in rows if r["group"] == "race=Black")["interval"]
    text = f"race=Black: {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    assert text in titles(figure)
    assert {"all patients", "n/a (12+/3-)", "sex unknown", "lora_r8_group"} <= set(shown(figure))


def test_groups_of_several_labels_have_dots_only():
    numbers = load("binary")
    numbers["thresholds"] = {"pneumonia": 0.3, "Edema": 0.2}
    for row in numbers["groups"]:
        row["interval"] = None
    figure = plot_groups(numbers, "pneumonia")
    assert "race=Black: 0.846" in titles(figure)
    assert not any(p.get("class") == "l1" for p in parse(figure).iter(f"{SVG}path"))


@pytest.mark.parametrize("label", ["Edema", "pneumonia"])
def test_no_groups_no_figure(label):
    assert plot_groups(load("multilabel"), label) is None


def test_names_are_escaped_and_long_ones_cut():
    text = json.dumps(load("binary")).replace("sex=F", "sex=<b>&" + 40 * "x")
    figure = plot_groups(json.loads(text), "pneumonia")
    assert any(t.startswith("sex=<b>&xxx: ") is False and "sex=<b>&x" in t for t in titles(figure))
    assert any("…" in t for t in shown(figure))
    assert "<b>" not in figure.svg


def test_a_figure_is_shown_by_a_notebook_and_saved(tmp_path):
    figure = plot_groups(load("binary"), "pneumonia")
    path = figure.save(tmp_path / "groups.svg")
    assert path.read_text() == figure.svg == figure._repr_svg_()
    assert ElementTree.parse(path).getroot().get("aria-label").startswith("AUROC by group")


def test_each_label_has_its_own_values():
    numbers = load("binary")
    numbers["thresholds"] = {"pneumonia": 0.3, "Edema": 0.2}
    for row in list(numbers["groups"]):
        numbers["groups"].append({**row, "label": "Edema", "interval": None, "auroc": 0.111})
    assert not any("0.111" in t for t in titles(plot_groups(numbers, "pneumonia")))
    assert "sex=F: 0.111" in titles(plot_groups(numbers, "Edema"))
