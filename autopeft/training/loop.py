"""Training of an adapter from epoch a to epoch b, so that a..b then b..c equals a..c."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autopeft.candidate import Train
from autopeft.evaluation import Kind
from autopeft.job import Rows
from autopeft.training.augment import augment, choose_view, mix
from autopeft.training.group_dro import GroupWeights, dro_cells
from autopeft.training.images import ImageStore
from autopeft.training.losses import row_terms
from autopeft.training.precision import Device, Precision, autocast
from autopeft.training.sampling import cell_weights, epoch_order, label_weights

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.methods.adapted import Adapted

Ints = npt.NDArray[np.int64]
WARM_UP = 0.1  # share of all steps
CLIP = 1.0  # largest gradient norm
_SCALE, _SCALER = "loss scale|", ("scale", "_growth_tracker")  # what is saved of a GradScaler


class NotFiniteError(Exception):
    """The training loss became NaN or infinite, or no loss scale is small enough for fp16."""


@dataclass(frozen=True)
class Source:
    """Where the input of an adapter comes from.

    Attributes:
        start: 0 = pixels, else the boundary whose frozen states are given.
        get: (rows of the image store [B], views [B]) -> pixels [B, 3, S, S] or states [B, ...],
            on any device.
    """

    start: int
    get: Callable[[Ints, Ints], Tensor]


@dataclass(frozen=True)
class Plan:
    """What a training needs besides the adapter: data, length, seeds.

    Attributes:
        rows: the training rows, with labels.
        source: pixels or frozen states of images.
        kind: the task's kind.
        train: the candidate's training fields.
        epochs: length of the whole schedule.
        batch_size: images a step.
        micro_batch: images a forward pass; 0 = batch_size. Changes memory, not the loss (but the
            masks of dropout and drop path).
        views: see ``augment.choose_view``.
        seed: the settings' seed.
        repeat: repeat of the training.
        precision: number format of the frozen layers; ``fp16`` trains with a loss scale.
        device: where the adapter lies.
    """

    rows: Rows
    source: Source
    kind: Kind
    train: Train
    epochs: int
    batch_size: int
    micro_batch: int
    views: int
    seed: int
    repeat: int
    precision: Precision
    device: Device = "cpu"


def train_epochs(
    adapted: Adapted,
    plan: Plan,
    start: int,
    stop: int,
    optimizer_state: dict[str, Tensor] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, dict[str, Tensor]]:
    """Trains from epoch ``start`` to ``stop`` of a schedule that always spans ``plan.epochs``.

    Args:
        adapted: the adapter, holding the weights of epoch ``start``.
        plan: data, schedule and seeds.
        start: epochs done.
        stop: epochs done at the end.
        optimizer_state: what an earlier call returned, when ``start`` > 0.
        progress: called with (steps done, steps in all).

    Returns:
        Mean loss of the last epoch, and the optimizer's state (and the weights of group DRO) as
        named tensors.

    Raises:
        NotFiniteError: the loss is NaN or infinite, or its gradients are at any loss scale.
    """
    optimizer = make_optimizer(adapted, plan.train)
    scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")
    names = {id(p): name for name, p in adapted.trainable.items()}
    if optimizer_state:
        _restore(optimizer, scaler, names, optimizer_state)
    base = [group["lr"] for group in optimizer.param_groups]
    weight = cell_weights(plan.rows, plan.train.sampling)
    assert plan.rows.label is not None
    positive_weight = torch.from_numpy(label_weights(plan.rows.label)).to(plan.device)
    steps = math.ceil(len(plan.rows) / plan.batch_size)
    dro = _group_weights(plan, steps, optimizer_state)
    mean_loss = math.nan
    adapted.set_train(True)
    for epoch in range(start, stop):
        order, occurrence = epoch_order(len(plan.rows), weight, plan.seed, plan.repeat, epoch)
        total = 0.0
        for step in range(steps):
            rows = slice(step * plan.batch_size, (step + 1) * plan.batch_size)
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * _schedule(epoch * steps + step, steps * plan.epochs)
            torch.manual_seed(int(mix(plan.seed, plan.repeat, epoch, step)) >> 1)
            part = order[rows], occurrence[rows]
            loss = _step(adapted, plan, optimizer, scaler, positive_weight, dro, epoch, *part)
            if not math.isfinite(loss):
                raise NotFiniteError(f"loss is {loss} at epoch {epoch}, step {step}")
            if adapted.after_step is not None:
                adapted.after_step(epoch * steps + step, steps * plan.epochs)
            total += loss
            progress((epoch - start) * steps + step + 1, (stop - start) * steps)
        mean_loss = total / steps
    adapted.set_train(False)
    return mean_loss, _named_state(optimizer, scaler, names) | (dro.state() if dro else {})


def _group_weights(plan: Plan, steps: int, saved: dict[str, Tensor] | None) -> GroupWeights | None:
    """The weights of the cells where the candidate trains with group DRO."""
    if not plan.train.group_dro:
        return None
    cell = dro_cells(plan.rows, plan.kind, plan.train.sampling)
    dro = GroupWeights(cell, steps * plan.epochs)
    dro.restore(saved or {})
    return dro


def _step(
    adapted: Adapted,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    positive_weight: Tensor,
    dro: GroupWeights | None,
    epoch: int,
    order: Ints,
    occurrence: Ints,
) -> float:
    """One optimizer step; returns the batch's loss: the mean, or the weighted one of group DRO."""
    assert plan.rows.label is not None
    label = torch.from_numpy(plan.rows.label[order])
    labelled = _labelled(label, plan.kind)
    cell = dro.cell[torch.from_numpy(order)] if dro else None
    weight = (
        torch.full((len(order),), 1 / max(1, int(labelled.sum())))
        if dro is None or cell is None
        else dro.row_weights(cell, labelled)
    ).to(plan.device)
    label = label.to(plan.device)
    micro = plan.micro_batch or len(order)
    optimizer.zero_grad(set_to_none=True)
    total, rows = 0.0, list[Tensor]()
    for begin in range(0, len(order), micro):
        part = slice(begin, begin + micro)
        index = plan.rows.index[order[part]]
        view = choose_view(plan.views, plan.seed, plan.repeat, epoch, index, occurrence[part])
        x = plan.source.get(index, view).to(plan.device)
        with autocast(plan.precision, plan.device):
            logits = adapted.logits(x, plan.source.start)
        losses, _ = row_terms(
            logits.float(),
            label[part],
            plan.kind,
            plan.train.loss,
            plan.train.label_smoothing,
            positive_weight,
        )
        rows.append(losses.detach().cpu())
        loss = (losses * weight[part]).sum()
        if begin == 0 and adapted.extra_loss is not None:
            loss = loss + adapted.extra_loss()
        if loss.requires_grad:
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    _update(adapted, optimizer, scaler)
    if dro is not None and cell is not None:
        dro.update(cell, torch.cat(rows), labelled)
    return total


