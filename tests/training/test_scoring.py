"""What a method may look at: plain training images, the fitted head, fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from autopeft.methods import build, canonical
from autopeft.training.fast import Casts
from autopeft.training.loop import NotFiniteError, Plan, Source, pixels
from autopeft.training.scoring import MADE, TrainScoring


def make(vit, rows, store, made=None, shared="", **train):
    candidate = canonical({"method": "lora", "lr": 1e-3, **train}, vit.facts)
    source = Source(0, lambda index, view: pixels(store, vit.facts, index, view))
    plan = Plan(rows, source, "binary", candidate.train, 3, 8, 0, 2, 5, 0, "fp32")
    head = torch.full((1, 64), 0.1), torch.zeros(1)
    return TrainScoring(
        vit, 1, plan, store, Casts(vit.model), lambda adapted: source, lambda: head,
        {} if made is None else made, shared,
    )  # fmt: skip


def test_batches_are_the_plain_views_in_order(vit, rows, store):
    scoring = make(vit, rows, store)
    parts = list(scoring.batches(8))
    assert [len(x) for x, _ in parts] == [8, 8, 4]
    want = pixels(store, vit.facts, rows.index, np.zeros(20, np.int64))
    assert torch.equal(torch.cat([x for x, _ in parts]), want)
    label = torch.cat([y for _, y in parts])
    np.testing.assert_array_equal(label, rows.label)
    again = torch.cat([x for x, _ in scoring.batches(8)])
    assert torch.equal(again, want)
    few = torch.cat([x for x, _ in scoring.batches(3, 5)])
    assert torch.equal(few, want[[0, 4, 8, 12, 16]])
    assert sum(len(x) for x, _ in scoring.batches(8, 100)) == 20


def test_the_loss_is_the_mean_over_labels(vit, rows, store):
    scoring = make(vit, rows, store)
    logits, label = torch.randn(3, 1), torch.tensor([[1.0], [torch.nan], [0.0]])
    want = functional.binary_cross_entropy_with_logits(logits[[0, 2]], label[[0, 2]])
    assert scoring.loss(logits, label).item() == pytest.approx(want.item())
    assert scoring.loss(logits[1:2], label[1:2]).item() == 0.0
    smooth = make(vit, rows, store, label_smoothing=0.2).loss(logits, label)
    assert smooth.item() != pytest.approx(want.item())
    with pytest.raises(NotFiniteError, match="while weights are scored"):
        scoring.loss(torch.full((1, 1), torch.nan), torch.ones(1, 1))


def test_fine_tuning_is_a_schedule_of_its_own(vit, rows, store):
    """Equal whatever the candidate's own rate and length; the resident backbone stays."""
    before = {k: v.clone() for k, v in vit.model.state_dict().items()}
    ends = []
    for lr in (1e-3, 5e-3):
        scoring = make(vit, rows, store, lr=lr)
        adapted = build(vit, canonical({"method": "full", "blocks": 1}, vit.facts), 1, 0, 0)
        adapted.set_head(*scoring.head())
        start = {k: v.clone() for k, v in adapted.tensors().items()}
        scoring.fine_tune(adapted, 1, 1e-4)
        ends.append({k: v.clone() for k, v in adapted.tensors().items()})
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in start)
    assert any(not torch.equal(ends[0][k], start[k]) for k in start)
    assert all(torch.equal(v, before[k]) for k, v in vit.model.state_dict().items())


def test_what_was_found_is_shared_but_not_kept_forever(vit, rows, store):
    made, calls = {}, []
    one, other = make(vit, rows, store, made), make(vit, rows, store, made)
    apart = make(vit, rows, store, made, shared="another loss")
    for scoring in (one, other, apart):
        scoring.cached("a", lambda: calls.append("a") or len(calls))
    assert calls == ["a", "a"]
    for i in range(MADE):
        one.cached(f"b{i}", dict)
    assert len(made) == MADE
    one.cached("a", lambda: calls.append("again"))
    assert calls[-1] == "again"
