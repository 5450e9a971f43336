"""Reads the facts of a timm model and wraps it as a Network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from autopeft.backbones.facts import Facts, Pool
from autopeft.backbones.layouts import Layout, layout_of, own_pool, unknown_structure
from autopeft.backbones.network import Network, freeze

_VIT_MODULES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
# Squeeze-excitation and shortcuts: small, and no published adapter touches them.
_NEVER_TARGETS = {"se", "downsample", "shortcut"}


def network_of(
    model: nn.Module, name: str, image_size: int | None = None, warnings: Iterable[str] = ()
) -> Network:
    """Wraps a timm model; it is frozen and its tensors are used as they are.

    Args:
        model: a timm model of a family that works.
        name: its timm name.
        image_size: side of the input of a CNN (a ViT knows its own).
        warnings: lines for the user.

    Raises:
        UserError: the model's structure is not known.
    """
    layout = layout_of(model, name)
    freeze(model)
    return Network(model, _facts(model, name, layout, image_size), layout, warnings)


def random_backbone(name: str, image_size: int | None = None, seed: int = 0) -> Network:
    """An untrained backbone whose every block changes its input; for tests and dry runs.

    Layer scale (1e-6 at birth) and the last BatchNorm of a residual branch (0 at birth) are made
    visible, since otherwise each block is the identity and no test sees a wrong block.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = {"img_size": image_size} if image_size and takes_image_size(name) else {}
        model = timm.create_model(name, num_classes=0, **size)
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                shift = 0.0 if key.endswith("bias") else 0.5
                nn.init.normal_(parameter, shift, 0.1)
    return network_of(model, name, image_size)


def takes_image_size(name: str) -> bool:
    """Whether a timm model is built for one image size (a ViT; a CNN takes any)."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(getattr(cfg, "fixed_input_size", False))


def patch_of(model: Any) -> int | None:
    """Pixels on a side that become one token; None for a CNN."""
    embed = getattr(model, "patch_embed", None)
    return None if embed is None else int(embed.feat_ratio(as_scalar=True))


def fingerprint(model: nn.Module, classifier: str) -> str:
    """sha256 over names, shapes and bytes of all tensors but the classifier's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(classifier + "."):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _facts(model: Any, name: str, layout: Layout, image_size: int | None) -> Facts:
    prefixes = layout.blocks(model)
    cfg = model.pretrained_cfg
    vit = layout.family == "vit"
    size = model.patch_embed.img_size[0] if vit else image_size or cfg["input_size"][-1]
    plain = _vit_paths(model, prefixes) if vit else _cnn_paths(model, prefixes, _is_target)
    if not plain:
        raise unknown_structure(model, name)
    grouped = {} if vit else _cnn_paths(model, prefixes, _is_grouped)
    grouped = {f"{k}_grouped" if k in plain else k: v for k, v in grouped.items()}
    paths = {**plain, **grouped}
    pools: tuple[Pool, ...] = ("avg",)
    if vit and model.has_class_token:
        pools = ("token", "avg", "token+avg")
    dims, shapes = _shapes(model, layout, prefixes, size)
    counts = _counts(model, layout, prefixes, cfg["classifier"])
    depth = len(prefixes)
    return Facts(
        name=name,
        family=layout.family,
        depth=depth,
        dims=dims,
        shapes=shapes,
        modules={k: tuple(_size(model, p) for p in v) for k, v in plain.items()},
        grouped={k: tuple(_size(model, p) for p in v) for k, v in grouped.items()},
        paths=paths,
        prefixes=prefixes,
        pools=pools,
        own_pool=own_pool(model, name),
        classifier=cfg["classifier"],
        image_size=int(size),
        patch=patch_of(model),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        block_params=tuple(counts[i][0] for i in range(depth)),
        block_biases=tuple(counts[i][1] for i in range(depth)),
        stem_params=counts[-1][0],
        stem_biases=counts[-1][1],
        tail_params=counts[depth][0],
        tail_biases=counts[depth][1],
        sha256=fingerprint(model, cfg["classifier"]),
        kernels={k: tuple(_kernel(model, p) for p in v) for k, v in paths.items()},
        norms=tuple(_norms(model, parts) for parts in prefixes),
        norm_biases=tuple(_norm_biases(model, parts) for parts in prefixes),
        module_biases={k: tuple(_biases(model, p) for p in v) for k, v in paths.items()},
        heads=int(model.blocks[0].attn.num_heads) if vit else 0,
    )


def _vit_paths(model: Any, prefixes: tuple[tuple[str, ...], ...]) -> dict[str, tuple[str, ...]]:
    found = {}
    for short, inner in _VIT_MODULES.items():
        per_block = []
        for (block,) in prefixes:
            names = dict(model.get_submodule(block).named_modules())
            linear = isinstance(names.get(inner), nn.Linear)
            per_block.append(f"{block}.{inner}" if linear else "")
        if any(per_block):
            found[short] = tuple(per_block)
    return found


