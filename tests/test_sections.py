"""Strata, masks and cuts of a space: what is written, what is drawn, what is refused."""

from types import SimpleNamespace

import optuna
import pytest

from autopeft.errors import UserError
from autopeft.space import read_space

VIT = SimpleNamespace(
    depth=12,
    modules=dict.fromkeys(("qkv", "proj", "fc1", "fc2")),
    pools=("token", "avg", "token+avg"),
)
PARTS = """
strata:
  low: {method: bitfit, use: {choices: [true, false]}, until: {choices: [quarter, half]}}
  high:
    method: lora
    use: {choices: [true, false]}
    first: {choices: [half, 9]}
    r: {choices: [4, 8]}
    modules: qkv
readout: {block: {choices: [half, all]}}
train: {lr: {type: float, low: 1e-4, high: 1e-2, log: true}}
defaults:
  - {low.use: false, high.use: true, high.r: 8, train.lr: 1e-3}
"""
TEXT = """
methods:
  lora: {mask: each, r: 4, lr: 1e-3}
  spafit: {first: {choices: [0, quarter]}, c2: {blocks: [third, all, 2]}, lr: 1e-3}
  fairtune_mask: {attn: each, mlp: each, lr: 1e-4}
readout: {block: {choices: [half, all]}}
defaults:
  - {method: lora, lora.mask: third}
  - {method: lora, lora.mask: none, lora.mask.3: true}
  - {method: fairtune_mask, fairtune_mask.attn: half, fairtune_mask.mlp: none}
"""


def asked(text, **params):
    space = read_space(text, "f")
    return space.ask(optuna.trial.FixedTrial(params), VIT, True)


def parts(low=True, high=True, block="all", **others):
    params = {"low.use": low, "low.until": "quarter", "high.use": high, "high.first": "half"}
    params |= {"high.r": 8, "readout.block": block, "train.lr": 1e-3, **others}
    return asked(PARTS, **params)


# ---- strata -------------------------------------------------------------------------------------


def test_all_used_parts_are_strata_of_one_candidate():
    raw = parts()
    assert raw["strata"] == [
        {"method": "bitfit", "options": {}, "blocks": [0, 2]},
        {"method": "lora", "options": {"r": 8}, "blocks": [6, 11], "modules": "qkv"},
    ]
    assert raw["train"] == {"lr": 1e-3}


def test_parts_that_are_not_used_draw_nothing_else():
    assert [s["method"] for s in parts(low=False)["strata"]] == ["lora"]
    assert parts(low=False, high=False)["strata"] == []  # the linear probe
    study = optuna.create_study()
    study.enqueue_trial({"low.use": False})
    trial = study.ask()
    read_space(PARTS, "f").ask(trial, VIT, True)
    assert "low.until" not in trial.params


def test_cuts_count_from_the_bottom_and_end_at_the_readout():
    assert parts(block="half")["strata"][0]["blocks"] == [0, 1]  # a quarter of six
    assert parts(block="half")["strata"][1]["blocks"] == [3, 5]
    # Block 9 is above the readout: the part has no block left.
    assert [s["method"] for s in parts(block="half", **{"high.first": 9})["strata"]] == ["bitfit"]


def test_parameters_are_named_by_part():
    names = set(read_space(PARTS, "f").fit(VIT, True).distributions())
    assert names == {
        "low.use", "low.until", "high.use", "high.first", "high.r", "readout.block", "train.lr",
    }  # fmt: skip
    assert read_space(PARTS, "f").defaults(VIT) == [
        {"low.use": False, "high.use": True, "high.r": 8, "train.lr": 1e-3}
    ]


def test_one_mask_for_the_parts_without_a_placement():
    text = """
strata:
  a: {method: ssf}
  b: {method: lora, last: 2, r: 4}
mask: each
train: {lr: 1e-3}
defaults: [{mask: quarter}]
"""
    params = {f"mask.{i}": i in (1, 7) for i in range(12)}
    raw = asked(text, **params)
    mask = [int(i in (1, 7)) for i in range(12)]
    assert raw["strata"][0]["blocks"] == {"mask": mask}
    assert raw["strata"][1]["blocks"] == [10, 11]
    (point,) = read_space(text, "f").defaults(VIT)
    assert point == {f"mask.{i}": i >= 9 for i in range(12)}


def test_a_gaussian_process_needs_the_same_parameters_in_all_candidates():
    assert not read_space(PARTS, "f").single
    assert not read_space(TEXT, "f").single
    assert read_space("strata: {a: {method: lora, r: {choices: [2, 4]}}}", "f").single


# ---- masks, bits and cuts -----------------------------------------------------------------------


def test_a_mask_is_one_yes_or_no_a_block():
    params = {f"lora.mask.{i}": i in (0, 4) for i in range(12)}
    raw = asked(TEXT, method="lora", **{"readout.block": "all"}, **params)
    assert raw["strata"][0]["blocks"] == {"mask": [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]}


