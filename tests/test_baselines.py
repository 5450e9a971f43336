"""The models that every winner is held against."""

from __future__ import annotations

import pytest

from autopeft import baselines
from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError


@pytest.fixture(scope="module")
def facts():
    return random_backbone("test_vit", 32).facts


def test_all_that_the_objective_calls_for():
    plain = ("linear_probe", "lora_r8", "lora_r8_readout", "bitfit", "full")
    assert baselines.names((), False) == plain
    assert set(baselines.names((), True)) == {*plain, "lora_r8_group", "lora_r8_group_dro"}
    asked = ("full", "lora_r8", "linear_probe")
    assert baselines.names(asked, True) == ("linear_probe", "lora_r8", "full")
    assert set(baselines.REFERENCE) <= set(plain)


def test_wrong_names_are_refused():
    with pytest.raises(UserError, match="unknown baseline 'lora_r9'.*\"lora_r8\""):
        baselines.names(("lora_r9",), False)
    with pytest.raises(UserError, match="linear_probe is missing"):
        baselines.names(("lora_r8", "full"), False)


def test_they_are_plain_settings(facts):
    models = {
        m.name: m.candidate
        for m in baselines.make(baselines.names((), True), facts, (4, "avg"), 0.1)
    }
    assert set(models) == set(baselines.names((), True))
    probe = models["linear_probe"]
    assert probe.strata == ()
    assert (probe.readout.block, probe.readout.pool) == (4, "avg")
    assert (probe.train.optimizer, probe.train.weight_decay) == ("lbfgs", 0.1)
    for name in ("lora_r8", "lora_r8_group", "lora_r8_group_dro"):
        (stratum,) = models[name].strata
        assert stratum.blocks == (0, 5)
        assert (stratum.options["r"], stratum.options["lora_alpha"]) == (8, 16)
        assert models[name].readout.block == 6  # timm's own, so that peft loads the folder
        assert models[name].readout.pool == facts.own_pool
    assert models["lora_r8"].train.sampling == "plain"
    assert models["lora_r8_group"].train.sampling == "group"
    assert models["lora_r8_group_dro"].train.group_dro
    assert models["lora_r8_group_dro"].train.sampling == "group"
    assert models["lora_r8_readout"].readout == probe.readout
    assert models["lora_r8_readout"].strata[0].blocks == (0, 3)
    assert models["full"].method == "full"
    assert models["bitfit"].method == "bitfit"


def test_equal_candidates_appear_once(facts):
    wanted = ("linear_probe", "lora_r8", "lora_r8_readout")
    models = baselines.make(wanted, facts, (6, facts.own_pool), 0.1)
    assert [m.name for m in models] == ["linear_probe", "lora_r8"]
