"""The page says what result.json says, loads nothing, and reads no name as markup."""

import copy
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autopeft.report import write_report

HERE = Path(__file__).parent
NEVER = ("safe", "unbiased", "private", "approved", "clinically validated")


class Page(HTMLParser):
    """Tables as {id: rows of cell texts}, every tag with its attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.tags, self.text, self.open = {}, [], [], []
        self._cell = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag != "meta":
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables[attrs["id"]] = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._cell = []
        if tag in ("small", "b") and self._cell is not None:
            self._cell.append(" ")

    def handle_startendtag(self, tag, attrs):  # <path/>
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self._rows[-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)
        if self._cell is not None:
            self._cell.append(data)


def load(name):
    return json.loads((HERE / f"{name}.json").read_text())


def rename(numbers, old, new):
    """The same numbers with another name everywhere, keys included."""
    return json.loads(json.dumps(numbers).replace(old, json.dumps(new)[1:-1]))


def many_labels():
    """Fourteen labels in nine groups: the largest page that a known data set makes."""
    numbers = load("binary")
    rows, numbers["groups"], numbers["thresholds"] = numbers["groups"], [], {}
    for index in range(14):
        label = f"Finding number {index}"
        numbers["thresholds"][label] = 0.3
        numbers["groups"] += [{**row, "label": label, "interval": None} for row in rows]
        for model in (numbers["best"], *numbers["baselines"].values()):
            model["test"][f"auroc:{label}"] = model["test"]["auroc"]
    return numbers


def without_intervals():
    """What a tiny test set leaves: no interval, no seeds, no scored group."""
    numbers = load("binary")
    for model in (numbers["best"], *numbers["baselines"].values()):
        model["test"], model["confirm"] = {}, {}
        model["seeds"] = {"repeats": 1, "test": {}, "confirm": {}}
        model.pop("recipe")
    numbers["contrast"] |= {"adapter": None, "recipe": None, "others": {}}
    numbers["accuracy_kept"] |= {"kept": False, "difference": None, "floor": None}
    for row in numbers["groups"]:
        row |= {"auroc": None, "interval": None, "missed": None, "text": "n/a (2+/3-)"}
    numbers["thresholds"] = {"pneumonia": None}
    numbers["optimism"] = {"metric": "auroc", "looks": 4, "candidates": 2, "asked": 2}
    numbers["front"], numbers["reference"], numbers["notes"] = [], {}, []
    numbers["backbone"].pop("params")
    return numbers


PAGES = {
    "binary": lambda: load("binary"),
    "multilabel": lambda: load("multilabel"),
    "many_labels": many_labels,
    "without_intervals": without_intervals,
    "a label that is markup": lambda: rename(
        load("binary"), "pneumonia", "<script>alert('x')</script>[bold]"
    ),
    "a group that is markup": lambda: rename(load("binary"), "sex=F", 'sex="><img src=x>'),
    "two labels that are markup": lambda: rename(load("multilabel"), "Edema", "{{ 7*7 }}</table>"),
}


def write(folder, numbers, trials=True):
    if trials:
        shutil.copy(HERE / "trials.csv", folder)
    return write_report(folder, numbers).read_text()


def cell(value, signed=False):
    form = "{:+.3f}" if signed else "{:.3f}"
    if value is None:
        return "n/a"
    value, low, high = (form.format(value[k]) for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_one_small_accessible_file(name, tmp_path):
    html = write(tmp_path, PAGES[name]())
    page = Page(html)  # asserts that every tag is closed in order
    assert page.open == []
    assert len(html.encode()) < 200_000
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "img", "link", "iframe", "object"} & set(tags)
    assert not any({"src", "href", "onload", "onerror"} & set(a) for _, a in page.tags)
    assert not re.search(r"https?://", html.replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"url\(|@import", html)
    assert "default-src 'none'" in html
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert tags.count("h1") == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["aria-describedby"] for _, a in page.tags if "aria-describedby" in a} <= set(ids)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "trials.csv"]


@pytest.mark.parametrize("name", PAGES)
def test_words_that_are_never_used(name, tmp_path):
    text = " ".join(Page(write(tmp_path, PAGES[name]())).text)
    assert "RESEARCH USE, not a medical device" in text
    for word in NEVER:
        assert not re.search(rf"\b{word}\b", text, re.IGNORECASE), word


def test_verdict_comes_first(tmp_path):
    numbers = load("binary")
    text = " ".join(" ".join(Page(write(tmp_path, numbers)).text).split())
    assert text.index(numbers["run"]) < text.index(numbers["verdict"]) < text.index("Winner")
    contrast = cell(numbers["contrast"]["adapter"], signed=True)
    assert text.index(numbers["verdict"]) < text.index(contrast) < text.index("Winner")


@pytest.mark.parametrize(("name", "metrics"), [("binary", 2), ("multilabel", 1)])
def test_every_number_of_the_models_table_is_the_result_s(name, metrics, tmp_path):
    numbers = load(name)
    head, *rows = Page(write(tmp_path, numbers)).tables["models"]
    models = {"winner": numbers["best"], **numbers["baselines"]}
    shown = ["auroc", "worst_group_auroc"][:metrics]
    assert len(head) == 3 + 4 * metrics
    assert [row[0].split()[0] for row in rows] == list(models)
    for row, (key, model) in zip(rows, models.items(), strict=True):
        expected = [f"{model['trainable_params']:,}"]
        for metric in shown:
            expected += [cell(model["test"][metric]), f"{model['seeds']['test'][metric]:.3f}"]
        for metric in shown:
            fresh = model["seeds"]["confirm"][metric]
            expected += [cell(model["confirm"][metric]), f"{fresh:.3f}"]
        behind = numbers["contrast"]["others"].get(key)
        expected.append("" if key == "winner" else cell(behind, signed=True))
        assert row[1:] == expected
    opponents = [row[0].split()[0] for row in rows if "declared opponent" in row[0]]
    assert opponents == [numbers["contrast"]["baseline"]]


def test_groups_table_pairs_winner_and_opponent(tmp_path):
    numbers = load("binary")
    _, *rows = Page(write(tmp_path, numbers)).tables["groups"]
    by_model = {
        model: [r for r in numbers["groups"] if r["model"] == model]
        for model in ("winner", "lora_r8_group")
    }
    for row, mine, theirs in zip(rows, *by_model.values(), strict=True):
        name = mine["group"] if mine["group"] != "unknown" else f"{mine['attribute']} unknown"
        assert row[0] == name + ("" if mine["counted"] else " not counted")
        assert row[1] == f"{mine['positives']} / {mine['negatives']}"
        for shown, source in zip(row[2:4], (mine, theirs), strict=True):
            assert shown == (cell(source["interval"]) if source["interval"] else source["text"])
        for shown, source in zip(row[4:], (mine, theirs), strict=True):
            assert shown == ("n/a" if source["missed"] is None else f"{source['missed']:.0%}")
    assert "n/a (12+/3-)" in rows[5]


def test_labels_readouts_front_and_external_checks(tmp_path):
    numbers = load("multilabel")
    tables = Page(write(tmp_path, numbers)).tables
    assert [row[0] for row in tables["labels"][1:]] == list(numbers["thresholds"])
    assert tables["labels"][4][1] == cell(numbers["best"]["test"]["auroc:Edema"])
    assert tables["labels"][5][3] == "n/a"  # no threshold
    assert tables["external"][1][3] == cell(numbers["best"]["valid_radiologist"]["auroc"])
    assert tables["front"][1][0] == "9 (winner)"
    assert tables["front"][1][2] == "0.891"
    head, *rows = tables["readouts"]
    assert head == ["after block", "token", "avg", "token+avg"]
    assert [row[0] for row in rows] == [str(b) for b in range(1, 13)]
    best = f"{numbers['readout']['block']}|{numbers['readout']['pool']}"
    shown = [c for row in rows for c in row if c.endswith("best")]
    assert shown == [f"{numbers['readout']['table'][best]:.3f} best"]


def test_numbers_that_are_missing_are_not_available(tmp_path):
    page = Page(write(tmp_path, without_intervals(), trials=False))
    for row in page.tables["models"][1:]:
        assert set(row[2:]) <= {"n/a", ""}
    text = " ".join(" ".join(page.text).split())
    assert "the declared contrast has no interval" in text
    assert "it needs at least 3 fresh seeds" in text
    assert "None" not in text
    assert "nan" not in text.split()


def test_a_user_s_names_are_text(tmp_path):
    label = "<script>alert('x')</script>[bold]"
    html = write(tmp_path, PAGES["a label that is markup"]())
    assert "<script" not in html
    assert any(label in data for data in Page(html).text)  # it is shown, as it is
    html = write(tmp_path, PAGES["two labels that are markup"]())
    assert ["{{ 7*7 }}</table>" in row for row in Page(html).tables["labels"][4]][0]


def test_no_path_of_the_user_s_files(tmp_path):
    numbers = load("binary")
    numbers["objective"] = "/home/alice/study/my_aim.py"
    numbers["space"] = r"C:\alice\my_space.yaml"
    html = write(tmp_path, numbers)
    assert "my_aim" in html
    assert "my_space" in html
    assert "alice" not in html
    assert str(tmp_path) not in html


def test_looks_and_unmet_constraints_are_told(tmp_path):
    numbers = copy.deepcopy(load("binary")) | {"look": 3, "feasible": False}
    text = " ".join(Page(write(tmp_path, numbers)).text)
    assert "look 3" in text
    assert "other runs have looked at these test patients before" in text
    assert "no trial met the constraints" in text
    assert "other runs" not in " ".join(Page(write(tmp_path, load("binary"))).text)
