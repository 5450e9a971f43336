"""Spaces: the presets on every kind of backbone, and mistakes named by file and field."""

from dataclasses import dataclass
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft import plugins
from autopeft.errors import UserError
from autopeft.space import load_space, read_space

# Spaces of one idea have no place on every backbone; the others have.
ONLY_VIT = {"medpeft", "fairtune"}
PRESETS = plugins.names("search_spaces")

VIT = SimpleNamespace(
    depth=12,
    modules=dict.fromkeys(("qkv", "proj", "fc1", "fc2")),
    pools=("token", "avg", "token+avg"),
)
SHALLOW = SimpleNamespace(depth=6, modules=VIT.modules, pools=VIT.pools)
CNN = SimpleNamespace(depth=8, modules=dict.fromkeys(("conv1", "conv2")), pools=("avg",))


@dataclass
class Lora:
    r: int = 8


@dataclass
class Probe:
    pass


METHODS = {"lora": Lora, "linear_probe": Probe}
SMALL = """
methods:
  lora:
    r: {choices: [2, 4]}
    last: {choices: [1, third, half, all]}
    modules: {choices: [qkv, qkv+proj, all]}
    lr: {type: float, low: 1e-4, high: 1e-2, log: true}
  linear_probe:
readout: {block: {choices: [half, all]}, pool: {choices: [token, avg]}}
train: {sampling: {choices: [plain, label_x_group]}, weight_decay: 0.01}
defaults:
  - {method: lora, lora.r: 2, readout.pool: token}
"""


def asked(space, facts, has_groups=True, **params):
    return space.ask(optuna.trial.FixedTrial(params), facts, has_groups)


def test_a_draw_is_what_canonical_takes():
    raw = asked(
        read_space(SMALL, "f"),
        VIT,
        **{
            "method": "lora",
            "lora.r": 4,
            "lora.last": "half",
            "lora.modules": "qkv+proj",
            "lora.lr": 1e-3,
            "readout.block": "all",
            "readout.pool": "avg",
            "train.sampling": "plain",
        },
    )
    assert raw == {
        "strata": [
            {"method": "lora", "options": {"r": 4}, "blocks": [6, 11], "modules": "qkv+proj"}
        ],
        "train": {"sampling": "plain", "weight_decay": 0.01, "lr": 1e-3},
        "readout": {"block": 12, "pool": "avg"},
    }


@pytest.mark.parametrize(
    ("facts", "block", "last", "blocks"),
    [
        (VIT, "all", "third", [8, 11]),
        (VIT, "half", "third", [4, 5]),  # counted from the readout, not from the top
        (VIT, "half", 1, [5, 5]),
        (SHALLOW, "all", "third", [4, 5]),
        (SHALLOW, "half", "all", [0, 2]),
        (CNN, "all", "half", [4, 7]),
    ],
)
def test_last_counts_blocks_below_the_readout(facts, block, last, blocks):
    params = {
        "method": "lora",
        "lora.r": 2,
        "lora.last": last,
        "lora.modules": "all",
        "lora.lr": 1e-3,
        "readout.block": block,
        "readout.pool": "avg",
        "train.sampling": "plain",
    }
    assert asked(read_space(SMALL, "f"), facts, **params)["strata"][0]["blocks"] == blocks


def test_impossible_choices_are_left_out():
    space = read_space(SMALL, "f")
    cnn = space.fit(CNN, has_groups=False).fields
    assert cnn["lora.modules"].extremes == ("all",)
    assert cnn["readout.pool"].extremes == ("avg",)
    assert cnn["train.sampling"].extremes == ("plain",)
    assert space.fit(VIT, has_groups=True).fields["train.sampling"].extremes == (
        "plain",
        "label_x_group",
    )
    # A warm start keeps what is possible here; the rest is sampled.
    assert space.defaults(CNN) == [{"method": "lora", "lora.r": 2}]
    assert space.defaults(VIT) == [{"method": "lora", "lora.r": 2, "readout.pool": "token"}]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lora:\n    r:", "lora:\n    rank:", "lora has no option 'rank'"),
        ("  lora:", "  lorra:", "unknown method 'lorra'. Did you mean \"lora\"?"),
        ("readout: {block", "readout: {blok", 'Did you mean "block"?'),
        ("weight_decay: 0.01", "weight_decy: 0.01", 'Did you mean "weight_decay"?'),
        ("methods:", "method:", 'Did you mean "methods"?'),
        ("{choices: [2, 4]}", "{choices: []}", "there are no choices"),
        ("low: 1e-4", "low: 0", "a log range cannot start at 0"),
        ("low: 1e-4", "low: 1", "the range is empty"),
        ("[1, third", "[1, thrid", "'thrid' is no depth"),
        ("[1, third", "[0, third", "0 is no depth"),
        ("block: {choices: [half, all]}", "block: {choices: [13]}", "has 12 blocks"),
        ("[plain, label_x_group]", "[plain, groups]", 'Did you mean "group"?'),
        ("[token, avg]", "[tokens]", 'Did you mean "token"?'),
        ("[qkv, qkv+proj, all]", "[conv1]", "none of conv1 is possible"),
        ("lora.r: 2", "lora.r: 3", "lora.r = 3 is outside of the space"),
        ("lora.r: 2", "lora.q: 2", "unknown parameter 'lora.q'"),
        ("{method: lora, ", "{method: linear_probe, ", "'lora.r' belongs to lora"),
        ("{method: lora, ", "{", "no method is named"),
        ("{method: lora, ", "{when: meny, method: lora, ", 'Did you mean "many"?'),
        ("{method: lora, ", "{when: [few], method: lora, ", "when = ['few'] is not possible"),
        ("methods:", "methods_from: 3\nmethods:", "3 is no list of files"),
        ("methods:", "methods_from: [./none.py]\nmethods:", "none.py: the file cannot be read"),
        ("methods:", "methods_from: [./x.yaml]\nmethods:", "x.yaml: is no .py file"),
    ],
)
def test_mistakes_are_named_with_the_file(old, new, said):
    assert old in SMALL
    with pytest.raises(UserError, match=r"my\.yaml") as error:
        read_space(SMALL.replace(old, new, 1), "my.yaml").check(VIT, METHODS, True)
    assert said in str(error.value)


