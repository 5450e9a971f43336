"""What single methods promise beyond the common contract, and options refused with their range."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import UserError
from autopeft.methods import METHODS, build, canonical
from autopeft.methods.merge import merged_state
from autopeft.methods.scored import ToyScoring, has_scored, look

LAYER = "blocks.5.attn.qkv"
NEVER = "no such word"


def x_of(network, images=4):
    size = network.facts.image_size
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(9))


def built(network, raw):
    candidate = canonical(raw, network.facts)
    fixed = None
    if has_scored(candidate):
        label = torch.arange(4) % 3
        fixed = look(candidate, ToyScoring(network, candidate, x_of(network), label, 3))
    return build(network, candidate, 3, 0, 0, fixed)


def moved(network, method, only="", noise=0.1, **options):
    """A method on one layer; every number moved whose name holds ``only``, the head's not."""
    raw = {"method": method, "blocks": [5, 5], "modules": ["qkv"], **options}
    adapted = built(network, raw)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.trainable.items():
            if only in name and not name.startswith("head"):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return adapted


def part(adapted, name, layer=LAYER):
    return adapted.tensors()[f"{layer}.{name}"].detach().double()


def before(network, layer=LAYER):
    return network.model.state_dict()[f"{layer}.weight"].double()


def after(adapted, layer=LAYER):
    return merged_state(adapted)[f"{layer}.weight"].double()


# ---- low rank -----------------------------------------------------------------------------------


def test_dora_s_rows_are_as_long_as_it_trained_them(vit):
    adapted = moved(vit, "lora", use_dora=True)
    lengths = part(adapted, "lora_magnitude_vector").abs()
    torch.testing.assert_close(after(adapted).norm(dim=1), lengths, rtol=1e-5, atol=1e-6)
    assert (lengths - before(vit).norm(dim=1)).abs().max() > 0.05


def test_rslora_is_lora_with_a_larger_alpha(vit):
    # alpha / sqrt(16) = 4 alpha / 16
    stable = moved(vit, "lora", r=16, lora_alpha=16, use_rslora=True)
    plain = moved(vit, "lora", r=16, lora_alpha=64)
    plain.load_tensors(stable.tensors())
    with torch.no_grad():
        torch.testing.assert_close(stable.logits(x_of(vit)), plain.logits(x_of(vit)))
        fresh = moved(vit, "lora", only=NEVER)
        assert not torch.allclose(stable.pooled(x_of(vit)), fresh.pooled(x_of(vit)), atol=1e-3)


