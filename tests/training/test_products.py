"""A frozen matrix multiplies as it should, packed or not, and loses nothing small."""

import pytest
import torch

from autopeft.training import products
from autopeft.training.products import Matrix, can_pack

packs = pytest.mark.skipif(not can_pack(), reason="torch has no packed bf16 products here")


def values(*shape, dtype=torch.bfloat16, seed=0):
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype)


@pytest.fixture(params=["packed", "own", "no packing"])
def make(request, monkeypatch):
    """Makes a bf16 matrix in each of the ways that there are."""
    if request.param == "packed" and not can_pack():
        pytest.skip("torch has no packed bf16 products here")
    monkeypatch.setattr(products, "can_pack", lambda: request.param != "no packing")
    return lambda weight: Matrix(weight, fixed=request.param != "own")


@pytest.mark.parametrize("rows", [(1,), (7,), (3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_numbers(make, rows, bias):
    x, w, grad = values(*rows, 24), values(16, 24, seed=1), values(*rows, 16, seed=2)
    c = values(16, dtype=torch.float32, seed=3) if bias else None
    matrix = make(w)
    expected = x.double() @ w.double().t() + (0 if c is None else c.bfloat16().double())
    near = {"rtol": 2**-8, "atol": 1e-6}  # rounded once
    torch.testing.assert_close(matrix.ahead(x, c).double(), expected, **near)
    torch.testing.assert_close(matrix.back(grad).double(), grad.double() @ w.double(), **near)
    assert matrix.ahead(x, c).dtype == torch.bfloat16


def test_what_is_small_is_not_rounded_away(make):
    """Beside W x + c = 100, 0.1 is less than half a step of bf16; in the mean it must be there."""
    x, w = values(4096, 24), values(16, 24, seed=1)
    c, u = torch.full((16,), 100.0), torch.full((4096, 2), 0.25, dtype=torch.bfloat16)
    v = torch.full((2, 16), 0.2, dtype=torch.bfloat16)
    matrix = make(w)
    added = matrix.ahead(x, c, (u, v)).double() - matrix.ahead(x, c).double()
    assert added.mean().item() == pytest.approx((u @ v)[0, 0].item(), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_formats_go_the_plain_way(dtype):
    x, w, c = values(5, 6, dtype=dtype), values(4, 6, dtype=torch.float32), values(4, seed=1)
    u, v = values(5, 2, dtype=dtype, seed=2), values(2, 4, dtype=dtype, seed=3)
    found = Matrix(w, fixed=True).ahead(x, c, (u, v))
    expected = x.double() @ w.double().t() + c.double() + u.double() @ v.double()
    near = 1e-2 if dtype == torch.float16 else 1e-6
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)


@packs
def test_laid_out_once_and_in_scoring_for_training_too():
    matrix, x = Matrix(values(16, 24), fixed=True), values(8, 24, seed=1)
    with torch.inference_mode():
        matrix.ahead(x)
    first = matrix._packed["ahead"]
    assert not first.is_inference()
    matrix.ahead(x[:3])
    assert matrix._packed["ahead"] is first
    assert set(matrix._packed) == {"ahead"}  # nothing for a gradient that nobody asked for


def test_a_weight_that_may_change_is_never_kept_packed():
    weight, x = values(16, 24), values(8, 24, seed=1)
    matrix = Matrix(weight)
    before = matrix.ahead(x)
    weight.zero_()
    assert before.abs().sum() > 0
    assert not matrix.ahead(x).any()


@pytest.mark.parametrize("fault", [AttributeError, RuntimeError, NotImplementedError, TypeError])
def test_without_torch_s_packed_products_it_goes_on(monkeypatch, fault):
    class Operators:
        def __getattr__(self, name):
            raise fault(name)

    monkeypatch.setattr(torch.ops, "mkldnn", Operators())
    assert products.can_pack.__wrapped__() is False
