"""Which methods' effect can be scaled inside the adapter: each row held against merged weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autopeft.errors import UserError
from autopeft.methods import METHODS, Scored, build, canonical
from autopeft.methods.interpolation import LINEAR, move_of, why_not
from autopeft.methods.merge import merged_state
from autopeft.methods.scored import ToyScoring, look

SMALL = {"c3a": {"block_size": 16}, "fourierft": {"n_frequency": 100}}
SMALL |= {"waveft": {"n_frequency": 100}, "spafit": {"c2": 5}, "lora_qv": {"lora_dropout": 0}}


def moved(network, raw):
    """An adapter whose every trained number has moved, and its tensors before."""
    candidate = canonical(raw, network.facts)
    fixed = {}
    if any(issubclass(METHODS[s.method], Scored) for s in candidate.strata):
        x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        fixed = look(candidate, ToyScoring(network, candidate, x, torch.arange(8) % 2, 2))
    adapted = build(network, candidate, 2, 0, 0, fixed)
    first = {k: v.clone() for k, v in adapted.tensors().items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return adapted, first


def check_line(network, raw, alpha=0.3):
    """Tensors moved as the table says, merged, are the line between the merged ends."""
    adapted, first = moved(network, raw)
    frozen, trained = network.model.state_dict(), merged_state(adapted)
    new = dict(adapted.tensors())
    for name in adapted.trainable:
        if name.startswith("head."):
            continue
        move = move_of(name, adapted.candidate.strata)
        if move != "held":
            start = first[name] if move == "first" else 0
            new[name] = (1 - alpha) * start + alpha * new[name]
    adapted.load_tensors(new)
    got, far = merged_state(adapted), 0.0
    for name, value in got.items():
        if not name.startswith("head.") and value.is_floating_point():
            want = (1 - alpha) * frozen[name] + alpha * trained[name]
            torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-6)
            far = max(far, float((trained[name] - frozen[name]).abs().max()))
    assert far > 1e-3, "nothing moved, so nothing was tested"


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_the_table_is_true_of_merged_weights(networks, name):
    check_line(networks["test_vit"], {"method": name, "blocks": [3, 5], **SMALL.get(name, {})})


@pytest.mark.parametrize(
    "raw",
    [
        {"method": "lora", "init": "orthogonal", "blocks": 2},
        {"method": "bitfit", "which": "query_only"},
        {
            "strata": [
                {"method": "lora", "blocks": [2, 4]},
                {"method": "bitfit", "blocks": [4, 5]},
            ]
        },
    ],
    ids=str,
)
def test_options_and_mixtures(networks, raw):
    check_line(networks["test_vit"], raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"method": "lora", "use_dora": True}, "DoRA"),
        ({"method": "lora", "init": "pissa", "blocks": 2}, "taken out of the frozen weights"),
        ({"method": "oft"}, "oft is not known to change weights in proportion"),
        ({"method": "vpt_deep"}, "no weight of the plain model"),
        ({"method": "ssf", "init": "paper"}, "not the frozen network"),
        (
            {"strata": [{"method": "ssf", "blocks": 2}, {"method": "bitfit", "blocks": [3, 4]}]},
            "ssf multiplies weights that bitfit changes too",
        ),
    ],
    ids=str,
)
def test_what_is_refused_and_why(networks, raw, reason):
    vit = networks["test_vit"]
    assert reason in why_not(canonical(raw, vit.facts).strata)
    with pytest.raises(UserError, match="post"):
        canonical({**raw, "post": {"method": "wise_ft", "alpha": 0.5}}, vit.facts)


def test_a_row_for_dora_would_be_seen_to_be_false(networks):
    with pytest.raises(AssertionError, match="Tensor-likes"):
        check_line(networks["test_vit"], {"method": "lora", "use_dora": True, "blocks": 2})


def test_a_step_is_part_of_the_candidate(networks):
    facts = networks["test_vit"].facts
    plain = canonical({"method": "lora"}, facts)
    post = {"method": "wise_ft", "alpha": 0.3}
    stepped = canonical({"method": "lora", "post": post}, facts)
    assert stepped.to_dict()["post"] == post
    assert stepped.twin == plain
    assert stepped.fingerprint != plain.fingerprint
    assert canonical(stepped.to_dict(), facts) == stepped
    assert type(stepped).from_dict(stepped.to_dict()) == stepped
    assert stepped.title.endswith(", wise_ft 0.3")
    assert replace(stepped, post=None) == plain


@pytest.mark.parametrize("raw", [{"method": "lora"}, {"method": "linear_probe"}])
def test_a_step_that_changes_nothing_is_none(networks, raw):
    facts = networks["test_vit"].facts
    alpha = 1 if raw["method"] == "lora" else 0.5
    stepped = canonical({**raw, "post": {"method": "wise_ft", "alpha": alpha}}, facts)
    assert stepped == canonical(raw, facts)


def test_a_space_may_ask_for_it_where_it_is_possible(networks):
    facts = networks["test_vit"].facts
    asked = {"method": "wise_ft", "alpha": 0.5, "where_possible": True}
    possible = canonical({"method": "lora", "post": asked}, facts)
    assert possible.to_dict()["post"] == {"method": "wise_ft", "alpha": 0.5}
    plain = canonical({"method": "vpt_deep"}, facts)
    assert canonical({"method": "vpt_deep", "post": asked}, facts) == plain


@pytest.mark.parametrize(
    ("post", "message"),
    [
        ({"method": "wise_ft", "alpha": 0}, "Range: above 0 to 1"),
        ({"method": "wise_ft", "alpha": 1.1}, "Range: above 0 to 1"),
        ({"method": "wise_ft", "alpha": True}, "Range"),
        ({"method": "wise_ft"}, "Range"),
        ({"method": "wiseft", "alpha": 0.5}, "wise_ft"),
        ({"method": "wise_ft", "alfa": 0.5}, "alpha"),
        ("wise_ft", "no mapping"),
    ],
    ids=str,
)
def test_wrong_steps_are_refused(networks, post, message):
    with pytest.raises(UserError, match=message):
        canonical({"method": "lora", "post": post}, networks["test_vit"].facts)


def test_methods_that_name_their_tensors_alike_are_not_interpolated_together(networks):
    raw = {
        "strata": [{"method": "lora", "blocks": [0, 1]}, {"method": "adalora", "blocks": [2, 5]}]
    }
    post = {"post": {"method": "wise_ft", "alpha": 0.5}}
    with pytest.raises(UserError, match="name their tensors alike"):
        canonical({**raw, **post}, networks["test_vit"].facts)
