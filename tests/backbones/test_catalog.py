"""The list of tested backbones."""

import timm

from autopeft.backbones import weights  # noqa: F401  makes the wheel's own known to timm
from autopeft.backbones.catalog import OWN, list_backbones


def test_every_listed_backbone_exists_and_the_wheels_own_comes_first():
    names = [item.name for item in list_backbones()]
    assert names[0] == OWN
    assert all(timm.is_model(name) for name in names)
