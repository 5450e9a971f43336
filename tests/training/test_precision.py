"""Which number format a search takes."""

import pytest
import torch

from autopeft.training import precision
from autopeft.training.precision import autocast, decide, find_device


def test_what_is_asked_is_taken():
    assert decide("fp32") == "fp32"
    assert decide("bf16") == "bf16"
    assert decide("fp16") == "fp16"


@pytest.mark.parametrize(
    ("slow", "fast", "want"), [(2.0, 1.0, "bf16"), (1.2, 1.0, "fp32"), (1.0, 9.0, "fp32")]
)
def test_auto_measures_and_leaves_threads_alone(monkeypatch, slow, fast, want):
    before, seen = torch.get_num_threads(), []

    def fastest(*calls):
        seen.extend((torch.get_num_threads(), call().dtype) for call in calls)
        return [slow, fast]

    monkeypatch.setattr(precision, "_fastest", fastest)
    assert decide("auto", threads=2) == want
    assert seen == [(2, torch.float32), (2, torch.bfloat16)]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("native", "slow", "fast", "want"),
    [
        (True, 1.0, 9.0, "bf16"),  # what the hardware has is taken
        (False, 1.6, 1.0, "fp16"),
        (False, 1.4, 1.0, "fp32"),
    ],
)
def test_auto_on_a_gpu_asks_the_gpu(monkeypatch, native, slow, fast, want):
    asked, real = {}, torch.randn

    def supported(including_emulation=True):
        asked["emulated"] = including_emulation
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: real(*shape))
    monkeypatch.setattr(precision, "_fastest", lambda *calls: [slow, fast])
    assert decide("auto", device="cuda") == want
    assert asked == {"emulated": False}


def test_auto_really_measures_and_not_for_long(monkeypatch):
    assert decide("auto") in ("fp32", "bf16")
    calls = []
    assert min(precision._fastest(lambda: calls.append(1), times=3)) >= 0
    assert len(calls) == 4
    clock = iter(range(100))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock) / 10)
    calls.clear()
    assert precision._fastest(lambda: calls.append(1)) == [pytest.approx(0.1)]
    assert len(calls) <= 4  # a slow machine is measured less often


def test_a_busy_moment_does_not_decide(monkeypatch):
    """Both formats take turns, and the least disturbed round of each counts."""
    now, busy, order = [0.0], [9.0, 9.0, 0.0, 0.0, 5.0, 0.0, 0.0, 5.0], []

    def call(name, seconds):
        order.append(name)
        now[0] += seconds + (busy.pop(0) if busy else 0.0)

    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(precision, "_SECONDS", 100.0)
    found = precision._fastest(lambda: call("a", 0.3), lambda: call("b", 0.1), times=4)
    assert found == [pytest.approx(0.3), pytest.approx(0.1)]
    assert order == ["a", "b"] * 5


def test_the_device_is_the_gpu_where_there_is_one(monkeypatch):
    for there, want in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert find_device() == want


def test_autocast():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with autocast("fp32"):
        assert layer(x).dtype == torch.float32
    with autocast("bf16"):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    with autocast("fp16"):
        assert layer(x).dtype == torch.float16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
