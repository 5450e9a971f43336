"""Which timm models have a structure we understand: stem -> blocks -> final part -> classifier.

A layout is data: the names that the model's own ``forward_features`` calls before its blocks, the
paths of the blocks, the names it calls behind them. Running them in that order is the same
computation, so it gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from autopeft.backbones.facts import Family, Pool
from autopeft.errors import UserError

WORKING = "ViT (DeiT, DINO, DINOv2, MAE, CLIP), ResNet, ConvNeXt, EfficientNet, MobileNet, RegNet"


@dataclass(frozen=True)
class Layout:
    """How one family of timm models is cut into stem, blocks and the rest.

    Attributes:
        family: ``vit`` or ``cnn``.
        kind: the timm class whose forward functions the layout mirrors.
        stem: what ``forward_features`` calls before the blocks.
        final: what ``forward_features`` calls behind the blocks.
        head: further modules behind the blocks that only ``forward_head`` calls.
        blocks: the module paths of each block of a model.
    """

    family: Family
    kind: type[nn.Module]
    stem: tuple[str, ...]
    final: tuple[str, ...]
    head: tuple[str, ...]
    blocks: Callable[[Any], tuple[tuple[str, ...], ...]]


def _plain(model: Any, stage: str) -> list[tuple[str, ...]]:
    return [(f"{stage}.{name}",) for name, _ in model.get_submodule(stage).named_children()]


def _vit_blocks(model: Any) -> tuple[tuple[str, ...], ...]:
    return tuple(_plain(model, "blocks"))


def _resnet_blocks(model: Any) -> tuple[tuple[str, ...], ...]:
    stages = ("layer1", "layer2", "layer3", "layer4")
    return tuple(block for stage in stages for block in _plain(model, stage))


def _regnet_blocks(model: Any) -> tuple[tuple[str, ...], ...]:
    return tuple(block for stage in ("s1", "s2", "s3", "s4") for block in _plain(model, stage))


def _efficientnet_blocks(model: Any) -> tuple[tuple[str, ...], ...]:
    stages = [name for name, _ in model.blocks.named_children()]
    return tuple(block for s in stages for block in _plain(model, f"blocks.{s}"))


def _convnext_blocks(model: Any) -> tuple[tuple[str, ...], ...]:
    """The downsampling between two stages belongs to the first block of the later one."""
    found: list[tuple[str, ...]] = []
    for name, stage in model.stages.named_children():
        blocks = _plain(model, f"stages.{name}.blocks")
        if not isinstance(stage.downsample, nn.Identity):
            blocks[0] = (f"stages.{name}.downsample", *blocks[0])
        found += blocks
    return tuple(found)


LAYOUTS = (
    Layout(
        "vit",
        VisionTransformer,
        stem=("patch_embed", "_pos_embed", "patch_drop", "norm_pre"),
        final=("norm",),
        head=("attn_pool", "fc_norm", "head_drop", "head"),
        blocks=_vit_blocks,
    ),
    Layout(
        "cnn",
        ResNet,
        stem=("conv1", "bn1", "act1", "maxpool"),
        final=(),
        head=("global_pool", "fc"),
        blocks=_resnet_blocks,
    ),
    Layout(
        "cnn",
        ConvNeXt,
        stem=("stem",),
        final=("norm_pre",),
        head=("head",),
        blocks=_convnext_blocks,
    ),
    Layout(
        "cnn",
        EfficientNet,
        stem=("conv_stem", "bn1"),
        final=("conv_head", "bn2"),
        head=("global_pool", "classifier"),
        blocks=_efficientnet_blocks,
    ),
    Layout(
        "cnn",
        MobileNetV3,
        stem=("conv_stem", "bn1"),
        final=(),
        head=("global_pool", "conv_head", "norm_head", "act2", "flatten", "classifier"),
        blocks=_efficientnet_blocks,
    ),
    Layout(
        "cnn",
        RegNet,
        stem=("stem",),
        final=("final_conv",),
        head=("head",),
        blocks=_regnet_blocks,
    ),
)


def layout_of(model: nn.Module, name: str) -> Layout:
    """The layout of a timm model.

    A subclass that overrides a forward function computes something else, so it is not accepted.

    Raises:
        UserError: the model's structure is not known; says which families work.
    """
    forwards = ("forward", "forward_features", "forward_head")
    for layout in LAYOUTS:
        same = [getattr(type(model), f, 0) is getattr(layout.kind, f, 1) for f in forwards]
        if all(same):
            own_pool(model, name)
            return layout
    raise unknown_structure(model, name)


def unknown_structure(model: nn.Module, name: str) -> UserError:
    """The error for a model that is not stem -> blocks -> head as autopeft knows it."""
    return UserError(
        f"{name!r} ({type(model).__name__}) has no block structure that autopeft knows",
        "--backbone",
        f"Families that work: {WORKING}.",
    )


def own_pool(model: Any, name: str) -> Pool:
    """The pool in front of timm's own classifier.

    Raises:
        UserError: it is neither the class token nor the mean.
    """
    pool = getattr(model, "global_pool", None)
    if pool is None:
        pool = model.head.global_pool
    kind = getattr(pool, "pool_type", pool)
    if kind == "token":
        return "token"
    if kind == "avg":
        return "avg"
    raise UserError(
        f"{name!r} pools with {kind!r}; only class token and mean are known",
        "--backbone",
        'Take its variant with mean pooling (timm calls it "gap") if there is one.',
    )
