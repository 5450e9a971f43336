"""Explicit attention computes what timm computes."""

import pytest
import torch
from timm.layers import Attention
from torch import nn

from autopeft.training.attention import Attend, attend_explicitly
from autopeft.training.precision import autocast


def module(**options):
    torch.manual_seed(0)
    return Attention(24, num_heads=3, qkv_bias=True, **options)


def x(dtype=torch.float32):
    made = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return made.requires_grad_()


def step(attention, x, precision="fp32"):
    with autocast(precision):
        out = attention(x)
    wanted = [x, *attention.parameters()]
    return out.detach().float(), torch.autograd.grad(out.float().pow(2).sum(), wanted)


def test_the_function_has_the_right_gradients():
    qkv = torch.randn(2, 4, 18, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: Attend.apply(t, 2, 0.7), (qkv,))


def test_the_function_is_scaled_dot_product_attention():
    qkv = torch.randn(2, 4, 18, dtype=torch.float64)
    q, k, v = qkv.view(2, 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.7)
    expected = expected.transpose(1, 2).reshape(2, 4, 6)
    torch.testing.assert_close(Attend.apply(qkv, 2, 0.7), expected)


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-5), ("bf16", 0.05)])
@pytest.mark.parametrize("options", [{}, {"attn_head_dim": 4}, {"dim_out": 8}])
def test_a_module_steps_as_timm_s(precision, near, options):
    plain, quick = module(**options), module(**options)
    attend_explicitly(quick)
    assert "forward" in vars(quick)
    expected, found = step(plain, x()), step(quick, x(), precision)
    torch.testing.assert_close(found[0], expected[0], rtol=near, atol=near)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert (ours - theirs).norm() <= near * theirs.norm()


@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": True, "norm_layer": nn.LayerNorm},
        {"scale_norm": True, "norm_layer": nn.LayerNorm},
        {"attn_drop": 0.1},
        {"gated": True},
    ],
)
def test_what_is_not_plain_stays_timm_s(options):
    attention = module(**options)
    attend_explicitly(attention)
    assert "forward" not in vars(attention)
    assert attention.fused_attn is False


def test_another_method_s_hook_is_not_passed_by():
    attention = module()
    attention.attn_drop.register_forward_hook(lambda module, args, out: out * 0)
    attend_explicitly(attention)
    assert "forward" not in vars(attention)


def test_a_mask_goes_the_plain_way():
    plain, quick = module(), module()
    attend_explicitly(quick)
    torch.testing.assert_close(quick(x(), is_causal=True), plain(x(), is_causal=True))
