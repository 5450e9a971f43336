"""``--init-adapter`` in settings, spaces and on the way to other nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError
from autopeft.init_adapter import Start
from autopeft.job import Setup
from autopeft.methods import METHODS, canonical
from autopeft.runners.transport import FileServer, Node
from autopeft.settings import Settings, from_mapping
from autopeft.space import load_space
from autopeft.starting import check_bound, continued, note, placed, space_of

LORA = {"method": "lora", "blocks": [2, 5], "r": 4, "lr": 3e-3}


@pytest.fixture(scope="module")
def vit():
    return random_backbone("test_vit", 32)


@pytest.fixture
def candidate(vit):
    return canonical(LORA, vit.facts)


def test_settings_without_it_keep_their_names():
    plain = Settings()
    assert plain.digest() == "ce0e2d51"
    one, two = (Settings(init_adapter="a", init_mode=m) for m in ("merged", "naive"))
    assert len({plain.digest(), one.digest(), two.digest()}) == 3
    assert from_mapping({"init-adapter": Path("a")}, "x").init_adapter == "a"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"init_mode": "naive"}, "--init-mode: naive needs an adapter to start from"),
        ({"init_adapter": "a", "init_mode": "maive"}, "--init-mode: 'maive' is not possible"),
    ],
)
def test_settings_that_say_nothing(values, words):
    with pytest.raises(UserError, match=words):
        Settings(**values)


def test_a_setup_without_it_has_the_digest_it_had():
    plain = dict.fromkeys(Setup.__dataclass_fields__)
    setup = Setup(**{**plain, "rows": {}, "device": "cpu", "init_mode": "", "init_sha256": ""})
    assert setup.digest() == "46552498eedbf6eb"
    assert replace(setup, init_mode="naive", init_sha256="0").digest() != setup.digest()


# ---- the space of naive -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quick", "default", "medpeft", "sparse"])
def test_every_draw_is_the_adapter_and_only_its_training_differs(vit, candidate, name):
    space = continued(load_space(name), candidate, head=False)
    space.check(vit.facts, METHODS, True, canonical)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study, found = optuna.create_study(sampler=sampler), []
    for _ in range(20):
        found.append(canonical(space.ask(study.ask(), vit.facts), vit.facts))
    assert {(str(c.strata), c.readout) for c in found} == {
        (str(candidate.strata), candidate.readout)
    }
    assert len({c.train.lr for c in found}) > 10
    assert space.single
    [first] = space.defaults(vit.facts)
    typical = {n: f.typical for n, f in space.fit(vit.facts, False).fields.items()}
    drawn = space.ask(optuna.trial.FixedTrial({**typical, **first}), vit.facts)
    assert canonical(drawn, vit.facts).train.lr == candidate.train.lr  # tried first


def test_a_head_that_comes_along_leaves_none_to_choose(candidate):
    space = load_space("default")
    assert "train.head_init" in continued(space, candidate, head=False).fields
    assert "train.head_init" not in continued(space, candidate, head=True).fields


def test_orthogonal_needs_a_method_with_an_a(candidate, tmp_path):
    start = Start(None, "orthogonal", candidate=candidate)
    space = load_space("quick")
    assert space_of(start, space) is space
    said = "not kept orthogonal, as they train no A: "
    assert check_bound(start, space) == f"{said}bitfit, linear_probe"
    (tmp_path / "s.yaml").write_text("methods: {bitfit: {lr: 1e-3}}")
    with pytest.raises(UserError, match="s has no method that could be kept orthogonal"):
        check_bound(start, load_space(str(tmp_path / "s.yaml")))
    assert check_bound(replace(start, mode="merged"), space) == ""
    assert check_bound(start, load_space("lora")) == f"{said}lora_b_only"  # its A is drawn


def test_the_report_is_told_without_a_path(candidate):
    for mode in ("merged", "naive", "orthogonal"):
        start = Start(None, mode, Path("/home/x"), "f" * 64, candidate=candidate)
        assert candidate.title in note(start)
        assert "/" not in note(start)


# ---- another node -------------------------------------------------------------------------------


def test_another_node_gets_the_whole_folder(tmp_path):
    folder = tmp_path / "early"
    (folder / "init").mkdir(parents=True)
    for name in ("autopeft.json", "adapter_model.safetensors"):
        (folder / name).write_text(name)
        (folder / "init" / name).write_text(f"inner {name}")
    plain = {**dict.fromkeys(Setup.__dataclass_fields__), "rows": {}, "run_dir": str(tmp_path)}
    setup = Setup(**{**plain, **placed(Start(None, "merged", folder, "f" * 64))})
    server = FileServer(setup)
    own = Node(tmp_path / "node").settle(setup, server.listing(), server.read)
    assert own.digest() == setup.digest()
    copy = Path(own.init_adapter)
    assert copy.is_relative_to(tmp_path / "node")
    for name in ("autopeft.json", "adapter_model.safetensors"):
        assert (copy / name).read_text() == name
        assert (copy / "init" / name).read_text() == f"inner {name}"
