"""What a backbone cannot have is left out of its space, and said; mistakes are not."""

from __future__ import annotations

import pytest

from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError
from autopeft.methods import METHODS, canonical
from autopeft.space import read_space
from autopeft.suited import suited

TEXT = """
methods:
  vpt_deep: {p: 5, lr: 1e-2}
  oft: {oft_block_size: {choices: [7, 16, 32]}, last: {choices: [half, all]}, lr: 1e-3}
  lora: {r: {choices: [2, 4]}, modules: {choices: [qkv, conv1, all]}, lr: 1e-3}
defaults:
  - {method: vpt_deep}
  - {method: oft, oft.oft_block_size: 7, oft.last: all}
  - {method: lora, lora.modules: qkv}
"""


@pytest.fixture(scope="module")
def facts():
    return {n: random_backbone(n, s).facts for n, s in (("test_vit", 32), ("test_resnet", 64))}


def fit(text, facts):
    space = read_space(text, "f")
    space.check_names(METHODS)
    return suited(space, facts, METHODS, canonical)


def test_methods_and_choices_go_and_one_line_says_so(facts):
    space, line = fit(TEXT, facts["test_vit"])
    assert line == (
        "left out, as this backbone cannot have it: oft.oft_block_size = 7; modules conv1"
    )
    assert space.fields["oft.oft_block_size"].extremes == (16, 32)
    assert space.fields["lora.modules"].extremes == ("qkv", "all")
    space, line = fit(TEXT, facts["test_resnet"])
    assert "vpt_deep" in line
    assert "vpt_deep" not in space.methods
    assert space.fields["lora.modules"].extremes == ("conv1", "all")
    space.check(facts["test_resnet"], METHODS, True, canonical)


def test_warm_starts_lose_what_was_left_out(facts):
    space, _ = fit(TEXT, facts["test_vit"])
    assert [dict(p) for p in space.points] == [
        {"method": "vpt_deep"}, {"method": "oft", "oft.last": "all"},
        {"method": "lora", "lora.modules": "qkv"},
    ]  # fmt: skip
    space, _ = fit(TEXT, facts["test_resnet"])
    assert "vpt_deep" not in [p["method"] for p in space.points]


def test_nothing_is_changed_where_all_is_possible(facts):
    text = "methods: {lora: {r: {choices: [2, 4]}, last: {choices: [half, all]}, lr: 1e-3}}"
    space, line = fit(text, facts["test_resnet"])
    assert line == ""
    assert space == read_space(text, "f")


def test_parts_go_too(facts):
    text = """
strata:
  prompts: {method: vpt_deep, p: 5}
  ranks: {method: lora, r: {choices: [2, 4]}, use: {choices: [true, false]}}
train: {lr: 1e-3}
defaults: [{prompts.p: 5, ranks.r: 2}]
"""
    space, line = fit(text, facts["test_resnet"])
    assert list(space.parts) == ["ranks"]
    assert [dict(p) for p in space.points] == [{"ranks.r": 2}]
    assert line.startswith("left out, as this backbone cannot have it: prompts (")


def test_a_space_without_anything_left_is_one_line(facts):
    with pytest.raises(UserError, match="f, methods: nothing of it is possible on this backbone"):
        fit("methods: {vpt_deep: {p: 5, lr: 1e-2}}", facts["test_resnet"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("methods: {lora: {r: {choices: [0, 4]}, lr: 1e-3}}", "r = 0 is not possible"),
        ("methods: {hra: {r: {choices: [8, 999]}, lr: 1e-3}}", "r = 999 is not possible"),
        (
            "methods: {spafit: {r: {choices: [4, 8]}, lora_alpha: {choices: [r]}, lr: 1e-3}}",
            "lora_alpha = 'r' is not",
        ),
    ],
)
def test_what_no_backbone_can_have_is_a_mistake(text, said, facts):
    space, line = fit(text, facts["test_vit"])
    assert line == ""
    with pytest.raises(UserError, match=said):
        space.check(facts["test_vit"], METHODS, True, canonical)
