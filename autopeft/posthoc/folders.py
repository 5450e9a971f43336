"""What all steps share: adapters in, plain weights between, adapters or weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from autopeft.adapter import Model, load_adapter, merge
from autopeft.adapter import save as save_adapter
from autopeft.backbones.network import Network
from autopeft.candidate import Candidate
from autopeft.errors import UserError
from autopeft.files import new_folder, write_bytes
from autopeft.methods.adapted import Adapted, build

Source = str | Path | Model
Head = tuple[Tensor, Tensor]  # weight [C, d], bias [C]
State = dict[str, Tensor]

# What ``adapter.save`` finds out by itself.
_OF_THE_ADAPTER = {"format", "version", "candidate", "fingerprint", "methods_from", "backbone"}
_OF_THE_ADAPTER |= {"trainable_params", "adapter_bytes", "init"}


@dataclass(frozen=True)
class Opened:
    """Adapters of one backbone and one list of classes, as plain weights.

    Attributes:
        models: the adapters.
        classifier: path of timm's classifier in the state dicts.
        base: the frozen network's state dict; its head is the mean of the adapters' heads, or the
            one that was given.
        trained: the adapters' state dicts, folded in.
        head: whether a head was given.
    """

    models: tuple[Model, ...]
    classifier: str
    base: State
    trained: tuple[State, ...]
    head: bool

    def is_head(self, name: str) -> bool:
        """Whether a tensor is the classifier's weight or bias."""
        return name in (f"{self.classifier}.weight", f"{self.classifier}.bias")


def opened(source: Source, weights: str | None = None, network: Network | None = None) -> Model:
    """The adapter of a folder; a loaded one as it is. Arguments as in ``load_adapter``."""
    if isinstance(source, Model):
        return source
    return load_adapter(source, weights, network=network)


def open_all(
    sources: Sequence[Source],
    head: Source | Head | None,
    least: int,
    step: str,
    weights: str | None = None,
    network: Network | None = None,
) -> Opened:
    """Adapters as plain weights.

    Raises:
        UserError: too few, another backbone or other classes than the first one's, an adapter
            that does not fold into plain weights.
    """
    listed = not isinstance(sources, (str, Path, Model))
    if not listed or len(sources) < least:
        what = f"needs a list of {least} adapters or more" if least > 1 else "needs adapters"
        raise UserError(what, step, "Write [folder, folder].")
    first = opened(sources[0], weights, network)
    models = [first, *(opened(s, weights, network or first.base) for s in sources[1:])]
    for model in models[1:]:
        check_pair(first, model, step)
    heads = [(m.adapted.head.weight.detach(), m.adapted.head.bias.detach()) for m in models]
    mean = (_mean([w for w, _ in heads]), _mean([b for _, b in heads]))
    return Opened(
        tuple(models),
        first.base.facts.classifier,
        base_weights(first, mean if head is None else head_of(head, first, step)),
        tuple(merge(model.adapted) for model in models),
        head is not None,
    )


def check_pair(first: Model, other: Model, step: str) -> None:
    """Refuses adapters of other classes, another kind of task or another backbone."""
    for what in ("classes", "kind"):
        one, two = first.info[what], other.info[what]
        if list(one) != list(two):
            said = f"the adapters have different {what}: {one} and {two}"
            raise UserError(said, step, "Give adapters of one task.")
    if first.base.facts.sha256 != other.base.facts.sha256:
        raise UserError("the adapters have different backbone weights", step)


def weights_of(
    source: Source, weights: str | None = None, network: Network | None = None
) -> State:
    """Plain timm state dict of an adapter, folded in; as ``autopeft.adapter.merge``."""
    return merge(opened(source, weights, network).adapted)


def base_weights(model: Model, head: Head) -> State:
    """State dict of the frozen timm model with a head of so many classes."""
    outputs = len(model.classes)
    fork = model.base.fork(outputs)
    state = {k: v.detach().clone().contiguous() for k, v in fork.model.state_dict().items()}
    for name, value in zip(("weight", "bias"), head, strict=True):
        state[f"{model.base.facts.classifier}.{name}"] = value.detach().clone().float()
    return state


