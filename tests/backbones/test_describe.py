"""Facts read from models, against numbers written down from the papers and by hand."""

import pytest
import timm
import torch
from timm.layers import Conv2dSame

from autopeft.backbones.describe import fingerprint, network_of, patch_of, random_backbone
from autopeft.errors import UserError


def test_vit_facts():
    facts = random_backbone("test_vit", image_size=96).facts
    assert (facts.family, facts.depth, facts.image_size, facts.patch) == ("vit", 6, 96, 16)
    assert facts.shapes == ((37, 64),) * 7  # 6 x 6 patches and the class token
    assert facts.pools == ("token", "avg", "token+avg")
    assert facts.own_pool == "token"
    assert facts.classifier == "head"
    assert facts.modules["qkv"] == ((64, 192),) * 6
    assert facts.paths["fc1"][4] == "blocks.4.mlp.fc1"
    # norms 2 x 128, qkv, proj, MLP with hidden width 192
    block = 256 + 64 * 192 + 192 + 64 * 64 + 64 + 64 * 192 + 192 + 192 * 64 + 64
    assert facts.block_params == (block,) * 6
    assert facts.block_biases == (2 * 64 + 192 + 64 + 192 + 64,) * 6
    assert facts.stem_params == 64 + 37 * 64 + 3 * 16 * 16 * 64 + 64
    assert facts.stem_biases == 64
    assert (facts.tail_params, facts.tail_biases) == (128, 64)


def test_resnet18_facts():
    facts = random_backbone("resnet18", image_size=64).facts
    stages = [f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in (0, 1)]
    assert facts.prefixes == tuple((s,) for s in stages)
    assert facts.dims == (64, 64, 64, 128, 128, 256, 256, 512, 512)
    assert facts.shapes[0] == (64, 16, 16)
    assert facts.modules["conv1"][2] == (64 * 9, 128)
    assert facts.params == 11_689_512 - 513_000  # the published size without its 1000-class head
    assert (facts.patch, facts.pools, facts.classifier) == (None, ("avg",), "fc")


def test_convnext_downsampling_belongs_to_the_next_block():
    facts = random_backbone("test_convnext", image_size=64).facts
    assert facts.prefixes[0] == ("stages.0.blocks.0",)
    assert facts.prefixes[1] == ("stages.1.downsample", "stages.1.blocks.0")
    assert facts.classifier == "head.fc"
    assert set(facts.modules) == {"fc1", "fc2"}


def test_efficientnet_final_convolution_lies_behind_the_blocks():
    network = random_backbone("test_efficientnet", image_size=64)
    facts = network.facts
    assert facts.dims[-1] == network.model.num_features != facts.shapes[-1][0]
    assert network.place("conv_head.weight") == network.place("bn2.bias") == facts.depth
    assert network.place("conv_stem.weight") == -1
    assert "conv_dw" not in facts.modules
    assert facts.grouped["conv_dw"][-1] == (9, facts.modules["conv_pwl"][-1][0])
    assert facts.kernels["conv_dw"][-1] == 3
    assert facts.modules["conv_pwl"][0] == ()
    with pytest.raises(KeyError, match="block 0"):
        network.module_path(0, "conv_pwl")


def test_names_stay_unique_where_a_family_numbers_its_convolutions():
    paths = random_backbone("mixnet_s", image_size=32).facts.paths
    assert {"conv_pw_0", "conv_pwl_0"} <= set(paths)
    listed = [p for per_block in paths.values() for p in per_block if p]
    assert len(listed) == len(set(listed))


def test_convolutions_with_tensorflow_padding_are_no_targets():
    network = random_backbone("tf_efficientnetv2_b0", image_size=32)
    strided = "blocks.1.0.conv_exp"
    assert isinstance(network.model.get_submodule(strided), Conv2dSame)
    assert strided not in network.facts.paths["conv_exp"]
    assert "blocks.1.1.conv_exp" in network.facts.paths["conv_exp"]


def test_fingerprint_depends_on_the_frozen_tensors_only():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5)
    before = fingerprint(model, "head")
    model.reset_classifier(0)
    assert fingerprint(model, "head") == before
    assert random_backbone("test_vit").facts.sha256 == random_backbone("test_vit").facts.sha256
    with torch.no_grad():
        model.blocks[3].mlp.fc1.bias[0] += 1e-6
    assert fingerprint(model, "head") != before


def test_patch_of_a_hybrid_counts_its_convolutions():
    with torch.device("meta"):
        assert patch_of(timm.create_model("vit_small_r26_s32_224")) == 32
        assert patch_of(timm.create_model("test_resnet")) is None


def test_blocks_without_known_modules_are_refused():
    model = timm.create_model("vit_small_patch16_18x2_224", depth=1, img_size=32)
    with pytest.raises(UserError, match="no block structure"):
        network_of(model, "vit_small_patch16_18x2_224")


def test_random_backbone_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    random_backbone("test_vit", seed=1)
    assert torch.equal(torch.rand(2), expected)
