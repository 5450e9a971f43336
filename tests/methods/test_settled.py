"""One adapter, one fingerprint: spellings of one network are one candidate, and no others are."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional

from autopeft.backbones.describe import network_of, random_backbone
from autopeft.errors import UserError
from autopeft.methods import METHODS, adapted, build, canonical
from autopeft.methods.method import Method
from autopeft.methods.scored import ToyScoring, has_scored, look
from autopeft.methods.settle import changed


def two_blocks():
    """A ViT of two blocks, small enough for many trainings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0, img_size=32, depth=2)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 0.5, 0.1)
    return network_of(model, "test_vit")


NETWORK = two_blocks()
FACTS = NETWORK.facts
STEPS = 3
PLACED = [n for n in METHODS if METHODS[n].placed]
# Values to try where default and ends say nothing on the toy: it has six images and three steps.
VALUES: Mapping[str, tuple[Any, ...]] = {
    "score_images": (4,),  # that fewer images can choose the same entries is no spelling
    "phase_epochs": (1, 2),
    "phase_lr": (2e-5, 1e-2),
    "rounds": (1, 2, 8, 20),
    "grow": (0.25, 0.5),
    "share": (0.01, 0.5),
    # Shares of a schedule of three steps, and scores of four tiles, need not tell.
    "tinit": (0.1,),
    "tfinal": (0.3,),
    "reselect_at": (0.5,),
    "tile_score": ("mean_abs",),
    "regularization_alpha": (1e-6, 1.0),
}


def settles(method):
    """Whether a method knows options that can be idle; the others are for the slow run."""
    return method.settled.__func__ is not Method.settled.__func__


def values_of(option):
    """Values of an option: all words, or default, ends and what is between."""
    flag = option.metadata.get("choices") == (True, False)  # dvpt's share is none of a weight's
    if option.name in VALUES and not flag:
        return VALUES[option.name]
    if "choices" in option.metadata:
        return option.metadata["choices"]
    low, high, kind = (option.metadata[k] for k in ("low", "high", "type"))
    if high == 2**48 - 1:
        return (0b000011, 0b000001, 0b111111, high)
    if kind is int:
        return tuple(sorted({low, min(option.default * 2, high), option.default, high}))
    near = {max(low, option.default / 2), option.default, min(high, option.default * 2)}
    return tuple(sorted(near | ({low} if low == 0 else set())))