def test_bits_above_the_readout_are_not_drawn():
    params = {f"lora.mask.{i}": True for i in range(6)}  # a FixedTrial knows no others
    raw = asked(TEXT, method="lora", **{"readout.block": "half"}, **params)
    assert raw["strata"][0]["blocks"] == {"mask": [1] * 6 + [0] * 6}


def test_bits_of_an_option_come_as_a_list():
    params = {f"fairtune_mask.attn.{i}": i == 2 for i in range(12)}
    params |= {f"fairtune_mask.mlp.{i}": i == 3 for i in range(12)}
    raw = asked(TEXT, method="fairtune_mask", **{"readout.block": "all"}, **params)
    (stratum,) = raw["strata"]
    assert stratum["options"]["attn"] == [i == 2 for i in range(12)]
    assert stratum["options"]["mlp"] == [i == 3 for i in range(12)]
    assert "blocks" not in stratum


@pytest.mark.parametrize(
    ("block", "c2", "number"), [("all", "third", 4), ("half", "third", 2), ("all", 2, 2)]
)
def test_a_cut_is_a_number_of_blocks_for_the_method(block, c2, number):
    params = {"method": "spafit", "spafit.first": 0, "spafit.c2": c2, "readout.block": block}
    assert asked(TEXT, **params)["strata"][0]["options"] == {"c2": number}


def test_a_warm_start_says_all_bits_in_a_word():
    first, second, third = read_space(TEXT, "f").defaults(VIT)
    assert first == {"method": "lora"} | {f"lora.mask.{i}": i >= 8 for i in range(12)}
    assert second == {"method": "lora"} | {f"lora.mask.{i}": i == 3 for i in range(12)}
    assert third["fairtune_mask.attn.6"] is True
    assert third["fairtune_mask.attn.5"] is False
    assert not any(third[f"fairtune_mask.mlp.{i}"] for i in range(12))


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (PARTS, "method: bitfit, ", "", "a part names no method"),
        (PARTS, "method: bitfit", "method: bitfitt", 'Did you mean "bitfit"?'),
        (PARTS, "use: {choices: [true, false]}, until", "use: maybe, until", "use is yes or no"),
        (PARTS, "    r: {", "    lr: {", "'lr' is one for the whole candidate"),
        (PARTS, "first: {", "last: 2\n    first: {", "first and last both say which blocks"),
        (PARTS, "strata:", "methods: {lora: }\nstrata:", "it has methods and strata"),
        (PARTS, "  low:", "  train:", "'train' is no name for a part"),
        (PARTS, "high.r: 8", "high.r: 9", "high.r = 9 is outside of the space"),
        (PARTS, "first: {choices: [half, 9]}", "first: {choices: [top]}", "'top' is no depth"),
        (PARTS, "train:", "mask: some\ntrain:", "mask = 'some' is not possible here"),
        (TEXT, "readout:", "mask: each\nreadout:", "mask = 'each' is not possible here"),
        (TEXT, "mask: each", "mask: [1, 0]", "is not understood"),
        (TEXT, "mask: each", "mask: half", "mask is 'half'"),
        (TEXT, "lora.mask: third", "lora.mask: 3", "lora.mask = 3 is outside of the space"),
        (TEXT, "lora.mask.3: true", "lora.mask.3: 1", "lora.mask.3 = 1 is outside"),
        (TEXT, "{blocks: [third", "{blocks: [most", "'most' is no depth"),
    ],
)
def test_mistakes_are_named(text, old, new, said):
    from autopeft.methods import METHODS

    assert old in text
    with pytest.raises(UserError, match=r"my\.yaml") as error:
        read_space(text.replace(old, new, 1), "my.yaml").check(VIT, METHODS, True)
    assert said in str(error.value)


POST = """
methods: {lora: {r: 8}, adapter_parallel: {}, linear_probe: }
post: {wise_ft: {alpha: {choices: [0.5, 1.0]}}}
"""


@pytest.mark.parametrize(
    ("method", "alpha", "found"),
    [("lora", 0.5, 0.5), ("lora", 1.0, None), ("adapter_parallel", 0.5, None)]
    + [("linear_probe", 0.5, None)],
)
def test_a_step_after_training_is_drawn_where_the_method_can_take_it(method, alpha, found):
    from autopeft.backbones.describe import random_backbone
    from autopeft.methods import METHODS, canonical

    space, facts = read_space(POST, "f"), random_backbone("test_vit", 32).facts
    space.check(facts, METHODS, canonical=canonical)
    assert "wise_ft.alpha" in space.distributions()
    trial = optuna.trial.FixedTrial({"method": method, "wise_ft.alpha": alpha})
    post = canonical(space.ask(trial, facts), facts).post
    assert (post.alpha if post else None) == found


def test_an_unknown_step_is_named():
    with pytest.raises(UserError, match="wise_tf"):
        read_space(POST.replace("wise_ft", "wise_tf"), "f")
