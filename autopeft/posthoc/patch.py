"""Portable patch: an adapter moved to other weights of the same architecture."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from autopeft.adapter import Model
from autopeft.backbones.network import Network
from autopeft.errors import UserError
from autopeft.methods import canonical
from autopeft.methods.adapted import build
from autopeft.methods.interpolation import LINEAR, move_of, why_not
from autopeft.posthoc.folders import Head, Source, State, head_of, opened, rebuilt, trained_names

_STEP = "portable_patch"


def carried(patch: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """new + (patch - old), in fp64: a trained parameter moved to another frozen value."""
    return (new.double() + (patch.double() - old.double())).to(patch.dtype)


def portable_patch(
    source: Source,
    new: str | Path | Network,
    head: Source | Head | None = None,
    weights: str | None = None,
    network: Network | None = None,
) -> Model:
    """The adapter on new weights: W_new + (W_1 - W_0), without training.

    What the adapter adds stays as it is. Parameters that it trains in place (bitfit, full) are
    moved by as much as they had moved on the old weights.

    Paper: PortLLM, Khan et al. 2024, arXiv:2410.10870. Fit the head again where images are at
    hand: ``head``.

    Args:
        source: the trained adapter.
        new: weights file of the same architecture, or a loaded backbone.
        head: a head for the new backbone (a linear probe's); None keeps the trained one.
        weights: as in ``load_adapter``: the old weights.
        network: as in ``load_adapter``: the old backbone.

    Raises:
        UserError: another architecture or image size, or a method whose change depends on the
            frozen weights.
    """
    model = opened(source, weights, network)
    reason = why_not(model.candidate.strata) or _bound(model)
    if reason:
        raise UserError(f"cannot be moved to other weights: {reason}", _STEP, "Train it again.")
    target = new if isinstance(new, Network) else _loaded(model, str(new))
    old, facts = model.base.facts, target.facts
    names = [f.name.partition(".") for f in (old, facts)]  # timm: architecture.tag
    if (names[0][0], old.image_size) != (names[1][0], facts.image_size):
        what = f"was trained on {old.name} at {old.image_size} px, this is {facts.name} at"
        raise UserError(f"{what} {facts.image_size} px", _STEP, "Shapes must be equal.")
    if names[0] != names[1]:
        said = f"{_STEP}: from {old.name} to {facts.name}: pretrained in another way"
        warnings.warn(said, stacklevel=2)
    tensors = _moved(model, target)
    if head is not None:
        given = head if isinstance(head, tuple) else _head_on(head, target)
        for name, value in zip(("weight", "bias"), head_of(given, model, _STEP), strict=True):
            tensors[f"{facts.classifier}.{name}"] = value
    note = {"step": _STEP, "from": old.sha256, "head": head is not None}
    file = None if isinstance(new, Network) else Path(new).name
    model = Model(model.adapted, {**model.info, "weights": file}, model.device, model.base)
    candidate = canonical(model.candidate.to_dict(), facts)
    return rebuilt(model, tensors, note, candidate=candidate, network=target)


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _moved(model: Model, target: Network) -> State:
    """The adapter's tensors for the new backbone."""
    adapted, outputs = model.adapted, len(model.classes)
    before = build(model.base, model.candidate, outputs, 0, 0, adapted.fixed)
    after = build(target, model.candidate, outputs, 0, 0, adapted.fixed)
    tensors = dict(adapted.tensors())
    # BatchNorm's statistics are saved with the adapter but are the backbone's: the new one's stay.
    tensors |= {n: t for n, t in after.fixed.items() if n.rpartition(".")[2] in _STATISTICS}
    for name in trained_names(adapted):
        if move_of(name, model.candidate.strata) == "first":
            old, new = before.trainable[name].detach(), after.trainable[name].detach()
            tensors[name] = carried(tensors[name], old, new)
    return tensors


def _bound(model: Model) -> str:
    for stratum in model.candidate.strata:
        if not LINEAR[stratum.method].portable:
            return f"{stratum.method} multiplies the frozen weights"
    return ""


def _head_on(head: Source, target: Network) -> Head:
    probe = opened(head, network=target)
    return probe.adapted.head.weight.detach(), probe.adapted.head.bias.detach()


def _loaded(model: Model, weights: str) -> Network:
    from autopeft.backbones.weights import load_backbone

    backbone = model.info["backbone"]
    return load_backbone(backbone["name"], weights, backbone["image_size"], False)
