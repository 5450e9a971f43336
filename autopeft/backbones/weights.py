"""load_backbone: a backbone by name, with weights from the hub, from a file or from the wheel."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from torch import nn

from autopeft.backbones import nano
from autopeft.backbones.catalog import OWN
from autopeft.backbones.checkpoint import load_into
from autopeft.backbones.describe import network_of, patch_of, takes_image_size
from autopeft.backbones.layouts import layout_of
from autopeft.backbones.network import Network
from autopeft.errors import UserError

assert nano.NAME == OWN  # importing nano makes the wheel's own backbone known to timm

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_SECONDS = 10.0


def load_backbone(
    name: str, weights: str | None = None, image_size: int | None = None, offline: bool = False
) -> Network:
    """Builds a pretrained backbone without classifier.

    Args:
        name: timm name, with or without pretrained tag, or the wheel's own.
        weights: weights file; None takes the hub's (or the wheel's).
        image_size: side of the square input; None takes the model's own. The position embedding
            is resampled by timm.
        offline: never ask the hub; what was downloaded before is used.

    Returns:
        The frozen network in eval mode; ``warnings`` lists unused and missing tensors.

    Raises:
        UserError: unknown name, structure or size; no weights; a file of something else.
    """
    probe = _probe(name)
    layout_of(probe, name)
    _check_size(probe, name, image_size)
    sized = {"img_size": image_size} if image_size and takes_image_size(name) else {}
    if weights is not None:
        model = timm.create_model(name, num_classes=0, **sized)
        notes = load_into(model, Path(weights), name, model.pretrained_cfg["classifier"])
        return network_of(model, name, image_size, notes)
    return network_of(_pretrained(name, offline, sized), name, image_size)


def _probe(name: str) -> Any:
    """The model without memory: its structure costs milliseconds, whatever its size."""
    if not timm.is_model(name):
        known = [OWN, *timm.list_models()]
        close = difflib.get_close_matches(name.split(".")[0], known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"{OWN!r} always works."
        raise UserError(f"unknown backbone {name!r}", "--backbone", hint)
    try:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0)
    except RuntimeError as error:
        base = name.split(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
        raise UserError(str(error).rstrip("."), "--backbone", f"Known: {tags}.") from None


def _check_size(model: Any, name: str, size: int | None) -> None:
    """A ViT silently ignores the pixels behind the last whole patch, so they are refused."""
    patch = patch_of(model)
    if size is not None and patch is not None and size % patch:
        below = size // patch * patch
        near = f"{below} or {below + patch}" if below else str(patch)
        raise UserError(
            f"{size} is not a multiple of the patch size {patch} of {name!r}",
            "--image-size",
            f"Take {near}.",
        )


def _pretrained(name: str, offline: bool, sized: dict[str, int]) -> nn.Module:
    """The model with timm's own pretrained weights."""
    cfg: Any = timm.get_pretrained_cfg(name)
    overlay: dict[str, Any] = {}
    if cfg.hf_hub_id and not cfg.file:
        cached = _cached(cfg.hf_hub_id)
        if cached:
            overlay = {"file": cached}
        else:
            _ask_hub(name, cfg.hf_hub_id, offline)
    elif not cfg.file and (offline or not cfg.url):
        raise _no_weights(name, "there are no weights for it on this machine")
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **sized
        )
    except (OSError, RuntimeError) as error:
        raise _no_weights(name, " ".join(str(error).split())[:160]) from None
    return model


def _cached(repository: str) -> str | None:
    for file in _HUB_FILES:
        path = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return path
    return None


def _ask_hub(name: str, repository: str, offline: bool) -> None:
    """One quick question before timm's download, which retries for most of a minute."""
    if offline:
        raise _no_weights(name, "--offline forbids to download them, and they are not cached")
    try:
        huggingface_hub.model_info(repository, timeout=_HUB_SECONDS)
    except Exception as error:  # the client's errors have no parent of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise _no_weights(name, f"the hub does not answer ({reason})") from None


def _no_weights(name: str, reason: str) -> UserError:
    return UserError(
        f"no pretrained weights for {name!r}: {reason}",
        "--backbone",
        f"Give a file with --weights, or take --backbone {OWN}, which ships with autopeft.",
    )
