"""The fast path computes what peft's own layers compute."""

import copy

import pytest
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from autopeft.backbones.describe import random_backbone
from autopeft.methods import build, canonical
from autopeft.training import fast, products
from autopeft.training.fast import Casts, LowRank, Scaled, speed_up
from autopeft.training.precision import autocast
from autopeft.training.products import Matrix


def lora(vit, **changes):
    raw = {"method": "lora", "blocks": "all", "r": 4, "lora_alpha": 8, "lr": 1e-3, **changes}
    raw = {k: v for k, v in raw.items() if v is not None}
    adapted = build(vit, canonical(raw, vit.facts), 2, seed=0, repeat=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.trainable.values():  # B starts at zero: then nothing is tested
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    adapted.set_train(True)
    return adapted


def gradients(adapted, pixels, precision="fp32"):
    with autocast(precision):
        logits = adapted.logits(pixels)
    (logits.float() ** 2).sum().backward()
    return logits.detach().float(), {n: p.grad.clone() for n, p in adapted.trainable.items()}


@pytest.fixture
def pixels(vit):
    size = vit.facts.image_size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_the_function_has_the_right_gradients(bias):
    torch.manual_seed(0)
    x, a, b = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 5), (2, 5), (4, 2)))
    w, c = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    for t in (x, a, b):
        t.requires_grad_()
    c = c if bias else None

    def plain(x, a, b):
        return nn.functional.linear(x, w, c) + 0.5 * (x @ a.t()) @ b.t()

    torch.testing.assert_close(LowRank.apply(x, Matrix(w), c, a, b, 0.5), plain(x, a, b))
    for ours, theirs in zip(
        torch.autograd.grad(LowRank.apply(x, Matrix(w), c, a, b, 0.5).pow(2).sum(), (x, a, b)),
        torch.autograd.grad(plain(x, a, b).pow(2).sum(), (x, a, b)),
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("least", [0.5, 0.0])
def test_a_scaled_layer_has_the_right_gradients(bias, shift, least):
    torch.manual_seed(0)
    x, s, t = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 5), (4,), (4,)))
    w, c = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    s = s.abs() + least if least else s * torch.tensor([0.0, 1, 1, 1])  # one of them is 0
    used = (x, s, t) if shift else (x, s)
    for v in used:
        v.requires_grad_()
    c, t = c if bias else None, t if shift else None

    def plain():
        out = nn.functional.linear(x, w, c) * s
        return out if t is None else out + t

    torch.testing.assert_close(Scaled.apply(x, w, c, s, t), plain())
    for ours, theirs in zip(
        torch.autograd.grad(Scaled.apply(x, w, c, s, t).pow(2).sum(), used),
        torch.autograd.grad(plain().pow(2).sum(), used),
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["ssf", "difffit"])
@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("bf16", 0.15)])
def test_scaled_layers_step_as_their_hooks_do(vit, pixels, method, precision, close):
    plain, quick = (lora(vit, method=method, r=None, lora_alpha=None) for _ in range(2))
    speed_up(quick, precision, Casts(vit.model))
    fused = [m for m in quick.network.model.modules() if "scaled_by" in vars(m)]
    assert bool(fused) == (method == "ssf")  # DiffFit scales no linear layer
    expected, grads = gradients(plain, pixels)
    found, others = gradients(quick, pixels, precision)
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    for name, grad in grads.items():
        apart = (others[name] - grad).norm() / grad.norm().clamp_min(1e-6)
        assert apart < close, name


def test_another_method_on_top_of_a_scaled_layer_keeps_the_hook(vit):
    quick = lora(vit, method="ssf", r=None, lora_alpha=None)
    linear = next(m for m in quick.network.model.modules() if hasattr(m, "ssf_scale"))
    linear.register_forward_hook(lambda module, args, out: out)
    speed_up(quick, "fp32", Casts(vit.model))
    assert "scaled_by" not in vars(linear)


def test_a_step_equals_peft_s_own_in_fp32(vit, pixels):
    plain, quick = lora(vit), lora(vit)
    speed_up(quick, "fp32", Casts(vit.model))
    replaced = [m for m in quick.network.model.modules() if isinstance(m, PeftLinear)]
    assert replaced
    assert all(m.forward.__func__ is fast._lora_forward for m in replaced)
    expected, found = gradients(plain, pixels), gradients(quick, pixels)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name in expected[1]:
        torch.testing.assert_close(found[1][name], expected[1][name], rtol=1e-3, atol=1e-4)


def test_a_step_in_bf16_lies_as_near_to_fp32_as_autocast_does(vit, pixels):
    exact = gradients(lora(vit), pixels)
    auto = gradients(lora(vit), pixels, "bf16")
    quick = lora(vit)
    speed_up(quick, "bf16", Casts(vit.model))
    ours = gradients(quick, pixels, "bf16")

    def distance(found):
        return sum((found[1][n] - exact[1][n]).norm() ** 2 for n in exact[1]).sqrt()

    size = sum(g.norm() ** 2 for g in exact[1].values()).sqrt()
    assert distance(ours) < max(2 * distance(auto), 0.02 * size)
    assert all(g.dtype == torch.float32 for g in ours[1].values())


