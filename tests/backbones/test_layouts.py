"""Only models whose forward functions we mirror are accepted."""

import pytest
import timm
import torch

from autopeft.backbones.layouts import LAYOUTS, layout_of
from autopeft.errors import UserError


def made(name):
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224", "densenet121"]
)
def test_other_structures_are_refused_with_the_families_that_work(name):
    with pytest.raises(UserError, match=f"{name}.*ConvNeXt"):
        layout_of(made(name), name)


def test_a_subclass_with_its_own_forward_is_refused():
    model = made("test_vit")
    kind = type(model)
    changed = type("Changed", (kind,), {"forward_features": lambda self, x: x})
    model.__class__ = changed
    with pytest.raises(UserError, match="Changed"):
        layout_of(model, "test_vit")


def test_attention_pooling_is_refused():
    with pytest.raises(UserError, match="'map'"):
        layout_of(made("test_vit3"), "test_vit3")


@pytest.mark.parametrize(
    "name",
    ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "regnety_002"]
    + ["mobilenetv3_small_050"],
)
def test_every_layout_is_found(name):
    assert layout_of(made(name), name) in LAYOUTS
