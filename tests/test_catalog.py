"""``autopeft methods`` and ``methods show``: what is printed is what the code does."""

from __future__ import annotations

import json
import sys

import pytest

from autopeft import catalog, cli
from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError
from autopeft.methods import METHODS, build, canonical


@pytest.fixture(scope="module")
def vit():
    return random_backbone("test_vit", 32)


@pytest.fixture(scope="module")
def cnns():
    return catalog.reference_cnns()


@pytest.fixture(scope="module")
def lines(vit, cnns):
    return {line.name: line for line in catalog.lines(vit.facts, cnns)}


def test_every_method_has_a_line(lines):
    assert list(lines) == list(METHODS)
    assert all(line.family and line.paper for line in lines.values())


@pytest.mark.parametrize("name", ["lora", "bitfit", "ssf", "adapter_houlsby", "vpt_deep", "full"])
def test_parameters_are_those_of_the_built_adapter(name, vit, lines):
    adapted = build(vit, canonical({"method": name}, vit.facts), 1, 0, 0)
    assert lines[name].parameters == adapted.adapter_params


def test_what_needs_attention_is_for_no_cnn(lines, cnns):
    for name in ("vpt_deep", "lora_qv", "clover", "fairtune_mask"):
        assert lines[name].cnn == "no"
    for name in ("lora", "bitfit", "linear_probe", "full", "adapter_parallel"):
        assert lines[name].cnn == "yes"
    assert lines["vera"].cnn == "linear"
    assert catalog.count("vpt_deep", next(iter(cnns.values()))) is None


def test_columns_are_those_of_the_methods(lines):
    assert lines["linear_probe"].parameters == 0
    assert lines["lora"].mergeable
    assert not lines["adapter_parallel"].mergeable
    assert lines["lora"].cached


def test_a_description_has_everything(vit, cnns):
    shown = catalog.description("hra", vit.facts, cnns)
    assert shown["options"] == [{"name": "r", "default": 8, "possible": "2 to 128, whole"}]
    assert shown["learning rates"]["adamw"]["prior"] == 1e-3
    text = catalog.text(shown)
    for words in ("W' = W prod", "Option r = 8; possible: 2 to 128", "with adamw: 0.001", "arXiv"):
        assert words in text
    assert any(
        "test_resnet" in r for r in catalog.description("clover", vit.facts, cnns)["refuses"]
    )
    for name in METHODS:
        assert catalog.text(catalog.description(name, vit.facts, {})).startswith(name)


def test_unknown_and_refused_names_are_one_line(vit):
    with pytest.raises(UserError, match='Did you mean "lora"'):
        catalog.description("lorra", vit.facts, {})
    with pytest.raises(UserError, match="'lily' is not offered: its router averages"):
        catalog.description("lily", vit.facts, {})
    with pytest.raises(UserError, match="--backbone"):
        catalog.facts_of("no_such_model")


def test_the_command_shows_a_method(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["autopeft", "methods", "show", "lora", "--json"])
    cli.main()
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "lora"
    assert shown["parameters"]["autopeft_vit_nano"] == 294_912
