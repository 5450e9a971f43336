"""Two spellings of one adapter are one candidate; mistakes are named."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.backbones.describe import random_backbone
from autopeft.candidate import Candidate, Stratum
from autopeft.errors import UserError
from autopeft.methods import METHODS, canonical

FACTS = random_backbone("test_vit", 32).facts  # 6 blocks
CNN = random_backbone("test_resnet", 64).facts  # 4 blocks; conv3 in the last but one only
MODULES = ("qkv", "proj", "fc1", "fc2")
SETTINGS = settings(max_examples=80, deadline=None, database=None, derandomize=True)

ranges = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda t: sorted(t))
lora = st.fixed_dictionaries(
    {"method": st.just("lora"), "blocks": ranges},
    optional={
        "modules": st.lists(st.sampled_from(MODULES), min_size=1, max_size=4),
        "r": st.sampled_from([1, 2, 8]),
        "lora_alpha": st.sampled_from(["r", "2r", 16, 32.0]),
    },
)
other = st.fixed_dictionaries(
    {"method": st.sampled_from(["bitfit", "linear_probe", "full"]), "blocks": ranges}
)
train = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(1e-6, 1.0),
        "weight_decay": st.floats(0, 0.3),
        "drop_path": st.sampled_from([0.0, 0.1]),
        "loss": st.sampled_from(["bce", "weighted", "focal", "asl"]),
        "sampling": st.sampled_from(["plain", "label"]),
        "label_smoothing": st.sampled_from([0, 0.1]),
        "head_init": st.sampled_from(["probe", "random"]),
        "layer_decay": st.floats(0.5, 1.0),
    },
)
readout = st.fixed_dictionaries(
    {}, optional={"block": st.integers(1, 6), "pool": st.sampled_from(FACTS.pools)}
)
raws = st.one_of(
    st.tuples(st.one_of(lora, other), train, readout).map(
        lambda t: {**t[0], **t[1], "readout": t[2]}
    ),
    st.tuples(st.lists(st.one_of(lora, other), max_size=4), train, readout).map(
        lambda t: {"strata": t[0], "train": t[1], "readout": t[2]}
    ),
)


def made(raw, facts=FACTS):
    try:
        return canonical(raw, facts)
    except UserError:
        return None


@SETTINGS
@given(raws)
def test_idempotent_and_valid(raw):
    candidate = made(raw)
    if candidate is None:  # overlapping strata
        return
    again = canonical(candidate.to_dict(), FACTS)
    assert again == candidate
    assert again.fingerprint == candidate.fingerprint
    assert Candidate.from_dict(candidate.to_dict()) == candidate
    for stratum in candidate.strata:
        assert 0 <= stratum.blocks[0] <= stratum.blocks[1] < candidate.readout.block
        assert stratum.modules == tuple(sorted(set(stratum.modules)))
    if not candidate.strata:
        assert candidate.method == "linear_probe"
        assert candidate.train.optimizer == "lbfgs"


@SETTINGS
@given(st.lists(lora, min_size=1, max_size=3), st.randoms())
def test_order_and_cutting_into_pieces_change_nothing(strata, random):
    candidate = made({"strata": strata})
    if candidate is None:
        return
    pieces = []
    for stratum in strata:
        for block in range(stratum["blocks"][0], stratum["blocks"][1] + 1):
            for module in stratum.get("modules", MODULES):
                pieces.append({**stratum, "blocks": [block, block], "modules": [module]})
    random.shuffle(pieces)
    assert canonical({"strata": pieces}, FACTS) == candidate


@pytest.mark.parametrize(
    "blocks",
    [
        [3, 5],
        "3-5",
        3,
        {"first_block": 3},
        {"first_block": 3, "last_block": 5},
        {"mask": [0, 0, 0, 1, 1, 1]},
    ],
)
def test_spellings_of_blocks(blocks):
    want = canonical({"method": "lora", "blocks": [3, 5]}, FACTS)
    assert canonical({"method": "lora", "blocks": blocks}, FACTS) == want
    assert want.strata[0].blocks == (3, 5)


@pytest.mark.parametrize(
    "raw",
    [
        {"method": "lora", "first_block": 2},
        {"method": "lora", "blocks": [2, 5], "modules": "all"},
        {"method": "lora", "blocks": [2, 5], "modules": "fc2+fc1,proj qkv"},
        {"method": "lora", "blocks": [2, 5], "modules": ["fc1", "fc2", "proj", "qkv", "qkv"]},
        {"method": "lora", "blocks": [2, 5], "lora.r": 8, "lora_alpha": "2r"},
        {"method": "lora", "blocks": [2, 5], "options": {"r": 8}, "lr": 0.005},
        {"strata": [{"method": "lora", "blocks": [2, 5], "r": 8, "lora_alpha": 16}]},
        {"strata": [{"method": "lora", "blocks": [2, 3]}, {"method": "lora", "blocks": [4, 5]}]},
        {"strata": [{"method": "lora", "blocks": 4}, {"method": "linear_probe"}]},
        {"method": "lora", "blocks": [2, 5], "readout": {"block": 6, "pool": "token"}},
        {"method": "lora", "blocks": [2, 5], "readout_block": 6, "readout_pool": None},
        {"method": "lora", "blocks": [2, 5], "lr": None, "loss": "bce"},
    ],
)
def test_spellings_of_one_adapter_are_one_fingerprint(raw):
    want = canonical({"method": "lora", "blocks": {"first_block": 2}}, FACTS)
    assert canonical(raw, FACTS).fingerprint == want.fingerprint


def test_defaults_in_full():
    candidate = canonical({"method": "lora", "r": 4}, FACTS)
    assert candidate.to_dict() == {
        "v": 1,
        "strata": [
            {
                "blocks": [0, 5],
                "modules": ["fc1", "fc2", "proj", "qkv"],
                "method": "lora",
                "options": {
                    "r": 4,
                    "lora_alpha": 8.0,
                    "lora_dropout": 0.0,
                    "use_rslora": False,
                    "use_dora": False,
                    "init": "default",
                },
            }
        ],
        "train": {
            "optimizer": "adamw",
            "lr": 0.005,
            "weight_decay": 0.01,
            "layer_decay": 1.0,
            "drop_path": 0.0,
            "label_smoothing": 0.0,
            "loss": "bce",
            "sampling": "plain",
            "head_init": "probe",
        },
        "readout": {"block": 6, "pool": "token"},
        "post": None,
    }


@pytest.mark.parametrize(
    ("method", "optimizer", "lr"),
    [("lora", "adamw", 5e-3), ("lora", "sgd", 5e-2), ("bitfit", "adamw", 5e-3)]
    + [("full", "adamw", 5e-5), ("full", "sgd", 1e-2)],
)
def test_learning_rate_priors(method, optimizer, lr):
    assert canonical({"method": method, "optimizer": optimizer}, FACTS).train.lr == lr


def test_the_smallest_prior_wins_in_a_mixture():
    mixed = [{"method": "full", "blocks": 1}, {"method": "lora", "blocks": [0, 4]}]
    assert canonical({"strata": mixed}, FACTS).train.lr == 5e-5


def test_strata_end_below_the_readout():
    candidate = canonical({"method": "lora", "blocks": [2, 5], "readout_block": 4}, FACTS)
    assert candidate.strata[0].blocks == (2, 3)
    masked = {"method": "lora", "blocks": {"mask": [0, 0, 1, 1, 1, 1]}, "readout_block": 4}
    assert canonical(masked, FACTS).strata == candidate.strata
    last_two = canonical({"method": "lora", "blocks": 2, "readout_block": 4}, FACTS)
    assert last_two.strata == candidate.strata


def test_nothing_left_is_the_probe_and_drops_what_a_probe_does_not_read():
    raw = {"method": "lora", "blocks": [4, 5], "lr": 0.1, "drop_path": 0.1, "loss": "focal"}
    raw |= {"label_smoothing": 0.1, "layer_decay": 0.7, "head_init": "random"}
    candidate = canonical({**raw, "weight_decay": 0.1, "readout_block": 4}, FACTS)
    probe = {"method": "linear_probe", "weight_decay": 0.1, "readout_block": 4}
    assert candidate == canonical(probe, FACTS)
    assert candidate.train.weight_decay == 0.1
    assert candidate.train.loss == "bce"
    weighted = canonical({**probe, "loss": "weighted", "sampling": "group"}, FACTS)
    assert (weighted.train.loss, weighted.train.sampling) == ("weighted", "group")


def test_floats_are_kept_to_six_digits():
    a = canonical({"method": "bitfit", "lr": 0.00123456789}, FACTS)
    assert a.train.lr == 0.00123457
    assert a == canonical({"method": "bitfit", "lr": 0.001234568}, FACTS)


def test_rank_one_has_one_scaling():
    plain = canonical({"method": "lora", "r": 1}, FACTS)
    assert canonical({"method": "lora", "r": 1, "use_rslora": True}, FACTS) == plain
    both = [canonical({"method": "lora", "r": 2, "use_rslora": u}, FACTS) for u in (True, False)]
    assert both[0] != both[1]


def test_cnn_modules_that_a_block_lacks_do_not_cut_a_range():
    everything = canonical({"method": "lora"}, CNN)
    assert [s.blocks for s in everything.strata] == [(0, 3)]
    named = canonical({"method": "lora", "modules": sorted(CNN.modules)}, CNN)
    assert named == everything
    only = [i for i, shape in enumerate(CNN.modules["conv3"]) if shape]
    third = canonical({"method": "lora", "modules": ["conv3"]}, CNN)
    assert third.strata[0].blocks == (only[0], only[-1])
    assert canonical({"method": "lora", "modules": ["conv3"], "blocks": [0, 0]}, CNN).strata == ()


def test_strata_of_two_methods():
    raw = {
        "strata": [{"method": "bitfit", "blocks": [4, 5]}, {"method": "lora", "blocks": [2, 3]}]
    }
    candidate = canonical(raw, FACTS)
    assert candidate.method == "lora+bitfit"
    assert candidate.strata[1] == Stratum((4, 5), (), "bitfit", {"which": "all"})


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"method": "lorra"}, ['"lora"', "bitfit"]),
        ({"blocks": "all"}, ["no method"]),
        ({"method": "lora", "rank": 8}, ["unknown option 'rank'"]),
        ({"method": "lora", "learning_rate": 1}, ["learning_rate"]),
        ({"method": "lora", "r": 0}, ["r = 0", "from 1 to 256"]),
        ({"method": "lora", "r": 2.5}, ["r = 2.5", "whole number"]),
        ({"method": "lora", "r": True}, ["r = True"]),
        ({"method": "lora", "lora_alpha": "xr"}, ["lora_alpha"]),
        ({"method": "lora", "lora_alpha": "1.2.3r"}, ["lora_alpha"]),
        ({"method": "lora", "use_dora": 1}, ["use_dora", "true, false"]),
        ({"method": "bitfit", "which": "weights"}, ["which", "all, linear, norm"]),
        ({"method": "lora", "lr": 0}, ["lr = 0", "above 0"]),
        ({"method": "lora", "lr": float("nan")}, ["lr"]),
        ({"method": "lora", "weight_decay": -1}, ["weight_decay", "from 0 to 1"]),
        ({"method": "lora", "loss": "bse"}, ['"bce"']),
        ({"method": "lora", "optimizer": "lbfgs"}, ["linear_probe only"]),
        ({"method": "lora", "modules": ["qvk"]}, ['"qkv"']),
        ({"method": "lora", "modules": []}, ["empty"]),
        ({"method": "bitfit", "modules": ["qkv"]}, ["whole blocks"]),
        ({"method": "lora", "blocks": [4, 9]}, ["6 blocks, 0 to 5"]),
        ({"method": "lora", "blocks": [4, 2]}, ["6 blocks"]),
        ({"method": "lora", "blocks": 7}, ["6 blocks"]),
        ({"method": "lora", "blocks": "some"}, ["not understood"]),
        ({"method": "lora", "blocks": {"mask": [1]}}, ["1 entries"]),
        ({"method": "lora", "blocks": 2, "first_block": 3}, ["both given"]),
        ({"method": "lora", "bitfit.which": "all"}, ["belongs to bitfit"]),
        ({"method": "lora", "readout": {"block": 7}}, ["from 1 to 6"]),
        ({"method": "lora", "readout": {"pool": "max"}}, ["pool"]),
        ({"method": "lora", "readout": {"layer": 3}}, ["layer"]),
        ({"method": "lora", "post": "wise_ft"}, ["post"]),
        ({"v": 2, "method": "lora"}, ["version 2"]),
        ({"method": "lora", "strata": []}, ["beside strata"]),
        ({"strata": [], "rank": 3}, ["rank"]),
        ({"strata": "lora"}, ["no list"]),
        ({"strata": ["lora"]}, ["no mapping"]),
        ({"method": "lora", "readout": 5}, ["readout = 5"]),
        ({"method": "lora", "train": [1]}, ["no mapping"]),
        ({"method": "lora", "blocks": {"mask": 3}}, ["not understood"]),
        ({"method": "lora", "blocks": [1.0, 2.0]}, ["not understood"]),
        ({"method": ["lora"]}, ["unknown method"]),
        ({"strata": [{"method": "lora"}, {"method": "lora", "r": 4}]}, ["twice"]),
        ({"strata": [{"method": "lora"}, {"method": "full", "blocks": 1}]}, ["cannot share"]),
        (
            {
                "strata": [
                    {"method": "lora", "blocks": [0, 1]},
                    {"method": "lora", "blocks": [2, 3], "use_dora": True},
                ]
            },
            ["use_dora", "equal"],
        ),
    ],
    ids=str,
)
def test_mistakes_are_named(raw, words):
    with pytest.raises(UserError) as caught:
        canonical(raw, FACTS)
    for word in words:
        assert word in str(caught.value)


def test_a_cnn_has_no_query_whose_bias_could_train():
    with pytest.raises(UserError, match="query_only"):
        canonical({"method": "bitfit", "which": "query_only"}, CNN)


def test_every_method_says_who_what_and_where_to_start():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.paper
        assert method.summary.endswith(".")
        for rate in method.rates.values():
            assert rate.low <= rate.prior <= rate.high


def test_importing_methods_loads_no_torch():
    code = "import sys, autopeft.methods as m; assert callable(m.canonical); m.METHODS['lora']; "
    code += "bad = {'torch', 'timm', 'peft'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- group DRO ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "drawn"),
    [
        (None, "group"),
        ("plain", "group"),
        ("label", "label_x_group"),
        ("group", "group"),
        ("label_x_group", "label_x_group"),
    ],
)
def test_group_dro_draws_the_groups_equally_often(sampling, drawn):
    raw = {"method": "lora", "group_dro": True, "sampling": sampling}
    train = canonical(raw, FACTS).train
    assert (train.group_dro, train.sampling) == (True, drawn)
    assert canonical(canonical(raw, FACTS).to_dict(), FACTS) == canonical(raw, FACTS)


def test_without_group_dro_nothing_changes():
    plain = canonical({"method": "lora"}, FACTS)
    off = canonical({"method": "lora", "group_dro": False, "sampling": "plain"}, FACTS)
    assert plain.fingerprint == off.fingerprint
    assert not plain.train.group_dro
    probe = canonical({"method": "linear_probe", "group_dro": True}, FACTS)
    assert (probe.train.group_dro, probe.train.sampling) == (False, "plain")  # solved, no steps


@pytest.mark.parametrize("value", ["yes", 1, 0.5])
def test_group_dro_is_yes_or_no(value):
    with pytest.raises(UserError, match="group_dro.*true or false"):
        canonical({"method": "lora", "group_dro": value}, FACTS)
