"""The adapter folder: save, load, predict, merge. peft loads it too where peft has the method."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autopeft.adapter_files import (
    CARD,
    CONFIG,
    INIT,
    OURS,
    WEIGHTS,
    adapter_hash,
    copy_adapter,
    read_json,
    write_json,
)
from autopeft.backbones.describe import network_of
from autopeft.backbones.network import Init, Network
from autopeft.candidate import Candidate
from autopeft.card import card
from autopeft.errors import UserError
from autopeft.methods import canonical
from autopeft.methods.adapted import Adapted, build, methods_of
from autopeft.methods.merge import can_merge as can_merge
from autopeft.methods.merge import merged_state
from autopeft.methods.own import check_origins, origins
from autopeft.methods.registry import method_named
from autopeft.version import __version__

FORMAT = 1
_PEFT_PREFIX = "base_model."
_BACKBONE = ("name", "image_size", "mean", "std", "interpolation", "sha256")

Floats = npt.NDArray[np.float32]
Images = Sequence[str | Path] | npt.NDArray[np.uint8]


def save(adapted: Adapted, folder: Path, meta: Mapping[str, Any], whole: bool = True) -> None:
    """Writes an adapter into an existing folder (a temporary one: ``files.new_folder``).

    ``peft.PeftModel.from_pretrained`` loads the folder onto a fresh timm model when all strata are
    of one method that peft has and the readout is timm's own. ``load_adapter`` loads every folder.

    Args:
        adapted: the trained adapter.
        folder: where to write.
        meta: ``classes`` and ``kind`` (needed to predict); optional ``fit``, ``thresholds``,
            ``weights`` (name of the weights file, None = the hub's or the wheel's), ``license``
            (lines for the card) and anything else worth keeping as JSON.
        whole: also copies the adapter that is folded into the backbone, if there is one; without
            it the folder loads only onto a ``network`` that has it already.
    """
    candidate, facts, init = adapted.candidate, adapted.network.facts, adapted.network.init
    # On a plain timm model peft would silently leave out what is folded in.
    config = None if init else _peft_config(adapted)
    if config is not None:
        config.base_model_name_or_path = f"timm/{facts.name}"
        config.inference_mode = True
        config.save_pretrained(str(folder))
    else:
        write_json(folder / CONFIG, _own_config(adapted))
    names = _peft_names(adapted) if config is not None else {}
    tensors = {names.get(k, k): v.cpu().contiguous().clone() for k, v in adapted.tensors().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    ours = {
        "format": FORMAT,
        "version": __version__,
        "candidate": candidate.to_dict(),
        "fingerprint": candidate.fingerprint,
        "methods_from": origins(candidate),
        "backbone": {k: getattr(facts, k) for k in _BACKBONE},
        "trainable_params": adapted.trainable_params,
        "adapter_bytes": adapted.adapter_bytes,
        "fit": "pad",
        "thresholds": [],
        "weights": None,
        **meta,
    }
    if init is not None:
        ours["init"] = {"sha256": init.sha256, "base_sha256": init.base_sha256}
        if whole:
            copy_adapter(init.folder, folder / INIT, init.sha256)
    write_json(folder / OURS, ours)
    (folder / CARD).write_text(card(adapted, ours, "autopeft" if config is None else "peft"))


def load_adapter(
    folder: str | Path,
    weights: str | None = None,
    device: str = "cpu",
    network: Network | None = None,
) -> Model:
    """Loads an adapter folder, in eval mode and float32.

    Args:
        folder: what ``save`` wrote, e.g. ``runs/NAME/best``.
        weights: the backbone's weights file, if one was used in training.
        device: where to run.
        network: a backbone that is in memory already; it is not touched. Where the folder has an
            ``init`` adapter, the plain backbone or the one with it folded in.

    Raises:
        UserError: no adapter folder, damaged files, a backbone with other weights, or a method of
            a user's own whose file was not given to ``register_methods`` (a folder's files are
            data: nothing in them is ever executed).
    """
    folder = Path(folder)
    ours = read_json(folder / OURS)
    if ours.get("format") != FORMAT:
        raise UserError(f"has format {ours.get('format')!r}", str(folder), "Update autopeft.")
    absent = {"candidate", "backbone", "classes", "kind"} - ours.keys()
    if absent:
        raise UserError(f"lacks {', '.join(sorted(absent))}", str(folder / OURS))
    network = network or _backbone(ours, weights, str(folder))
    if ours.get("init") and network.facts.sha256 != ours["backbone"]["sha256"]:
        network = _with_init(network, ours["init"], folder)
    _check_base(network, ours["backbone"], str(folder))
    used = [stratum["method"] for stratum in ours["candidate"]["strata"]]
    check_origins(used, ours.get("methods_from", {}), str(folder))
    candidate = canonical(ours["candidate"], network.facts)
    try:
        saved = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read ({error})", str(folder / WEIGHTS)) from None
    fixed = {name.removeprefix(f"{_PEFT_PREFIX}model."): t for name, t in saved.items()}
    adapted = build(network, candidate, len(ours["classes"]), seed=0, repeat=0, fixed=fixed)
    if any(name.startswith(_PEFT_PREFIX) for name in saved):
        ours_of = {theirs: name for name, theirs in _peft_names(adapted).items()}
        saved = {ours_of.get(name, name): tensor for name, tensor in saved.items()}
    adapted.load_tensors(saved)
    adapted.network.model.to(device)
    adapted.head.to(device)
    return Model(adapted, ours, torch.device(device), network)


def merge(
    source: Adapted | str | Path, weights: str | None = None, network: Network | None = None
) -> dict[str, Tensor]:
    """Plain timm state dict with the adapter folded in.

    Args:
        source: an adapter in memory, or its folder.
        weights: as in ``load_adapter``.
        network: as in ``load_adapter``.

    Raises:
        UserError: the readout is not timm's own, or the method cannot be merged.
    """
    if not isinstance(source, Adapted):
        source = load_adapter(source, weights, network=network).adapted
    return merged_state(source)


# ---- an adapter folded into its backbone -----------------------------------------------------


def folded(model: Model, folder: Path) -> Network:
    """The backbone of an adapter with the adapter in its weights, frozen: W0 becomes W0 + dW.

    The head is left out. ``facts.sha256`` stands for the plain backbone and the adapter's files,
    not for the sums' own bytes, whose last bit may differ between machines.

    Args:
        model: the adapter; it and its backbone are left as they are.
        folder: where it was loaded from.

    Raises:
        UserError: there is nothing to fold, or a method of it cannot be folded.
    """
    adapted, base = model.adapted, model.base
    methods, fix = methods_of(model.candidate), "Take an adapter of another method."
    fixed = [m.name for m in methods if not m.mergeable]
    if fixed or not methods:
        what = f"{fixed[0]} cannot be merged" if fixed else "a linear probe changes no weight"
        raise UserError(f"{what}, so there is nothing to fold in", str(folder), fix)
    fork = adapted.network.fork()
    for method in methods:
        method.fold(fork)
    head, full = f"{base.facts.classifier}.", copy.deepcopy(base.model)
    found = {k: v for k, v in fork.model.state_dict().items() if not k.startswith(head)}
    plain = full.state_dict()
    if not found.keys() <= plain.keys():
        what = f"{model.candidate.method} adds what {base.facts.name} has no place for"
        raise UserError(what, str(folder), fix)
    full.load_state_dict({**plain, **found})  # blocks behind an early readout stay
    network = network_of(full, base.facts.name, base.facts.image_size, base.warnings)
    init = Init(folder, adapter_hash(folder), base.facts.sha256)
    both = hashlib.sha256(f"{init.base_sha256} + {init.sha256}".encode()).hexdigest()
    network.facts, network.init = replace(network.facts, sha256=both), init
    return network


def _with_init(network: Network, init: Mapping[str, Any], folder: Path) -> Network:
    """The backbone that an adapter was trained on: a plain one with the ``init`` adapter in it."""
    inner = folder / INIT
    if not inner.is_dir():
        what = "lacks the adapter that is folded into its backbone"
        raise UserError(what, str(inner), "Copy the folder as a whole.")
    if adapter_hash(inner) != init["sha256"]:
        raise UserError("is not the adapter that is folded in", str(inner), "Put it back.")
    return folded(load_adapter(inner, network=network), inner)


class Model:
    """A trained adapter on its backbone, ready to score images. Research use only.

    Attributes:
        adapted: backbone, adapter and head.
        candidate: what was trained.
        classes: names of the C columns.
        kind: ``binary``, ``multiclass`` or ``multilabel``.
        thresholds: operating point per class (probability), fitted on search; may be empty.
        temperatures: what each class's logits are divided by to be calibrated, fitted on search;
            None = nothing to divide by; may be empty.
        info: all of ``autopeft.json``.
        base: the frozen backbone, untouched.
    """

    def __init__(
        self, adapted: Adapted, info: Mapping[str, Any], device: torch.device, base: Network
    ) -> None:
        self.adapted = adapted
        self.base = base
        self.info = info
        self.device = device
        self.candidate: Candidate = adapted.candidate
        self.classes: tuple[str, ...] = tuple(info["classes"])
        self.kind: str = info["kind"]
        self.thresholds: tuple[float | None, ...] = tuple(info["thresholds"])
        self.temperatures: tuple[float | None, ...] = tuple(info.get("temperatures", ()))

    @property
    def model(self) -> nn.Module:
        """A module from normalized pixels [B, 3, S, S] to logits [B, C].

        The timm model itself, with the adapter in it, when the readout is timm's own.
        """
        if self.adapted.is_own_readout:
            own: nn.Module = self.adapted.network.model
            return own
        return _EarlyReadout(self.adapted)

    def logits(self, images: Images, batch_size: int = 64) -> Floats:
        """Logits [N, C], float32.

        Args:
            images: paths of image files, or decoded squares uint8 [N, S, S, 1 or 3].
            batch_size: images a forward pass.

        Raises:
            UserError: an image cannot be read or has another size.
        """
        from autopeft.training.images import normalize

        if batch_size < 1:
            raise UserError(f"{batch_size} is too small", "batch_size", "It must be at least 1.")
        images = [images] if isinstance(images, (str, Path)) else images
        backbone = self.info["backbone"]
        parts = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), batch_size):
            batch = self._decoded(images[start : start + batch_size])
            pixels = normalize(batch, backbone["mean"], backbone["std"]).to(self.device)
            with torch.inference_mode():
                parts.append(self.adapted.logits(pixels).float().cpu().numpy())
        return np.concatenate(parts)

    def predict(self, images: Images, batch_size: int = 64, calibrated: bool = False) -> Floats:
        """Probabilities [N, C], float32: softmax for multiclass, else sigmoid per class.

        Args:
            images: as in ``logits``.
            batch_size: images a forward pass.
            calibrated: divide logits by the temperatures first. ``thresholds`` are meant for
                probabilities that are not.
        """
        z = self.logits(images, batch_size).astype(np.float64)
        if calibrated and self.temperatures:
            z = z / np.array([t or 1.0 for t in self.temperatures])
        if self.kind == "multiclass":
            e = np.exp(z - z.max(axis=1, keepdims=True))
            return np.asarray(e / e.sum(axis=1, keepdims=True), np.float32)
        return np.asarray(1 / (1 + np.exp(-z)), np.float32)

    def _decoded(self, images: Images) -> npt.NDArray[np.uint8]:
        """A batch of squares of the backbone's size: uint8 [B, S, S, 1 or 3]."""
        size = self.info["backbone"]["image_size"]
        if isinstance(images, np.ndarray):
            square = images.ndim == 4 and images.shape[1:3] == (size, size)
            if images.dtype != np.uint8 or not square or images.shape[3] not in (1, 3):
                what = f"images have shape {images.shape} and type {images.dtype}"
                fix = f"Give paths, or a uint8 array [N, {size}, {size}, 1 or 3]."
                raise UserError(what, "predict", fix)
            return images
        from autopeft.training.images import Rule, decode

        rule = Rule(**self.info["pixels"]) if self.info.get("pixels") else None
        rows = []
        for path in images:
            try:
                rows.append(decode(Path(path), size, self.info["fit"], rule))
            except (OSError, ValueError) as error:
                raise UserError(f"cannot be read ({error})", str(path)) from None
        widest = max(row.shape[2] for row in rows)
        return np.stack([np.broadcast_to(r, (size, size, widest)) for r in rows])