def test_what_deft_takes_out_is_a_projection(vit):
    layer = "blocks.5.attn.proj"  # square, so the projection can be read from the change
    adapted = moved(vit, "deft", r=4, decomposition_method="qr", modules=["proj"])
    with torch.no_grad():
        adapted.trainable[f"{layer}.deft_R"].zero_()  # nothing comes in its place
    weight = before(vit, layer)
    projection = torch.linalg.solve(weight.T, (weight - after(adapted, layer)).T).T
    assert int(torch.linalg.matrix_rank(projection, rtol=1e-3)) == 4
    torch.testing.assert_close(projection @ projection, projection, rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", ["A", "B", "C", "D", "E"])
def test_each_of_glora_s_paths_merges_alone(vit, path):
    adapted = moved(vit, "glora", only=f".glora_{path}.", noise=0.3)
    plain = moved(vit, "glora", only=NEVER)
    merged = vit.fork(3)
    merged.model.load_state_dict(merged_state(adapted), strict=True, assign=True)
    with torch.no_grad():
        torch.testing.assert_close(merged.model(x_of(vit)), adapted.logits(x_of(vit)))
        assert (adapted.logits(x_of(vit)) - plain.logits(x_of(vit))).abs().max() > 1e-4
    changed = {
        k for k, v in vit.model.state_dict().items() if not v.equal(merged_state(adapted)[k])
    }
    assert changed == {f"{LAYER}.weight" if path in "AB" else f"{LAYER}.bias"}


def test_peanut_s_change_comes_from_the_weight(vit):
    adapted = moved(vit, "peanut")
    layer = adapted.network.model.get_submodule(LAYER)
    base = layer.get_base_layer()
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        assert not torch.allclose(
            layer(x), functional.linear(x, base.weight, base.bias), atol=1e-3
        )
        base.weight = nn.Parameter(torch.zeros_like(base.weight))
        assert torch.equal(layer(x), base.bias.expand(2, 3, -1))


# ---- other bases --------------------------------------------------------------------------------


def test_waveft_is_linear_and_its_places_are_fixed(vit):
    once, twice = (moved(vit, "waveft", n_frequency=100, noise=n) for n in (0.1, 0.2))
    a, b = (after(m) - before(vit) for m in (once, twice))
    torch.testing.assert_close(2 * a, b, rtol=1e-3, atol=1e-6)
    assert a.abs().max() > 1e-3


def test_boft_rotates_inputs_and_scales_outputs(vit):
    adapted = moved(vit, "boft")
    turned, weight = after(adapted) / part(adapted, "boft_s"), before(vit)
    torch.testing.assert_close(turned @ turned.T, weight @ weight.T, rtol=0, atol=1e-4)
    assert (turned - weight).abs().max() > 1e-2


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_road_s_fresh_angles_do_nothing_and_road_1_keeps_each_group_s_length(vit, variant):
    adapted = moved(vit, "road", only="theta", variant=variant, noise=0.5)
    weight, turned = before(vit), after(adapted)
    assert (turned - weight).abs().max() > 1e-2
    lengths = [w.unflatten(0, (-1, 32)).norm(dim=1) for w in (weight, turned)]
    if variant == "road_1":  # one angle and one scale a pair: a rotation where the scale is 1
        torch.testing.assert_close(*lengths, rtol=1e-5, atol=1e-6)
    else:
        assert (lengths[0] - lengths[1]).abs().max() > 1e-3


def test_psoft_turns_the_largest_singular_directions_alone(vit):
    adapted = moved(vit, "psoft", only="psoft_R.weight", r=8)
    change = after(adapted) - before(vit)
    u, _, vt = torch.linalg.svd(before(vit), full_matrices=False)
    outside = change - u[:, :8] @ u[:, :8].T @ change @ vt[:8].T @ vt[:8]
    assert outside.norm() < 1e-4 * change.norm()
    turn = adapted.network.model.get_submodule(LAYER).psoft_R["default"].get_matrix().double()
    assert (turn - torch.eye(8)).abs().max() > 1e-2
    torch.testing.assert_close(turn @ turn.T, torch.eye(8).double(), rtol=0, atol=0.02)


def test_a_constant_shift_of_the_keys_is_not_seen(vit):
    """Softmax does not know what all scores of a query have in common."""
    adapted = moved(vit, "beft", only=NEVER)
    (beta,) = [p for n, p in adapted.trainable.items() if n.startswith(LAYER)]
    x, found = x_of(vit), []
    with torch.no_grad():
        plain = adapted.pooled(x)
        for rows in (slice(64, 128), slice(0, 64), slice(128, 192)):
            beta.zero_()
            beta.view(-1)[rows] = torch.linspace(-1, 1, 64)
            found.append(float((adapted.pooled(x) - plain).abs().max()))
    assert found[0] < 2e-6
    assert min(found[1:]) > 1e-4


FRAMES = [
    m for m in METHODS if METHODS[m].family in ("low_rank", "vector", "spectral", "orthogonal")
]


@pytest.mark.parametrize("name", FRAMES)
def test_frames_stay_when_the_rest_trains(vit, name):
    """Bases, projections and places, also those that no file holds, keep every bit."""
    adapted = built(vit, {"method": name, "blocks": [5, 5]})
    own = {p.data_ptr() for p in adapted.trainable.values()}

    def frames():
        found = dict(adapted.network.model.named_buffers()) | dict(adapted.fixed)
        for path, module in adapted.network.model.named_modules():
            found |= {f"{path}.{k}": v for k, v in vars(module).items() if torch.is_tensor(v)}
        return {k: v.detach().clone() for k, v in found.items() if v.data_ptr() not in own}

    start = frames()
    optimizer = torch.optim.AdamW(adapted.param_groups(1e-2, 0.01))
    adapted.set_train(True)
    for step in range(2):
        optimizer.zero_grad()
        loss = functional.cross_entropy(adapted.logits(x_of(vit)), torch.arange(4) % 3)
        (loss + (adapted.extra_loss() if adapted.extra_loss else 0)).backward()
        optimizer.step()
        if adapted.after_step and adapted.candidate.method != "adalora":  # its budget's averages
            adapted.after_step(step, 2)
    end = frames()
    assert not {k for k, v in start.items() if not torch.equal(v, end[k])}


# ---- added modules ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["adapter_houlsby", "adapter_pfeiffer", "adapter_parallel", "adapter_convpass",
     "adapter_conformer", "multiway_adapter", "sct", "dvpt", "vpt_deep"],
)  # fmt: skip
def test_without_its_hooks_the_fork_is_the_backbone_again(vit, name):
    adapted, x = built(vit, {"method": name, "blocks": 2}), x_of(vit)
    model = adapted.network.model
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(0.1)
        plain = vit.advance(0, x, vit.depth)
        assert not torch.allclose(adapted.network.advance(0, x, vit.depth), plain, atol=1e-3)
        for module in model.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        assert torch.equal(adapted.network.advance(0, x, vit.depth), plain)


# ---- options ------------------------------------------------------------------------------------

OPTIONS = [(m, o.name) for m in METHODS for o in fields(METHODS[m]) if o.metadata]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=lambda v: v)
def test_every_option_is_refused_with_its_range(vit, name, option):
    (field,) = [o for o in fields(METHODS[name]) if o.name == option]
    meta = field.metadata
    if "choices" in meta:
        wrong, words = ["nonsense", 7], "Choose: "
    else:
        low, high = meta["low"], meta["high"]
        wrong = [low - 1, high + 1, "nonsense", True, float("nan")]
        words = f"from {low:g} to {high:g}"
    for value in wrong:
        with pytest.raises(UserError) as error:
            canonical({"method": name, option: value}, vit.facts)
        assert option in str(error.value), value
        assert words in str(error.value), value
        assert "\n" not in str(error.value)