def _update(
    adapted: Adapted, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Clips and steps. Gradients that fp16 cannot hold skip the step and halve the loss scale."""
    trained, scale = list(adapted.trainable.values()), scaler.get_scale()
    if all(parameter.grad is None for parameter in trained):
        return
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(trained, CLIP)
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() < scale:
        if scaler.get_scale() < 1:
            raise NotFiniteError("gradients are not finite in fp16 at any loss scale")
        for parameter in trained:  # a method that looks at gradients finds none, not infinite ones
            if parameter.grad is not None:
                parameter.grad.zero_()


def pixels(
    store: ImageStore, facts: Facts, index: Ints, view: Ints, device: Device = "cpu"
) -> Tensor:
    """Normalized views of some images on a device: float [B, 3, S, S]."""
    raw = torch.from_numpy(store.batch(index)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (facts.mean, facts.std))
    return (augment(raw, index, view) / 255).expand(-1, 3, -1, -1).sub(mean).div(std).to(device)


def _labelled(label: Tensor, kind: Kind) -> Tensor:
    """Labelled entries of each row [B]; a multiclass row has one, or none."""
    known = ~label.isnan()
    return known.all(dim=1).long() if kind == "multiclass" else known.sum(dim=1)


def _schedule(step: int, total: int) -> float:
    """Linear warm-up, then cosine to zero, over the whole schedule."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def make_optimizer(adapted: Adapted, train: Train) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9, over the adapter's parameter groups."""
    groups = adapted.param_groups(train.lr, train.weight_decay, train.layer_decay)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=train.lr, fused=True)


def _named_state(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, names: dict[int, str]
) -> dict[str, Tensor]:
    """The state of the optimizer and of the loss scale; the latter is empty without fp16."""
    named = {
        f"{names[id(p)]}|{key}": torch.as_tensor(value).detach().clone().contiguous()
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }
    scale = scaler.state_dict()
    return named | {_SCALE + k: torch.tensor(scale[k]) for k in _SCALER if k in scale}


def _restore(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    names: dict[int, str],
    saved: dict[str, Tensor],
) -> None:
    scale = {k: saved[_SCALE + k].item() for k in _SCALER if _SCALE + k in saved}
    scaler.load_state_dict(scaler.state_dict() | scale)
    by_name: dict[str, dict[str, Tensor]] = {}
    for full, value in saved.items():
        name, key = full.rsplit("|", 1)
        by_name.setdefault(name, {})[key] = value.clone()
    for group in optimizer.param_groups:
        for p in group["params"]:
            if names[id(p)] in by_name:
                mine = by_name[names[id(p)]]
                optimizer.state[p] = {k: v.to(p.device) for k, v in mine.items()}