class _EarlyReadout(nn.Module):
    """Backbone up to the readout, then the head, as one module."""

    def __init__(self, adapted: Adapted) -> None:
        super().__init__()
        self.backbone = adapted.network.model
        self.head = adapted.head
        self._logits = adapted.logits

    def forward(self, x: Tensor) -> Tensor:
        return self._logits(x)


def _peft_config(adapted: Adapted) -> Any:
    """The config with which peft alone loads it, or None: one method, the head timm's own."""
    candidate = adapted.candidate
    if not adapted.is_own_readout or len({s.method for s in candidate.strata}) != 1:
        return None
    method = method_named(candidate.method)
    return method.peft_config(adapted.network, candidate.strata, candidate.readout)


def _peft_names(adapted: Adapted) -> dict[str, str]:
    """Name of a tensor -> its name in a folder that peft loads."""
    method = method_named(adapted.candidate.method)
    return {name: method.peft_name(name) for name in adapted.tensors()}


def _own_config(adapted: Adapted) -> dict[str, Any]:
    """``adapter_config.json`` of a folder that peft has no class for."""
    candidate, facts = adapted.candidate, adapted.network.facts
    return {
        "method": candidate.method,
        "version": FORMAT,
        "strata": candidate.to_dict()["strata"],
        "readout": candidate.to_dict()["readout"],
        "first_block": adapted.first_block,
        "base_model_name_or_path": f"timm/{facts.name}",
        "base_sha256": facts.sha256,
        "num_classes": adapted.head.out_features,
    }


def _backbone(ours: Mapping[str, Any], weights: str | None, where: str) -> Network:
    """The backbone that a folder names."""
    from autopeft.backbones.weights import load_backbone

    if ours["weights"] and weights is None:
        what = f"was trained on the weights file {ours['weights']}, which is not given"
        raise UserError(what, where, f'Pass weights="path/to/{ours["weights"]}".')
    backbone = ours["backbone"]
    return load_backbone(backbone["name"], weights, backbone["image_size"], False)


def _check_base(network: Network, saved: Mapping[str, Any], where: str) -> None:
    """Refuses a base other than the trained one: its outputs would be silently different."""
    if network.facts.sha256 == saved["sha256"]:
        return
    what = (
        f"was trained on {saved['name']} with weights {saved['sha256'][:12]}, "
        f"this is {network.facts.name} with {network.facts.sha256[:12]}"
    )
    raise UserError(what, where, "Give the weights file that it was trained on.")