def head_of(head: Source | Head, like: Model, step: str) -> Head:
    """A head as given: weight and bias, or an adapter (a linear probe's) whose head it is.

    Raises:
        UserError: its shape or its readout is another.
    """
    if isinstance(head, tuple):
        found = head
    else:
        model = opened(head, network=like.base)
        if model.candidate.readout != like.candidate.readout:
            raise UserError("the head reads another readout", step, "Give a probe of this one.")
        found = (model.adapted.head.weight.detach(), model.adapted.head.bias.detach())
    own = like.adapted.head
    shapes = [tuple(t.shape) for t in found]
    if shapes != [tuple(own.weight.shape), tuple(own.bias.shape)]:
        what = f"the head has shapes {shapes}, the adapter's {tuple(own.weight.shape)}"
        raise UserError(what, step, "Give weight [C, d] and bias [C] of this readout.")
    return found


def rebuilt(
    model: Model, tensors: Mapping[str, Tensor], note: Mapping[str, Any], **changes: Any
) -> Model:
    """An adapter like another one, with other values.

    Thresholds are dropped: they were fitted on the scores of the first one.

    Args:
        model: the one it is made from.
        tensors: as ``Adapted.tensors``.
        note: what was done, kept in ``autopeft.json`` under ``steps``.
        changes: ``candidate`` or ``network`` where they are others.
    """
    candidate: Candidate = changes.get("candidate", model.candidate)
    network: Network = changes.get("network", model.base)
    adapted = build(network, candidate, len(model.classes), 0, 0, dict(tensors))
    adapted.load_tensors(tensors)
    info = {
        **model.info,
        "candidate": candidate.to_dict(),
        "fingerprint": candidate.fingerprint,
        "backbone": {k: getattr(network.facts, k) for k in model.info["backbone"]},
        "thresholds": [],
        "steps": [*model.info.get("steps", []), dict(note)],
    }
    return Model(adapted, info, torch.device("cpu"), network)


def as_adapter(
    state: Mapping[str, Tensor], source: Source, network: Network | None = None
) -> Model:
    """Puts plain weights back into an adapter, where all that they change are its parameters.

    For methods that train parameters of the timm model itself: full, bitfit, fairtune_mask.

    Args:
        state: state dict of a plain timm model.
        source: an adapter whose candidate has room for it.
        network: as in ``load_adapter``.

    Raises:
        UserError: the adapter cannot hold it.
    """
    model = opened(source, network=network)
    tensors, base = model.adapted.tensors(), model.base.model.state_dict()
    classifier = model.base.facts.classifier + "."
    moved = {
        name
        for name, value in state.items()
        if name.startswith(classifier) or not torch.equal(value.cpu(), base[name].cpu())
    }
    lost = sorted(moved - tensors.keys())
    foreign = sorted(tensors.keys() - state.keys())
    if lost or foreign:
        what = f"{model.candidate.method} has no place for {lost[0]!r}" if lost else ""
        what = what or f"{foreign[0]!r} of {model.candidate.method} is no weight of the model"
        raise UserError(what, "as_adapter", "Use the weights as they are.")
    values = {name: state[name] for name in tensors}
    return rebuilt(model, values, {"step": "as_adapter"})


def save(result: Model | Mapping[str, Tensor], path: str | Path) -> None:
    """Writes a result: an adapter as a folder (``load_adapter`` reads it), weights as a file.

    Args:
        result: what a step gave.
        path: the folder, or the ``.safetensors`` file.
    """
    path = Path(path)
    if not isinstance(result, Model):
        write_bytes(path, to_bytes({k: v.contiguous() for k, v in result.items()}))
        return
    meta = {k: v for k, v in result.info.items() if k not in _OF_THE_ADAPTER}
    with new_folder(path) as folder:
        save_adapter(result.adapted, folder, meta)


def trained_names(adapted: Adapted) -> list[str]:
    """What trained, the head excluded."""
    classifier = adapted.network.facts.classifier
    return [n for n in adapted.trainable if n.rpartition(".")[0] != classifier]


def share(value: float, name: str, step: str, low: float = 0.0, high: float = 1.0) -> float:
    """A number in [low, high].

    Raises:
        UserError: it is not.
    """
    if not low <= value <= high:
        fix = f"Range: {low:g} to {high:g}."
        raise UserError(f"{name} = {value!r} is not possible", step, fix)
    return float(value)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).double().mean(0).float()
