"""Facts are plain data: torch-free, through JSON and back, with widths for any readout."""

import json
import subprocess
import sys

from autopeft.backbones.describe import random_backbone
from autopeft.backbones.facts import Facts


def test_json_round_trip():
    for name in ("test_vit", "test_efficientnet"):
        facts = random_backbone(name).facts
        assert Facts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


def test_facts_and_catalog_load_neither_torch_nor_timm():
    code = (
        "import sys, autopeft.backbones.facts, autopeft.backbones.catalog;"
        "sys.exit(int('torch' in sys.modules or 'timm' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_width_of_a_readout():
    facts = random_backbone("test_vit").facts
    assert facts.width(3, "token") == facts.width(6, "avg") == 64
    assert facts.width(3, "token+avg") == 128


def test_own_readout_is_the_last_boundary_with_timms_pool():
    facts = random_backbone("test_vit").facts
    assert facts.is_own_readout(6, "token")
    assert not facts.is_own_readout(5, "token")
    assert not facts.is_own_readout(6, "avg")
