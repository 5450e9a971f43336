"""Training: resumable to the bit, seeded, equal in pieces, stopped by NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from autopeft.methods import build, canonical
from autopeft.training import loop
from autopeft.training.fast import Casts, speed_up
from autopeft.training.images import normalize
from autopeft.training.loop import NotFiniteError, Plan, Source, pixels, train_epochs

LORA = {"method": "lora", "blocks": [3, 5], "r": 4, "lr": 3e-3, "head_init": "random"}


def make(vit, rows, store, raw=LORA, repeat=0, **changes):
    """An adapter and the plan to train it."""
    candidate = canonical(raw, vit.facts)
    given = {
        "rows": rows,
        "source": Source(0, lambda index, view: pixels(store, vit.facts, index, view)),
        "kind": "binary", "train": candidate.train, "epochs": 3,
        "batch_size": 8, "micro_batch": 0, "views": 4, "seed": 5, "repeat": repeat,
        "precision": "fp32",
    }  # fmt: skip
    plan = Plan(**given | changes)
    outputs = plan.rows.label.shape[1]
    return build(vit, candidate, outputs, plan.seed, plan.repeat), plan


def trained(*args, **options):
    adapted, plan = make(*args, **options)
    loss, _ = train_epochs(adapted, plan, 0, plan.epochs)
    return adapted, loss


def same(a, b):
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(
    "raw",
    [
        LORA,
        {**LORA, "optimizer": "sgd", "lr": 0.05, "sampling": "label_x_group"},
        {**LORA, "drop_path": 0.2, "lora_dropout": 0.1, "views": 0},
        {"method": "bitfit", "blocks": 2, "layer_decay": 0.8, "head_init": "random"},
        {"method": "full", "blocks": 1, "lr": 1e-3, "loss": "focal", "head_init": "random"},
    ],
    ids=["adamw", "sgd", "dropout", "bitfit", "full"],
)
def test_two_stretches_equal_one_bit_for_bit(vit, rows, store, raw):
    raw = dict(raw)
    views = raw.pop("views", 4)
    whole, plan = make(vit, rows, store, raw, views=views)
    whole_loss, whole_state = train_epochs(whole, plan, 0, 3)
    first, plan = make(vit, rows, store, raw, views=views)
    _, state = train_epochs(first, plan, 0, 1)
    second, plan = make(vit, rows, store, raw, views=views)
    second.load_tensors({k: v.clone() for k, v in first.tensors().items()})
    torch.manual_seed(99)  # whatever happened in between
    loss, end = train_epochs(second, plan, 1, 3, {k: v.clone() for k, v in state.items()})
    assert same(whole, second)
    assert loss == whole_loss
    assert end.keys() == whole_state.keys()
    assert all(torch.equal(end[k], whole_state[k]) for k in end)
    assert not same(whole, first)
    forgetful, plan = make(vit, rows, store, raw, views=views)
    forgetful.load_tensors(first.tensors())
    train_epochs(forgetful, plan, 1, 3)  # without the optimizer's state it is another training
    assert not same(whole, forgetful)


def test_seed_and_repeat_decide(vit, rows, store):
    one, loss = trained(vit, rows, store)
    again, same_loss = trained(vit, rows, store)
    assert same(one, again)
    assert loss == same_loss
    assert not same(one, trained(vit, rows, store, repeat=1)[0])
    assert not same(one, trained(vit, rows, store, seed=6)[0])


@pytest.mark.parametrize("what", ["views", "sampling", "loss", "epochs"])
def test_what_a_plan_says_matters(vit, rows, store, what):
    raw, changes = dict(LORA), {}
    if what in ("sampling", "loss"):
        raw[what] = {"sampling": "group", "loss": "weighted"}[what]
    else:
        changes[what] = {"views": 1, "epochs": 4}[what]
    one, plan = make(vit, rows, store)
    train_epochs(one, plan, 0, 1)
    other, plan = make(vit, rows, store, raw, **changes)
    train_epochs(other, plan, 0, 1)
    assert not same(one, other)


def gradients(vit, rows, store, monkeypatch, **changes):
    """Loss and gradients of the first step."""
    adapted, plan = make(vit, rows, store, **changes)
    seen = {}

    def step(parameters, largest):
        seen.update({n: p.grad.clone() for n, p in adapted.trainable.items()})
        raise StopIteration

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", step)
    with pytest.raises(StopIteration):
        train_epochs(adapted, plan, 0, 1)
    return seen


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_give_the_batch_s_gradient(vit, rows, store, monkeypatch, micro_batch):
    want = gradients(vit, rows, store, monkeypatch)
    got = gradients(vit, rows, store, monkeypatch, micro_batch=micro_batch)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


def test_micro_batches_give_the_batch_s_loss(vit, rows, store):
    _, whole = trained(vit, rows, store)
    _, pieces = trained(vit, rows, store, micro_batch=3)
    assert pieces == pytest.approx(whole, abs=1e-5)


def test_the_first_step_is_adamw_on_the_plain_loss(vit, rows, store, monkeypatch):
    """Written out with torch alone: one batch, views off."""
    changes = {"views": 1, "batch_size": 20, "epochs": 1}
    got = gradients(vit, rows, store, monkeypatch, **changes)
    adapted, plan = make(vit, rows, store, **changes)
    pixels = normalize(store.batch(rows.index), vit.facts.mean, vit.facts.std)
    keep = ~np.isnan(rows.label[:, 0])
    logits = adapted.logits(pixels)[torch.from_numpy(keep)]
    functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(rows.label[keep])
    ).backward()
    for name, parameter in adapted.trainable.items():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_only_the_adapter_and_the_head_change(vit, rows, store):
    resident = {k: v.clone() for k, v in vit.model.state_dict().items()}
    start, _ = make(vit, rows, store)
    frozen = {
        k: v.clone() for k, v in start.network.model.named_parameters() if not v.requires_grad
    }
    adapted, _ = trained(vit, rows, store)
    for name, tensor in vit.model.state_dict().items():
        assert torch.equal(tensor, resident[name])
    after = dict(adapted.network.model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert all(after[name].grad is None for name in frozen)
    before = start.tensors()
    for name, tensor in adapted.tensors().items():
        assert not torch.equal(before[name], tensor), name
    assert not any(m.training for m in adapted.network.model.modules())


def test_training_learns(vit, rows, store):
    adapted, last = trained(vit, rows, store, {**LORA, "lr": 1e-2}, epochs=12, views=1)
    _, plan = make(vit, rows, store)
    assert last < 0.3  # brightness is easy
    with torch.no_grad():
        pixels = normalize(store.batch(rows.index), vit.facts.mean, vit.facts.std)
        scores = adapted.logits(pixels)[:, 0].numpy()
    label = rows.label[:, 0]
    assert scores[label == 1].min() > scores[label == 0].max()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(vit, rows, store, value):
    adapted, plan = make(vit, rows, store)
    with torch.no_grad():
        adapted.head.bias.fill_(value)
    with pytest.raises(NotFiniteError, match="at epoch 0, step 0"):
        train_epochs(adapted, plan, 0, 1)


def test_three_classes_and_several_labels(vit, rows, store):
    label = np.eye(3, dtype=np.float32)[np.arange(20) % 3]
    label[4] = np.nan
    three = type(rows)(rows.path, rows.index, rows.patient, label, rows.groups)
    losses = {k: trained(vit, three, store, kind=k)[1] for k in ("multiclass", "multilabel")}
    assert all(map(math.isfinite, losses.values()))
    assert losses["multiclass"] == pytest.approx(math.log(3), abs=0.3)
    assert losses["multilabel"] == pytest.approx(0.64, abs=0.15)


def test_an_unlabelled_batch_changes_nothing_but_decay(vit, rows, store):
    blank = type(rows)(
        rows.path, rows.index, rows.patient, np.full_like(rows.label, np.nan), rows.groups
    )
    _, loss = trained(vit, blank, store)
    assert loss == 0


def test_bf16_trains_fp32_weights(vit, rows, store):
    adapted, loss = trained(vit, rows, store, precision="bf16")
    assert all(v.dtype == torch.float32 for v in adapted.tensors().values())
    assert loss == pytest.approx(trained(vit, rows, store)[1], abs=0.1)


def test_the_schedule_spans_all_epochs():
    steps = [loop._schedule(i, 100) for i in range(100)]
    assert steps[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(steps) == 1
    assert all(a >= b for a, b in zip(steps[9:], steps[10:], strict=False))
    assert steps[55] == pytest.approx(0.5)
    assert 0 < steps[-1] < 0.001
    assert [loop._schedule(i, 1) for i in range(1)] == [1]


def test_progress_counts_steps(vit, rows, store):
    adapted, plan = make(vit, rows, store)
    seen = []
    train_epochs(adapted, plan, 1, 3, None, lambda *step: seen.append(step))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_pixels_of_a_plain_view_are_normalized_pixels(vit, rows, store):
    index = rows.index[:5]
    got = pixels(store, vit.facts, index, np.zeros(5, np.int64))
    want = normalize(store.batch(index), vit.facts.mean, vit.facts.std)
    assert torch.equal(got, want)


# ---- fp16 ---------------------------------------------------------------------------------------


def half(vit, rows, store, **changes):
    """A sped-up adapter in fp16 and its plan."""
    adapted, plan = make(vit, rows, store, precision="fp16", **changes)
    speed_up(adapted, "fp16", Casts(vit.model))
    return adapted, plan


def test_fp16_trains_as_fp32_does(vit, rows, store):
    adapted, plan = half(vit, rows, store)
    loss, state = train_epochs(adapted, plan, 0, 3)
    _, exact = trained(vit, rows, store)
    assert loss == pytest.approx(exact, abs=0.02)
    assert all(p.dtype == torch.float32 for p in adapted.trainable.values())
    assert state["loss scale|scale"] == 2.0**16
    assert state["loss scale|_growth_tracker"] == 9  # steps


@pytest.mark.parametrize("raw", [LORA, {**LORA, "optimizer": "sgd", "lr": 0.05}])
def test_fp16_in_two_stretches_equals_one_bit_for_bit(vit, rows, store, raw, monkeypatch):
    """With a scale that grows every second step, and steps that are skipped for it."""
    real = torch.amp.GradScaler

    def quick(device, enabled):
        return real(device, init_scale=2.0**22, growth_interval=2, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", quick)
    whole, plan = half(vit, rows, store, raw=raw)
    whole_loss, whole_state = train_epochs(whole, plan, 0, 3)
    first, plan = half(vit, rows, store, raw=raw)
    _, state = train_epochs(first, plan, 0, 2)
    assert state["loss scale|scale"] < 2.0**22  # some were skipped
    assert not same(first, half(vit, rows, store, raw=raw)[0])  # and some were not
    second, plan = half(vit, rows, store, raw=raw)
    second.load_tensors({k: v.clone() for k, v in first.tensors().items()})
    loss, end = train_epochs(second, plan, 2, 3, {k: v.clone() for k, v in state.items()})
    assert loss == whole_loss
    assert same(whole, second)
    assert end.keys() == whole_state.keys()
    assert all(torch.equal(end[k], whole_state[k]) for k in end)


def test_a_skipped_step_changes_nothing_and_its_gradients_are_zero(vit, rows, store, monkeypatch):
    real, seen = torch.amp.GradScaler, []
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: real(device, init_scale=2.0**80)
    )
    adapted, plan = half(vit, rows, store)
    before = {k: v.clone() for k, v in adapted.tensors().items()}

    def look(step, total):
        seen.append(max(float(p.grad.abs().max()) for p in adapted.trainable.values()))

    adapted.after_step = look
    loss, state = train_epochs(adapted, plan, 0, 1)
    assert math.isfinite(loss)
    assert seen == [0.0] * 3
    assert state["loss scale|scale"] == 2.0**77
    assert all(torch.equal(before[k], v) for k, v in adapted.tensors().items())


def test_fp16_gives_up_when_no_scale_is_small_enough(vit, rows, store, monkeypatch):
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: real(device, init_scale=2.0)
    )
    adapted, plan = half(vit, rows, store)
    adapted.extra_loss = lambda: next(iter(adapted.trainable.values())).sum().mul(0) * 1e30
    for parameter in adapted.trainable.values():
        parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NotFiniteError, match="any loss scale"):
        train_epochs(adapted, plan, 0, 1)


def test_fp16_gradients_are_unscaled_before_they_are_clipped(vit, rows, store):
    """What a method sees after the first step is fp32's clipped gradient."""
    found = {}
    for name in ("fp32", "fp16"):
        adapted, plan = make(vit, rows, store, precision=name)
        speed_up(adapted, name, Casts(vit.model))
        steps = []

        def look(step, total, steps=steps, adapted=adapted):
            steps.append({n: p.grad.clone() for n, p in adapted.trainable.items()})

        adapted.after_step = look
        train_epochs(adapted, plan, 0, 1)
        found[name] = steps[0]
    total = sum(float(g.norm()) ** 2 for g in found["fp32"].values())
    assert total > 1e-4  # gradients of a size that a scale of 65,536 would show in
    for name, gradient in found["fp32"].items():
        distance = (found["fp16"][name] - gradient).norm()
        assert distance <= 0.05 * gradient.norm() + 1e-3, name
