"""Losses against torch's own, against the papers' formulas, with labels missing, in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from autopeft.training.losses import loss_terms

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(16, 3, generator=GENERATOR, dtype=torch.float64) * 2
BITS = (torch.rand(16, 3, generator=GENERATOR) > 0.6).double()
ONE_HOT = functional.one_hot(torch.arange(16) % 3, 3).double()
WEIGHT = torch.tensor([0.5, 2.0, 3.5], dtype=torch.float64)
KINDS = {"multilabel": BITS, "multiclass": ONE_HOT}


def mean_loss(kind, name="bce", smoothing=0.0, logits=LOGITS, label=None):
    total, count = loss_terms(
        logits, KINDS[kind] if label is None else label, kind, name, smoothing, WEIGHT
    )
    return total / count


def test_bce_is_torch_s():
    want = functional.binary_cross_entropy_with_logits(LOGITS, BITS)
    torch.testing.assert_close(mean_loss("multilabel"), want)
    want = functional.binary_cross_entropy_with_logits(LOGITS, BITS, pos_weight=WEIGHT)
    torch.testing.assert_close(mean_loss("multilabel", "weighted"), want)
    want = functional.binary_cross_entropy_with_logits(LOGITS, BITS * 0.8 + 0.1)
    torch.testing.assert_close(mean_loss("multilabel", smoothing=0.2), want)


def test_cross_entropy_is_torch_s():
    target = ONE_HOT.argmax(1)
    want = functional.cross_entropy(LOGITS, target)
    torch.testing.assert_close(mean_loss("multiclass"), want)
    want = functional.cross_entropy(LOGITS, target, label_smoothing=0.2)
    torch.testing.assert_close(mean_loss("multiclass", smoothing=0.2), want)
    # torch divides by the weights' sum; here the count is of rows, the weights' mean is 1.
    want = functional.cross_entropy(LOGITS, target, weight=WEIGHT / WEIGHT.mean(), reduction="sum")
    torch.testing.assert_close(mean_loss("multiclass", "weighted"), want / 16)


def test_focal_is_the_paper_s():
    """Lin et al. 2017: -(1 - p_t)^2 log p_t."""
    p = LOGITS.sigmoid().numpy()
    p_t = np.where(BITS == 1, p, 1 - p)
    want = -((1 - p_t) ** 2 * np.log(p_t)).mean()
    assert float(mean_loss("multilabel", "focal")) == pytest.approx(want, rel=1e-12)
    p_t = LOGITS.softmax(1).numpy()[np.arange(16), np.arange(16) % 3]
    want = -((1 - p_t) ** 2 * np.log(p_t)).mean()
    assert float(mean_loss("multiclass", "focal")) == pytest.approx(want, rel=1e-12)


def test_asl_is_the_paper_s():
    """Ridnik et al. 2021: gamma+ 0, gamma- 4, margin 0.05."""
    p = LOGITS.sigmoid().numpy()
    shifted = np.maximum(p - 0.05, 0)
    want = -np.where(BITS == 1, np.log(p), shifted**4 * np.log(1 - shifted)).mean()
    assert float(mean_loss("multilabel", "asl")) == pytest.approx(want, rel=1e-12)
    easy = torch.full((1, 1), -5.0)  # p < margin: an easy negative costs nothing at all
    assert loss_terms(easy, torch.zeros(1, 1), "binary", "asl", 0.0, WEIGHT[:1])[0] == 0


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
@pytest.mark.parametrize("name", ["bce", "weighted", "focal", "asl"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_missing_labels_are_ignored_and_pieces_add_up(kind, name, smoothing):
    if kind == "multiclass" and name == "asl":
        return
    label = KINDS[kind].clone()
    label[[1, 8]] = torch.nan
    if kind == "multilabel":
        label[3, 1] = torch.nan
    logits = LOGITS.clone().requires_grad_()
    total, count = loss_terms(logits, label, kind, name, smoothing, WEIGHT)
    assert int(count) == (14 if kind == "multiclass" else 16 * 3 - 7)
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.isfinite().all()
    assert (gradient[[1, 8]] == 0).all()
    assert (gradient[[0, 2, 15]] != 0).any(dim=1).all()
    keep = ~label.isnan().any(dim=1)
    if kind == "multiclass":
        alone, _ = loss_terms(LOGITS[keep], label[keep], kind, name, smoothing, WEIGHT)
        torch.testing.assert_close(total, alone)
    # Sum and count of pieces, as accumulation over micro-batches adds them.
    parts = [
        loss_terms(LOGITS[i : i + 5], label[i : i + 5], kind, name, smoothing, WEIGHT)
        for i in range(0, 16, 5)
    ]
    torch.testing.assert_close(sum(p[0] for p in parts), total.detach())
    assert sum(int(p[1]) for p in parts) == int(count)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_nothing_labelled_is_no_loss(kind):
    logits = LOGITS.clone().requires_grad_()
    total, count = loss_terms(logits, torch.full_like(LOGITS, torch.nan), kind, "bce", 0, WEIGHT)
    assert (total.item(), int(count)) == (0, 0)
    total.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
@pytest.mark.parametrize("name", ["bce", "weighted", "focal", "asl"])
def test_sure_logits_stay_finite(kind, name):
    if kind == "multiclass" and name == "asl":
        return
    for scale in (40, -40, 1e4):
        logits = (torch.ones(4, 3) * torch.tensor([scale, -scale, 0.0])).requires_grad_()
        label = ONE_HOT[:4] if kind == "multiclass" else BITS[:4]
        total, _ = loss_terms(logits, label.float(), kind, name, 0.1, WEIGHT.float())
        (gradient,) = torch.autograd.grad(total, logits)
        assert total.isfinite()
        assert gradient.isfinite().all()