@pytest.mark.parametrize("packing", [True, False])
def test_the_first_steps_of_an_adapter_are_not_rounded_away_in_bf16(vit, monkeypatch, packing):
    """B is small after one step at a low rate: added to a rounded W x + c, 11 % would be left."""
    pixels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if not packing:
        monkeypatch.setattr(products, "can_pack", lambda: False)

    def features(adapted, precision):
        with torch.no_grad(), autocast(precision):
            return adapted.network.advance(0, pixels, adapted.network.depth).float()

    effects = []
    for precision in ("fp32", "bf16"):
        adapted = lora(vit)
        if precision == "bf16":
            speed_up(adapted, "bf16", Casts(vit.model))
        ups = [p for n, p in adapted.trainable.items() if "lora_B" in n]
        with torch.no_grad():
            for up in ups:
                up.mul_(1e-3)
        on = features(adapted, precision)
        with torch.no_grad():
            for up in ups:
                up.zero_()
        effects.append(on - features(adapted, precision))
    exact, ours = effects
    left = (exact * ours).sum() / exact.pow(2).sum()
    assert 0.8 < left < 1.2, left


def test_frozen_linear_layers_share_what_is_laid_out_and_adapters_keep_theirs(vit, pixels):
    casts = Casts(vit.model)
    frozen = fast.quick_frozen(vit, "bf16", casts)
    places = {"method": "lora", "blocks": [2, 3]}
    adapted = build(vit, canonical({**places, "lr": 1e-3}, vit.facts), 2, seed=0, repeat=0)
    speed_up(adapted, "bf16", casts)
    path = "blocks.0.mlp.fc1"
    one, two = (n.model.get_submodule(path) for n in (frozen, adapted.network))
    assert one.forward.__func__ is two.forward.__func__ is fast._frozen_forward
    assert one.matrix is two.matrix
    with torch.no_grad(), autocast("bf16"):
        low = frozen.advance(0, pixels, 2)
        assert torch.equal(low, adapted.network.advance(0, pixels, 2))
    torch.testing.assert_close(low.float(), vit.advance(0, pixels, 2), rtol=0.1, atol=0.1)
    head = [m for m in adapted.network.model.modules() if type(m) is nn.Linear]
    assert all("forward" not in vars(m) for m in head if m.weight.requires_grad)


def test_a_fork_s_own_frozen_weight_is_not_laid_out_for_others(vit):
    casts = Casts(vit.model)
    own = torch.ones(8, 8, dtype=torch.bfloat16)
    assert casts.matrix(own) is not casts.matrix(own)
    shared = casts.low(vit.model.blocks[0].attn.qkv.weight)
    assert casts.matrix(shared) is casts.matrix(shared)
    rows = shared[:8]  # begins where the whole begins
    assert casts.matrix(rows).weight.shape == rows.shape


def test_without_packed_products_linear_layers_stay_torch_s_own(vit, monkeypatch):
    monkeypatch.setattr(fast, "can_pack", lambda: False)
    frozen = fast.quick_frozen(vit, "bf16", Casts(vit.model))
    layers = [m for m in frozen.model.modules() if type(m) is nn.Linear]
    assert layers
    assert not any("forward" in vars(m) for m in layers)


def test_a_step_in_fp16_lies_near_fp32(vit, pixels):
    exact = gradients(lora(vit), pixels)
    quick = lora(vit)
    speed_up(quick, "fp16", Casts(vit.model))
    logits, found = gradients(quick, pixels, "fp16")
    layers = [m for m in quick.network.model.modules() if isinstance(m, PeftLinear)]
    assert {m.get_base_layer().weight.dtype for m in layers} == {torch.float16}
    torch.testing.assert_close(logits, exact[0], rtol=0.02, atol=0.02)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - exact[1][name]).norm() < 0.02 * exact[1][name].norm() + 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "raw",
    [
        {"method": "lora", "blocks": "all"},
        {"method": "lora", "blocks": [1, 2], "readout_block": 4},
        {"method": "full", "blocks": 1},
    ],
)
def test_on_another_device_nothing_is_left_behind(vit, monkeypatch, precision, raw):
    """The copies' device is `meta` here, which has no values; what else moves is written down."""
    moved = set()
    monkeypatch.setattr(fast, "move", lambda tensors, device: moved.update(map(id, tensors)))
    casts = Casts(vit.model, "meta")
    adapted = build(vit, canonical({"lr": 1e-3, **raw}, vit.facts), 2, seed=0, repeat=0)
    before = {n: p.data_ptr() for n, p in vit.model.named_parameters()}
    trainable = dict(adapted.trainable)
    speed_up(adapted, precision, casts)
    model = adapted.network.model
    for tensor in [*model.parameters(), *model.buffers(), *adapted.trainable.values()]:
        assert tensor.device.type == "meta" or id(tensor) in moved
    assert all(adapted.trainable[n] is p and id(p) in moved for n, p in trainable.items())
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert sum(p.device.type == "meta" for p in frozen) > 10
    again = fast.quick_frozen(vit, precision, casts)
    assert all(p.device.type == "meta" for p in again.model.parameters())
    assert before == {n: p.data_ptr() for n, p in vit.model.named_parameters()}