def _cnn_paths(
    model: Any, prefixes: tuple[tuple[str, ...], ...], wanted: Callable[[nn.Module], bool]
) -> dict[str, tuple[str, ...]]:
    """Modules of a kind in each block, by the name that the family gives them."""
    found: dict[str, list[str]] = {}
    empty = [""] * len(prefixes)
    for i, parts in enumerate(prefixes):
        block = parts[-1]
        for inner, module in model.get_submodule(block).named_modules():
            names = inner.removesuffix(".conv").split(".")
            if not wanted(module) or _NEVER_TARGETS & set(names):
                continue
            short = names.pop()
            # A number says nothing, and two modules of a block may end in the same word.
            while names and (short.isdigit() or found.get(short, empty)[i]):
                short = f"{names.pop()}_{short}"
            found.setdefault(short, list(empty))[i] = f"{block}.{inner}"
    return {short: tuple(per_block) for short, per_block in sorted(found.items())}


def _is_target(module: nn.Module) -> bool:
    """A linear layer or a convolution of one group."""
    if isinstance(module, nn.Linear):
        return True
    # peft's adapter for a convolution is a plain Conv2d: TensorFlow's "same" padding is lost.
    if isinstance(module, Conv2dSame):
        return bool(module.groups == 1 and module.kernel_size == (1, 1))
    return isinstance(module, nn.Conv2d) and module.groups == 1


def _is_grouped(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d) and module.groups > 1 and not isinstance(module, Conv2dSame)
    )


def _size(model: Any, path: str) -> tuple[int, ...]:
    """(fan in, outputs) of a module; () for the empty path."""
    if not path:
        return ()
    weight = model.get_submodule(path).weight
    return int(weight[0].numel()), int(weight.shape[0])


def _kernel(model: Any, path: str) -> int:
    """Side of a convolution's kernel; 0 for a linear module and for the empty path."""
    kernel = getattr(model.get_submodule(path), "kernel_size", (0,)) if path else (0,)
    return int(max(kernel))


def _norms(model: Any, parts: tuple[str, ...]) -> dict[str, int]:
    """Path -> numbers of a block's norms that have a weight."""
    found = {}
    for part in parts:
        for inner, module in model.get_submodule(part).named_modules():
            own = dict(module.named_parameters(recurse=False))
            if "norm" in type(module).__name__.lower() and "weight" in own:
                path = f"{part}.{inner}" if inner else part
                found[path] = sum(p.numel() for p in own.values())
    return found


def _norm_biases(model: Any, parts: tuple[str, ...]) -> int:
    return sum(_biases(model, path) for path in _norms(model, parts))


def _biases(model: Any, path: str) -> int:
    """Numbers in the bias of a module; 0 without one and for the empty path."""
    bias = getattr(model.get_submodule(path), "bias", None) if path else None
    return 0 if bias is None else int(bias.numel())


def _shapes(
    model: Any, layout: Layout, prefixes: tuple[tuple[str, ...], ...], size: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Pooled width and state shape at each boundary, seen in one forward pass of one image."""
    first = next(model.parameters())
    x = torch.zeros(1, 3, size, size, dtype=first.dtype, device=first.device)
    with torch.no_grad():
        for name in layout.stem:
            x = getattr(model, name)(x)
        shapes = [tuple(x.shape[1:])]
        for parts in prefixes:
            for path in parts:
                x = model.get_submodule(path)(x)
            shapes.append(tuple(x.shape[1:]))
        for name in layout.final:
            x = getattr(model, name)(x)
        own = model.forward_head(x, pre_logits=True).shape[1]
    channel = 1 if layout.family == "vit" else 0
    return (*(s[channel] for s in shapes[:-1]), int(own)), tuple(shapes)


def _counts(
    model: Any, layout: Layout, prefixes: tuple[tuple[str, ...], ...], classifier: str
) -> dict[int, list[int]]:
    """(parameters, numbers in biases) at each place: -1 stem, 0..L-1 blocks, L the rest."""
    depth = len(prefixes)
    counts = {place: [0, 0] for place in range(-1, depth + 1)}
    where = {path: i for i, parts in enumerate(prefixes) for path in parts}
    where |= dict.fromkeys((*layout.final, *layout.head), depth)
    for name, parameter in model.named_parameters():
        if name.startswith(classifier + "."):
            continue
        parts = name.split(".")
        heads = (".".join(parts[:n]) for n in range(1, len(parts)))
        place = next((where[head] for head in heads if head in where), -1)
        counts[place][0] += parameter.numel()
        counts[place][1] += parameter.numel() * (parts[-1] == "bias")
    return counts
