"""Delta-CoMe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft import posthoc
from autopeft.adapter import merge
from autopeft.errors import UserError
from autopeft.posthoc.compression import (
    GROUP,
    compressed,
    pack,
    restored,
    restored_groups,
    rounded_groups,
    schedule,
    unpack,
)

FULL = {"method": "full", "blocks": 2}


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_packed_numbers_come_back(bits, numbers):
    codes = torch.tensor([n % 2**bits for n in numbers], dtype=torch.uint8)
    packed = pack(codes, bits)
    assert len(packed) == -(-len(codes) * bits // 8)
    assert torch.equal(unpack(packed, bits, len(codes)), codes)
    want = np.packbits([(int(c) >> i) & 1 for c in codes for i in range(bits)], bitorder="little")
    np.testing.assert_array_equal(packed.numpy(), want)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("length", [1, GROUP, GROUP + 3])
def test_rounding_is_off_by_half_a_step(bits, length):
    x = torch.randn(length, generator=torch.Generator().manual_seed(0)).double()
    codes, scales = rounded_groups(x, bits)
    back = restored_groups(codes, scales)
    for start in range(0, length, GROUP):
        part = x[start : start + GROUP]
        step = float(part.max() - part.min()) / (2**bits - 1)
        worst = float((back[start : start + GROUP] - part).abs().max())
        assert worst <= 0.51 * step + 2**bits * 1e-3
    flat = torch.full((5,), 0.25).double()
    assert torch.equal(restored_groups(*rounded_groups(flat, bits)), flat)


def test_vectors_get_bits_until_the_bytes_are_used():
    full = schedule((768, 768), ((8, 2), (3, 32), (2, None)), 1 / 16)
    assert full[:34] == [8] * 2 + [3] * 32
    assert set(full[34:]) == {2}
    spent = sum(2 * (768 * b // 8 + 4 * 6) + 4 for b in full)
    assert spent <= 2 * 768 * 768 / 16 < spent + 2 * (768 * 2 // 8 + 24) + 4
    assert len(schedule((30, 40), ((2, None),), None)) == 30
    assert schedule((8, 8), ((8, None),), 1e-4) == []


def random_change(seed=0):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(48, 48, generator=generator).double()
    right = torch.randn(48, 96, generator=generator).double()
    decay = 0.9 ** torch.arange(48)
    return {"w": (left * decay) @ right, "b": torch.randn(48, generator=generator)}


def error(change, **settings):
    shapes = {k: v.shape for k, v in change.items()}
    back = restored(compressed(change, **settings), shapes)
    assert torch.equal(back["b"], change["b"].double())
    return float((back["w"] - change["w"]).norm() / change["w"].norm())


def test_full_bits_restore_and_fewer_bits_are_worse():
    change = random_change()
    assert error(change, bits=((32, None),), ratio=None) < 1e-5
    errors = [error(change, bits=((b, None),), ratio=None) for b in (8, 6, 4, 3, 2)]
    assert errors == sorted(errors)
    assert errors[0] < 0.02
    shares = [error(change, ratio=r) for r in (None, 1 / 2, 1 / 4, 1 / 8)]
    assert shares == sorted(shares)


def test_what_is_kept_is_the_truncated_decomposition():
    change = random_change()["w"]
    small = compressed({"w": change}, bits=((32, 5),), ratio=None)
    got = restored(small, {"w": change.shape})["w"].numpy()
    u, s, vt = np.linalg.svd(change.numpy())
    want = (u[:, :5] * s[:5]) @ vt[:5]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_of_an_adapter(trained, vit):
    model = trained(FULL)
    content, state = posthoc.delta_come(model)
    want, frozen = merge(model.adapted), vit.model.state_dict()
    assert state.keys() == want.keys()
    assert len(content) < model.adapted.adapter_bytes / 4
    assert torch.equal(state["head.weight"], want["head.weight"])
    assert torch.equal(state["blocks.0.attn.qkv.weight"], frozen["blocks.0.attn.qkv.weight"])
    again = posthoc.delta_come_restored(content, {**frozen, "head.weight": torch.ones(3, 64)})
    assert torch.equal(again["blocks.5.mlp.fc1.weight"], state["blocks.5.mlp.fc1.weight"])
    assert torch.equal(again["head.weight"], want["head.weight"])

    _, whole = posthoc.delta_come(model, bits=((8, None),), ratio=None)
    name = "blocks.5.mlp.fc1.weight"
    far = [(s[name] - want[name]).norm() / (want[name] - frozen[name]).norm()
           for s in (whole, state)]  # fmt: skip
    assert far[0] < 0.03
    assert far[0] < far[1] < 1


def test_refusals(trained):
    lora = trained({"method": "lora", "blocks": 2, "r": 1})
    with pytest.raises(UserError, match="Keep the adapter"):
        posthoc.delta_come(lora, ratio=None)
    full = trained(FULL)
    with pytest.raises(UserError, match="1 bits are not possible"):
        posthoc.delta_come(full, bits=((1, None),))
    with pytest.raises(UserError, match="Range"):
        posthoc.delta_come(full, ratio=0)