def test_on_another_device_statistics_of_batch_norm_are_there_too(monkeypatch):
    moved = set()
    monkeypatch.setattr(fast, "move", lambda tensors, device: moved.update(map(id, tensors)))
    again = fast.quick_frozen(random_backbone("test_resnet", 64), "bf16", Casts(nn.ReLU(), "meta"))
    buffers = list(again.model.buffers())
    assert buffers
    assert all(id(buffer) in moved for buffer in buffers)


def test_moved_tensors_stay_the_same_objects():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    fast.move([parameter], "cpu")
    parameter.sum().backward()
    optimizer.step()
    assert parameter.tolist() == [0.0, 0.0]


def test_frozen_weights_are_cast_once_for_all_forks_and_the_resident_is_left_alone(vit):
    before = {n: (p.dtype, p.data_ptr()) for n, p in vit.model.named_parameters()}
    casts = Casts(vit.model)
    one, two = lora(vit), lora(vit, r=2)
    speed_up(one, "bf16", casts)
    speed_up(two, "bf16", casts)
    others = dict(two.network.model.named_parameters())
    frozen = {
        n: (p, others[n]) for n, p in one.network.model.named_parameters() if not p.requires_grad
    }
    assert len(frozen) > 20
    assert all(a.data_ptr() == b.data_ptr() for a, b in frozen.values())
    # Norms take low inputs with fp32 weights, as fast.
    kinds = {n: p.dtype for n, (p, _) in frozen.items()}
    assert all((k == torch.float32) == ("norm" in n) for n, k in kinds.items()), kinds
    assert all(p.dtype == torch.float32 for p in one.trainable.values())
    assert before == {n: (p.dtype, p.data_ptr()) for n, p in vit.model.named_parameters()}


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_other_layers_stay_peft_s_own(vit, pixels, changes):
    adapted = lora(vit, **changes)
    speed_up(adapted, "bf16", Casts(vit.model))
    layers = [m for m in adapted.network.model.modules() if isinstance(m, PeftLinear)]
    assert layers
    assert not any("forward" in vars(m) for m in layers)
    logits, found = gradients(adapted, pixels, "bf16")
    assert logits.isfinite().all()
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in found.values())


@pytest.mark.parametrize("method", ["bitfit", "full"])
def test_methods_that_train_plain_parameters_train_in_fp32(vit, pixels, method):
    raw = {"method": method, "blocks": 1, "lr": 1e-3}
    adapted = build(vit, canonical(raw, vit.facts), 2, seed=0, repeat=0)
    plain = copy.deepcopy(adapted)
    speed_up(adapted, "bf16", Casts(vit.model))
    logits, found = gradients(adapted, pixels, "bf16")
    reference, expected = gradients(plain, pixels)
    assert (logits - reference).norm() < 0.05 * reference.norm() + 0.05
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.1 * expected[name].norm() + 0.05, name


def test_attention_is_explicit_only_where_the_fused_one_is_slow(vit):
    for precision, fused in (("bf16", False), ("fp32", True)):
        adapted = lora(vit)
        speed_up(adapted, precision, Casts(vit.model))
        modules = adapted.network.model.modules()
        found = {m.fused_attn for m in modules if hasattr(m, "fused_attn")}
        assert found == {fused}


def test_a_fork_s_own_frozen_tensors_are_never_mistaken_for_others(vit):
    casts = Casts(vit.model)
    for value in range(8):  # each lies where the one before it lay
        own = torch.full((64, 64), float(value))
        assert (casts.low(own) == value).all()
        del own
    assert not casts._copies


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_biases_below_lora_train_too(vit, pixels, precision):
    places = {"blocks": [2, 3]}
    raw = {"strata": [{"method": "lora", **places}, {"method": "bitfit", **places}], "lr": 1e-3}
    found = []
    for quick in (False, True):
        adapted = build(vit, canonical(raw, vit.facts), 2, seed=0, repeat=0)
        if quick:
            speed_up(adapted, precision, Casts(vit.model))
        found.append(gradients(adapted, pixels, precision)[1])
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        near = {"rtol": 1e-3, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.1, "atol": 0.1}
        torch.testing.assert_close(found[1][name], gradient, **near, msg=name)