def trained(candidate, network=NETWORK):
    """What a candidate is: everything saved, and outputs before and after some steps."""
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    label, fixed = torch.arange(6) % 2, None
    if has_scored(candidate):
        fixed = look(candidate, ToyScoring(network, candidate, x, label, 2))
    made = build(network, candidate, 2, 0, 0, fixed)
    shapes = {name: tuple(t.shape) for name, t in made.tensors().items()}
    with torch.no_grad():
        seen = [made.logits(x)]
    optimizer = torch.optim.SGD(made.param_groups(0.3, 0.0))
    made.set_train(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = functional.cross_entropy(made.logits(x), label)
            loss = loss + made.extra_loss() if made.extra_loss else loss
            loss.backward()
            optimizer.step()
            if made.after_step:
                made.after_step(step, STEPS)
    made.set_train(False)
    with torch.no_grad():
        seen.append(made.logits(x))
    tensors = [t.double().flatten() for t in made.tensors().values()]
    return shapes, torch.cat([*(s.double().flatten() for s in seen), *tensors])


def same(one, other):
    close = {"rtol": 1e-6, "atol": 1e-7, "equal_nan": True}
    return one[0] == other[0] and torch.allclose(one[1], other[1], **close)


def as_written(raw, facts=FACTS):
    """The candidate before its methods settle on a spelling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("autopeft.methods.canonical"), "settled", unsettled)
        return canonical(raw, facts)


def unsettled(strata, facts, readout):
    return strata


def check(name, place, module, monkeypatch):
    """Varies each option; the more of them are idle at a place, the sharper."""
    monkeypatch.setattr(adapted, "_mix", lambda *parts: 0)  # the same draws for all
    raw = {"method": name, **place}
    raw |= {"modules": module} if METHODS[name].takes_modules else {}
    made: dict[str, Any] = {}
    for option in fields(METHODS[name]):
        spellings: dict[str, Any] = {}
        for value in values_of(option):
            try:
                candidate = canonical({**raw, option.name: value}, FACTS)
            except UserError:
                continue
            assert canonical(candidate.to_dict(), FACTS) == candidate
            spellings.setdefault(candidate.fingerprint, value)
            for one in (candidate, as_written({**raw, option.name: value})):
                if one.fingerprint not in made:
                    made[one.fingerprint] = trained(one)
            words = f"{raw}: {option.name} = {value} became {candidate.to_json()}"
            assert same(made[one.fingerprint], made[candidate.fingerprint]), words
        for one, other in combinations(spellings, 2):
            words = f"{raw}: {option.name} = {spellings[one]} and {spellings[other]}"
            assert not same(made[one], made[other]), words


@pytest.mark.parametrize(
    "name",
    [n if settles(METHODS[n]) else pytest.param(n, marks=pytest.mark.slow) for n in PLACED],
)
def test_two_fingerprints_are_two_networks(name, monkeypatch):
    check(name, {"blocks": [0, 0]}, "proj", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACED)
def test_two_fingerprints_are_two_networks_on_two_blocks(name, monkeypatch):
    check(name, {"blocks": [0, 1]}, "fc1", monkeypatch)


SPELLINGS = {
    "the cut of spafit below its blocks": (
        {"method": "spafit", "blocks": [2, 4], "c2": 2},
        {"method": "spafit", "blocks": [2, 4], "c2": 0},
    ),
    "lora's options above which spafit has biases alone": (
        {"method": "spafit", "blocks": [2, 3], "c2": 5, "r": 4, "modules": ["qkv"]},
        {"method": "spafit", "blocks": [2, 3], "c2": 6, "lora_alpha": 1.0},
    ),
    "spafit in two pieces": (
        {"method": "spafit", "blocks": [1, 4], "c2": 3, "r": 4, "modules": ["qkv"]},
        [
            {"method": "spafit", "blocks": [1, 2], "c2": 5},
            {"method": "spafit", "blocks": [3, 3], "c2": 0, "r": 4, "modules": ["qkv"]},
            {"method": "spafit", "blocks": [4, 4], "c2": 2, "r": 4, "modules": ["qkv"]},
        ],
    ),
    "bits outside of the blocks": (
        {"method": "fairtune_mask", "blocks": [2, 3], "attn": "111100", "mlp": 0},
        {"method": "fairtune_mask", "blocks": [2, 3], "attn": "001111", "mlp": "110000"},
    ),
    "bits above the readout": (
        {"method": "memcontrol_bits", "bits": "010111", "readout_block": 3},
        {"method": "memcontrol_bits", "bits": "010000", "readout_block": 3},
    ),
    "masks in two pieces": (
        {"method": "memcontrol_bits", "bits": "010100"},
        [
            {"method": "memcontrol_bits", "blocks": [0, 2], "bits": "010011"},
            {"method": "memcontrol_bits", "blocks": [3, 5], "bits": "100100"},
        ][::-1],
    ),
    "one tap": (
        {"method": "unipt", "blocks": [3, 4], "every": 2},
        {"method": "unipt", "blocks": [3, 3], "every": 3},
    ),
    "the last tap": (
        {"method": "unipt", "blocks": [2, 5], "every": 2},
        {"method": "unipt", "blocks": [2, 4], "every": 2},
    ),
    "one module for one block": (
        {"method": "dvpt", "blocks": 1, "share": True},
        {"method": "dvpt", "blocks": 1},
    ),
    "no penalty": (
        {"method": "pego", "lam": 0.0, "n": 4, "r": 4},
        {"method": "pego", "lam": 0.0, "n": 2, "r": 8, "basis": "top"},
    ),
    "the final norm behind other blocks": (
        {"method": "lora_qv", "blocks": [1, 2], "train_final_norm": False},
        {"method": "lora_qv", "blocks": [1, 2]},
    ),
    "the final norm said by one of two ranges": (
        {"method": "lora_qv", "blocks": [1, 5], "train_final_norm": False},
        [
            {"method": "lora_qv", "blocks": [1, 2]},
            {"method": "lora_qv", "blocks": [3, 5], "train_final_norm": False},
        ],
    ),
    "one layer, ranked": (
        {"method": "smt", "blocks": [1, 1], "modules": ["fc1"], "share": 0.3, "ranking": "layer"},
        {"method": "smt", "blocks": [1, 1], "modules": ["fc1"], "share": 0.3},
    ),
    "more of a row than it has": (
        {"method": "sparse", "granularity": "row", "per_row": 64, "modules": ["proj"]},
        {"method": "sparse", "granularity": "row", "per_row": 1024, "modules": ["proj"]},
    ),
    "rounds without anybody left": (
        {"method": "fedselect_rule", "grow": 0.8, "rounds": 2, "blocks": 1},
        {"method": "fedselect_rule", "grow": 0.8, "rounds": 1, "blocks": 1},
    ),
    "a rank above the layer's": (
        {"method": "lora_b_only", "modules": ["proj"], "r": 128, "lora_alpha": 64.0},
        {"method": "lora_b_only", "modules": ["proj"], "r": 64, "lora_alpha": 32.0},
    ),
    "a whole second factor": (
        {"method": "lokr", "modules": ["proj"], "r": 4, "alpha": 4.0},
        {"method": "lokr", "modules": ["proj"], "r": 32, "alpha": 32.0},
    ),
}
SIX = random_backbone("test_vit", 32)


@pytest.mark.parametrize("spellings", SPELLINGS.values(), ids=SPELLINGS)
def test_two_spellings_of_one_network_are_one_candidate(spellings, monkeypatch):
    raws = [s if isinstance(s, dict) else {"strata": s, "train": {"lr": 1e-3}} for s in spellings]
    raws = [{"lr": 1e-3, **raw} if "method" in raw else raw for raw in raws]
    one, other = (canonical(raw, SIX.facts) for raw in raws)
    assert one.to_json() == other.to_json()
    assert canonical(one.to_dict(), SIX.facts) == one
    monkeypatch.setattr(adapted, "_mix", lambda *parts: 0)
    plain = [as_written(raw, SIX.facts) for raw in raws]
    assert plain[0].fingerprint != plain[1].fingerprint
    made = [trained(c, SIX) for c in plain]
    assert same(*made)
    assert same(made[0], trained(one, SIX))


def test_the_first_block_is_never_dropped():
    raw = {"method": "lora", "readout_block": 1}
    assert canonical({**raw, "drop_path": 0.3}, SIX.facts) == canonical(raw, SIX.facts)
    raw = {"method": "lora", "readout_block": 2}
    assert canonical({**raw, "drop_path": 0.3}, SIX.facts) != canonical(raw, SIX.facts)


def test_layer_decay_is_never_idle():
    """The head keeps the whole rate, so even one block has another one."""
    raw = {"method": "lora", "blocks": 1, "lr": 1e-3}
    rates = []
    for decay in (1.0, 0.5):
        candidate = canonical({**raw, "layer_decay": decay}, SIX.facts)
        groups = build(SIX, candidate, 2, 0, 0).param_groups(1e-3, 0.0, decay)
        rates.append({g["lr"] for g in groups})
    assert rates == [{1e-3}, {1e-3, 0.5e-3}]


def test_unipt_s_ranges_stay_two_networks():
    strata = [
        {"method": "unipt", "blocks": [2, 2], "every": 2},
        {"method": "unipt", "blocks": [3, 3], "every": 1},
    ]
    made = canonical({"strata": strata}, SIX.facts)
    assert [s.blocks for s in made.strata] == [(2, 2), (3, 3)]


def test_spafit_twice_on_one_block_is_refused():
    strata = [
        {"method": "spafit", "blocks": [2, 4], "modules": ["qkv"], "r": 4},
        {"method": "spafit", "blocks": [4, 5], "modules": ["proj"], "r": 8},
    ]
    with pytest.raises(UserError, match="block 4 gets spafit twice"):
        canonical({"strata": strata}, SIX.facts)


def test_a_method_may_settle_its_own_options():
    """The default changes nothing, and what a method answers is cut and merged again."""

    @dataclass(frozen=True)
    class Never(METHODS["bitfit"]):
        name = "never"

        @classmethod
        def settled(cls, facts, strata, readout):
            return [changed(s, which="all") for s in strata]

    METHODS["never"] = Never
    try:
        strata = [
            {"method": "never", "blocks": [2, 3], "which": "norm"},
            {"method": "never", "blocks": [4, 5]},
        ]
        (made,) = canonical({"strata": strata}, SIX.facts).strata
        assert made.blocks == (2, 5)
        assert made.options == {"which": "all"}
    finally:
        del METHODS["never"]
