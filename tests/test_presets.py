"""The search spaces that ship: each on a ViT and on CNNs, from YAML to adapters that are built."""

from __future__ import annotations

import optuna
import pytest
import torch

from autopeft import plugins
from autopeft.backbones.describe import random_backbone
from autopeft.backbones.weights import load_backbone
from autopeft.errors import UserError
from autopeft.methods import METHODS, build, canonical
from autopeft.methods.method import Scored
from autopeft.methods.registry import BUILT_IN
from autopeft.space import load_space
from autopeft.suited import suited

PRESETS = plugins.names("search_spaces")
VIT_ONLY = ("medpeft", "fairtune")


@pytest.fixture(scope="module")
def networks():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {
        "wheel": load_backbone("autopeft_vit_nano", None, None, True),
        "test_vit": random_backbone("test_vit", 32),
        "test_resnet": random_backbone("test_resnet", 64),
        "test_convnext": random_backbone("test_convnext", 64),
    }
    torch.set_num_threads(before)


_FITTED = {}


def fitted(name, facts):
    """A preset on a backbone, and what was said; worked out once."""
    if (name, facts.name) not in _FITTED:
        _FITTED[name, facts.name] = _fit(name, facts)
    return _FITTED[name, facts.name]


def _fit(name, facts):
    space = load_space(name)
    space.check_names(METHODS)
    fitting, line = suited(space, facts, METHODS, canonical)
    fitting.check(facts, METHODS, True, canonical)
    return fitting, line


@pytest.mark.parametrize("backbone", ["wheel", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("name", PRESETS)
def test_200_asks_become_canonical_candidates(name, backbone, networks):
    facts = networks[backbone].facts
    if name in VIT_ONLY and facts.family == "cnn":
        with pytest.raises(UserError, match="nothing of it is possible on this backbone"):
            fitted(name, facts)
        return
    space, _ = fitted(name, facts)
    whole = space.fit(facts, True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    refused = 0
    for _ in range(200):
        try:
            candidate = canonical(whole.draw(study.ask(), facts), facts)
        except UserError:
            refused += 1  # two options that exclude each other: the sampler asks again
        else:
            assert 1 <= candidate.readout.block <= facts.depth
            assert all(s.blocks[1] < candidate.readout.block for s in candidate.strata)
    assert refused <= 4
    if name not in VIT_ONLY:
        assert space.defaults(facts, True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_sample_of_the_asks_is_built(name, networks):
    network = networks["test_vit"]
    space, _ = fitted(name, network.facts)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    points = space.defaults(network.facts, True)[:4]
    for point in points:
        study.enqueue_trial(point)
    built = 0
    for _ in range(len(points) + 6):
        candidate = canonical(space.ask(study.ask(), network.facts, True), network.facts)
        if any(issubclass(METHODS[s.method], Scored) for s in candidate.strata):
            continue  # built after a look at images
        adapted = build(network, candidate, 1, 0, 0)
        with torch.inference_mode():
            assert adapted.logits(torch.zeros(1, 3, 32, 32)).shape == (1, 1)
        built += 1
    assert built or name == "sparse"


@pytest.mark.parametrize("name", PRESETS)
def test_one_name_has_one_distribution_in_the_journal(name, networks):
    """Optuna refuses a second range for a name in one study, and readers could not tell."""
    facts = networks["wheel"].facts
    whole = fitted(name, facts)[0].fit(facts, True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    for _ in range(60):
        whole.draw(study.ask(), facts)
    seen = {}
    for trial in study.get_trials(deepcopy=False):
        for parameter, distribution in trial.distributions.items():
            assert seen.setdefault(parameter, distribution) == distribution


def test_all_methods_holds_every_built_in_method():
    """A method that is added to the registry has to be added to the space, with its sizes."""
    assert set(load_space("all_methods").methods) == set(BUILT_IN)


def test_the_wheel_s_vit_can_have_all_of_all_methods(networks):
    space, line = fitted("all_methods", networks["wheel"].facts)
    assert set(space.methods) == set(BUILT_IN)
    assert line == ""


def test_what_a_cnn_cannot_have_is_said_in_one_line(networks):
    space, line = fitted("all_methods", networks["test_resnet"].facts)
    assert "\n" not in line
    assert line.startswith("left out, as this backbone cannot have it: ")
    for gone in ("vpt_deep", "lora_qv", "clover"):
        assert gone in line
        assert gone not in space.methods
    assert {"lora", "bitfit", "ssf", "full"} <= set(space.methods)
    assert all(p["method"] in space.methods for p in space.defaults(networks["test_resnet"].facts))


def test_learning_rates_of_all_methods_are_those_of_the_methods():
    space = load_space("all_methods")
    for name, section in space.methods.items():
        rate = METHODS[name].rates.get("adamw")
        for field in section:
            if field.key == "lr":
                assert field.extremes == pytest.approx((rate.low, rate.high)), name


def test_cheap_computes_everything_below_once(networks):
    facts = networks["wheel"].facts
    space, _ = fitted("cheap", facts)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        candidate = canonical(space.ask(study.ask(), facts, True), facts)
        for s in candidate.strata:
            method = METHODS[s.method].make(dict(s.options))
            assert method.prefix_ok(s)
            assert method.first_block(s) >= candidate.readout.block - max(
                2, candidate.readout.block // 3
            )


def test_medpeft_is_its_recipe(networks):
    facts = networks["wheel"].facts
    space, _ = fitted("medpeft", facts)
    for images, rank in ((785, 4), (7_847, 8), (78_468, 32)):  # its NIH lists
        point = space.defaults(facts, True, images)[0]
        raw = space.ask(optuna.trial.FixedTrial(point), facts)
        candidate = canonical(raw, facts)
        (stratum,) = candidate.strata
        assert (stratum.method, stratum.options["r"]) == ("lora_qv", rank)
        assert stratum.options["lora_alpha"] == 32
        assert stratum.options["lora_dropout"] == 0.1
        assert stratum.blocks == (0, facts.depth - 1)
        assert candidate.train.optimizer == "sgd"
        assert candidate.train.lr == (0.2 if rank == 32 else 0.05)
        assert (candidate.train.weight_decay, candidate.train.drop_path) == (0.0, 0.1)


def test_fairtune_has_four_bits_a_block(networks):
    facts = networks["wheel"].facts
    space, _ = fitted("fairtune", facts)
    bits = [n for n in space.fit(facts, True).distributions() if n.startswith("fairtune_mask.")]
    assert len(bits) == 4 * facts.depth + 1  # and its learning rate
