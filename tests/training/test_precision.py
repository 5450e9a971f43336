"""Which number format a search takes."""

import pytest
import torch

from autopeft.training import precision
from autopeft.training.precision import autocast, decide


def test_what_is_asked_is_taken():
    assert decide("fp32") == "fp32"
    assert decide("bf16") == "bf16"


@pytest.mark.parametrize(
    ("slow", "fast", "want"), [(2.0, 1.0, "bf16"), (1.2, 1.0, "fp32"), (1.0, 9.0, "fp32")]
)
def test_auto_measures_and_leaves_threads_alone(monkeypatch, slow, fast, want):
    times, before = [slow, fast], torch.get_num_threads()
    seen = []

    def median(call):
        seen.append((torch.get_num_threads(), call().dtype))
        return times.pop(0)

    monkeypatch.setattr(precision, "_median", median)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert decide("auto", threads=2) == want
    assert seen == [(2, torch.float32), (2, torch.bfloat16)]
    assert torch.get_num_threads() == before


def test_auto_on_a_gpu_asks_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert decide("auto") == ("bf16" if able else "fp32")


def test_auto_really_measures():
    assert decide("auto") in ("fp32", "bf16")
    calls = []
    assert precision._median(lambda: calls.append(1), times=3) >= 0
    assert len(calls) == 4


def test_autocast():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with autocast("fp32"):
        assert layer(x).dtype == torch.float32
    with autocast("bf16"):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