def test_group_dro_is_asked_only_where_there_are_groups():
    text = "methods: {lora: {}}\ntrain: {group_dro: {choices: [false, true]}}"
    space = read_space(text, "f")
    assert space.fit(VIT, has_groups=True).fields["train.group_dro"].extremes == (False, True)
    assert space.fit(VIT, has_groups=False).fields["train.group_dro"].extremes == (False,)
    fixed = read_space("methods: {lora: {}}\ntrain: {group_dro: true}", "f")
    with pytest.raises(UserError, match="Group DRO needs groups"):
        fixed.fit(VIT, has_groups=False)


def test_group_sampling_alone_needs_groups():
    text = SMALL.replace("[plain, label_x_group]", "[group]")
    read_space(text, "f").check(VIT, METHODS, has_groups=True)
    with pytest.raises(UserError, match="give --group"):
        read_space(text, "f").check(VIT, METHODS, has_groups=False)


def test_every_value_is_tried_with_canonical_before_anything_is_trained():
    def canonical(raw, facts):
        if raw["strata"][0]["options"].get("r") == 4:
            raise UserError("r = 4 is not possible", "method lora", "Choose 2.")

    with pytest.raises(UserError, match=r"f, methods\.lora\.r: r = 4"):
        read_space(SMALL, "f").check(VIT, METHODS, True, canonical)


def test_one_name_has_one_range():
    names = read_space(SMALL, "f").distributions()
    assert set(names) == {
        "method", "lora.r", "lora.last", "lora.modules", "lora.lr",
        "readout.block", "readout.pool", "train.sampling",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("images", "ranks"),
    [
        (0, [2, 8, 4, 16]),  # unknown: as written
        (999, [2, 8, 4, 16]),
        (1_000, [4, 8, 2, 16]),
        (19_999, [4, 8, 2, 16]),
        (20_000, [16, 8, 2, 4]),
    ],
)
def test_warm_starts_for_so_many_images_come_first(images, ranks):
    text = (
        SMALL[: SMALL.index("defaults:")].replace("[2, 4]", "[2, 4, 8, 16]")
        + """
defaults:
  - {when: few, method: lora, lora.r: 2}
  - {method: lora, lora.r: 8}
  - {when: some, method: lora, lora.r: 4}
  - {when: many, method: lora, lora.r: 16}
"""
    )
    points = read_space(text, "f").defaults(VIT, True, images)
    assert [p["lora.r"] for p in points] == ranks
    assert not any("when" in p for p in points)


@pytest.mark.parametrize("name", ["default", "quick", "lora", "medpeft"])
def test_a_preset_s_first_rank_grows_with_the_images(name):
    space = load_space(name)
    scope = "lora_qv" if name == "medpeft" else "lora"
    first = [space.defaults(VIT, True, images)[0] for images in (500, 5_000, 50_000)]
    largest = max(space.fields[f"{scope}.r"].extremes)
    assert [p[f"{scope}.r"] for p in first] == [4, 8, min(32, largest)]


@pytest.mark.parametrize("name", PRESETS)
def test_every_warm_start_has_its_method_s_own_learning_rate(name):
    for point in load_space(name).defaults(VIT, True):
        if point.get("method") != "linear_probe":  # solved, not stepped
            assert {f"{point.get('method')}.lr", "train.lr"} & set(point), point


def test_a_space_reads_files_of_methods_beside_itself_and_executes_nothing(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "gate.py").write_text("raise SystemExit\n")
    (tmp_path / "mine" / "space.yaml").write_text("methods_from: [./gate.py]\nmethods: {gate: }\n")
    monkeypatch.chdir(tmp_path)
    for path in ("mine/space.yaml", str(tmp_path / "mine" / "space.yaml")):
        (file,) = load_space(path).plugins
        assert (file.name, file.text) == ("gate", "raise SystemExit\n")
    (tmp_path / "mine" / "space.yaml").write_text("methods_from: ./gate.py\nmethods: {gate: }\n")
    assert len(load_space("mine/space.yaml").plugins) == 1
    assert load_space("default").plugins == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_open_with_their_command(name):
    first = plugins.find("search_spaces", name).text.splitlines()[0]
    assert first.startswith(f"# autopeft search --space {name} ")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_they_are_in_one_line(name):
    """``autopeft spaces`` shows it, so it is a whole sentence."""
    lines = plugins.find("search_spaces", name).text.splitlines()
    assert lines[1] == "#"
    assert lines[2].endswith(".")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 24))
def test_strata_lie_below_the_readout_at_any_depth(seed, depth):
    facts = SimpleNamespace(depth=depth, modules=VIT.modules, pools=VIT.pools)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    raw = load_space("default").ask(study.ask(), facts, True)
    readout = raw["readout"]["block"]
    assert 1 <= readout <= depth
    for stratum in raw["strata"]:
        if "blocks" in stratum:
            first, last = stratum["blocks"]
            assert 0 <= first <= last == readout - 1
