"""A weights file in, tensors under timm's names out: timm, DINO, DINOv2 and MAE layouts."""

from __future__ import annotations

import argparse
import inspect
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autopeft.backbones import nano
from autopeft.errors import UserError

# Where training code puts the weights inside a checkpoint. Averaged weights come first: they are
# what DINO, DINOv2 and their kin evaluate.
_AVERAGED = ("teacher", "state_dict_ema", "model_ema", "ema")
_NESTS = (
    *_AVERAGED,
    "state_dict",
    "model",
    "model_state",
    "encoder",
    "backbone",
    "student",
    "net",
)
# DINOv2 trained with FSDP numbers its blocks inside chunks: blocks.0.3 is block 3.
_CHUNKED = re.compile(r"(^|\.)blocks\.\d+\.(\d+\.[a-z])")
# A network of which more than this share of tensors is missing would be mostly random.
_MISSING_SHARE = 0.1
_GROUPS = 16
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def load_into(model: nn.Module, path: Path, name: str, classifier: str) -> tuple[str, ...]:
    """Fills a timm model from a file; prefixes are stripped, positions resampled by timm.

    Args:
        model: the model without classifier, built at the wanted image size.
        path: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin`` (no code in it is ever executed).
        name: the backbone's name, for messages.
        classifier: path of timm's classifier, whose weights in the file are not used.

    Returns:
        Lines that tell which tensors of the file were not used and which were missing.

    Raises:
        UserError: unreadable file; nothing or too little of the backbone in it; another width.
    """
    wanted = model.state_dict()
    state = _tensors(_read(path), path)
    if any(key.endswith(nano.SCALE) for key in state):
        state = nano.dequantize(state)
    found = _stripped(state, wanted)
    found = {k: v for k, v in found.items() if not k.startswith(classifier + ".")}
    given = _timm_names(found, model)
    _same_shapes(given, wanted, path, name)
    used = {k: v for k, v in given.items() if k in wanted}
    unused = given.keys() - used.keys()
    # Counters of BatchNorm are read by nobody in eval.
    needed = {k for k in wanted if not k.endswith("num_batches_tracked")}
    missing = needed - used.keys()
    if not used:
        raise UserError(
            f"matches nothing of {name!r}; it holds {_grouped(found)}",
            str(path),
            "Give the file of this backbone, or the --backbone of this file.",
        )
    if len(missing) > _MISSING_SHARE * len(needed):
        raise UserError(
            f"lacks {len(missing)} of the {len(needed)} tensors of {name!r}: {_grouped(missing)}",
            str(path),
            "Give the file of this backbone, or the --backbone of this file.",
        )
    model.load_state_dict(used, strict=False)
    lines = []
    if unused:
        lines.append(f"{path.name}: {len(unused)} tensors were not used: {_grouped(unused)}")
    if missing:
        lines.append(
            f"{path.name}: {len(missing)} tensors are missing and stay at their random start: "
            f"{_grouped(missing)}"
        )
    return tuple(lines)


def _read(path: Path) -> Any:
    """The content of a weights file; nothing in it is executed."""
    if not path.is_file():
        raise UserError("no such weights file", str(path), "Check --weights.")
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"weights files of type {path.suffix!r} are not read",
            str(path),
            f"Convert it to one of {', '.join(_SUFFIXES)}.",
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # MAE and DINO store their command line beside the weights; a Namespace only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            "holds Python objects besides tensors, which autopeft does not load for safety",
            str(path),
            "Save its state dict alone, best as .safetensors.",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"cannot be read as a weights file ({reason})", str(path)) from None


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, however deep it is nested."""
    if isinstance(content, Mapping):
        flat = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if flat:
            return flat
        for nest in _NESTS:
            if isinstance(content.get(nest), Mapping):
                return _tensors(content[nest], path)
    raise UserError("holds no state dict", str(path), "Save model.state_dict() to a file.")


def _stripped(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the prefix below which most of the wanted names lie, without it.

    Half precision is kept: timm resamples positions in the file's own format, and a model loaded
    here must equal one that timm loads. Names outside of the prefix keep their full name, so that
    they show up as not used.
    """
    if not any(_CHUNKED.search(k) for k in wanted):
        state = {_CHUNKED.sub(r"\1blocks.\2", k): v for k, v in state.items()}
    parts = {k: k.split(".") for k in state}
    prefixes = {".".join(p[:n]) + "." for p in parts.values() for n in range(1, len(p))}
    hits = {p: sum(p + k in state for k in wanted) for p in {"", *prefixes}}
    best = max(hits, key=lambda p: (hits[p], "teacher" in p or "ema" in p, -len(p), p))
    clean = {k.removeprefix(best): v for k, v in state.items() if k.startswith(best)}
    clean |= {k: v for k, v in state.items() if k not in clean and not k.startswith(best)}
    return clean


def _timm_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What timm's own filter of the model's family makes of a foreign state dict."""
    renames = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    if renames is None:
        return state
    try:
        return dict(renames(dict(state), model))
    except (KeyError, RuntimeError, AttributeError, ValueError):
        # The filter guessed a layout that this file does not have; shapes are judged next.
        return state


def _same_shapes(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, name: str
) -> None:
    for key, target in wanted.items():
        tensor = given.get(key)
        if tensor is None:
            continue
        if tensor.shape != target.shape:
            raise UserError(
                f"{key} has shape {tuple(tensor.shape)}, {name!r} needs {tuple(target.shape)}",
                str(path),
                "The file belongs to another architecture; change --backbone.",
            )
        if target.is_floating_point() and not tensor.is_floating_point():
            raise UserError(f"{key} holds integers ({tensor.dtype}), not weights", str(path))


def _grouped(names: Iterable[str]) -> str:
    """All names, those of one block or module counted: ``decoder_blocks.0 (12), mask_token``."""
    counts: Counter[str] = Counter()
    for name in names:
        first, *rest = name.split(".")
        counts[f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first] += 1
    groups = [f"{k} ({n})" if n > 1 else k for k, n in sorted(counts.items())]
    more = [f"{len(groups) - _GROUPS} more"] if len(groups) > _GROUPS else []
    return ", ".join(groups[:_GROUPS] + more)
