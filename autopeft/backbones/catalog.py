"""The backbones that autopeft was tested with, for people to choose from (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass

OWN = "autopeft_vit_nano"
NOTE = (
    "Any other timm model of these families works too: ViT (DeiT, DINO, DINOv2, MAE, CLIP), "
    "ResNet, ConvNeXt, EfficientNet, MobileNet, RegNet."
)


@dataclass(frozen=True)
class Listed:
    """One line of ``autopeft backbones``.

    Attributes:
        name: what to write after ``--backbone``.
        blocks: number of blocks.
        note: what it is.
    """

    name: str
    blocks: int
    note: str


_LISTED = (
    Listed(OWN, 6, "ships with autopeft: first half of DINOv2 ViT-S/14, 112 px, no download"),
    Listed("vit_tiny_patch16_224", 12, "ViT-Ti/16, ImageNet"),
    Listed("vit_small_patch14_dinov2", 12, "DINOv2 ViT-S/14; 112 or 224 px are good sizes"),
    Listed("vit_small_patch14_reg4_dinov2", 12, "DINOv2 ViT-S/14 with register tokens"),
    Listed("vit_base_patch16_224.mae", 12, "MAE ViT-B/16"),
    Listed("resnet18", 8, "ResNet-18, ImageNet"),
    Listed("resnet50", 16, "ResNet-50, ImageNet"),
    Listed("convnext_atto", 12, "ConvNeXt-Atto, ImageNet"),
    Listed("efficientnet_b0", 16, "EfficientNet-B0, ImageNet"),
    Listed("tf_efficientnet_lite0", 16, "EfficientNet-Lite0, ImageNet"),
)


def list_backbones() -> tuple[Listed, ...]:
    """The tested backbones, the wheel's own first; ``NOTE`` says what else works."""
    return _LISTED
