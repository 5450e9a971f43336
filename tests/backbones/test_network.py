"""Running, pooling, forking and freezing."""

import peft
import pytest
import timm
import torch
from torch import nn

from autopeft.backbones.describe import network_of, random_backbone
from autopeft.backbones.network import parameters_at


@pytest.fixture(scope="module")
def vit():
    return random_backbone("test_vit", image_size=64)


def pixels(network, seed=0):
    size = network.facts.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pool", ["token", "avg", "token+avg"])
@pytest.mark.parametrize("block", [2, 6])
@torch.no_grad()
def test_vit_pools_by_hand(vit, block, pool):
    state = vit.advance(0, pixels(vit), block)
    norm = vit.model.norm
    scaled = (state - state.mean(-1, keepdim=True)) / torch.sqrt(
        state.var(-1, unbiased=False, keepdim=True) + norm.eps
    )
    tokens = scaled * norm.weight + norm.bias
    token, avg = tokens[:, 0], tokens[:, 1:].sum(1) / (tokens.shape[1] - 1)
    expected = {"token": token, "avg": avg, "token+avg": torch.cat([token, avg], 1)}[pool]
    torch.testing.assert_close(vit.pooled(state, block, pool), expected)


@torch.no_grad()
def test_register_tokens_are_not_averaged():
    model = timm.create_model("test_vit", img_size=64, num_classes=0, reg_tokens=3)
    network = network_of(model, "test_vit")
    state = network.advance(0, pixels(network), 4)
    expected = model.norm(state)[:, 4:].mean(1)
    assert torch.equal(network.pooled(state, 4, "avg"), expected)


@torch.no_grad()
def test_models_with_mean_pooling_norm_behind_it():
    network = random_backbone("vit_little_patch16_reg4_gap_256", image_size=32)
    assert isinstance(network.model.norm, nn.Identity) != isinstance(
        network.model.fc_norm, nn.Identity
    )
    state = network.advance(0, pixels(network), 3)
    mean = network.model.norm(state)[:, 4:].mean(1)
    assert torch.equal(network.pooled(state, 3, "avg"), network.model.fc_norm(mean))
    with pytest.raises(ValueError, match="token"):
        network.pooled(state, 3, "token")


@torch.no_grad()
def test_cnn_pools_the_plain_map_before_the_last_boundary():
    network = random_backbone("test_efficientnet", image_size=64)
    x = pixels(network)
    state = network.advance(0, x, 3)
    assert torch.equal(network.pooled(state, 3, "avg"), state.mean((2, 3)))
    last = network.advance(3, state, network.depth)
    whole = network.model.forward_features(x)
    torch.testing.assert_close(network.pooled(last, network.depth, "avg"), whole.mean((2, 3)))


@torch.no_grad()
def test_forward_from_sees_modules_that_peft_replaced(vit):
    fork = vit.fork(2, torch.Generator().manual_seed(0))
    x = pixels(vit)
    plain = fork.forward_from(0, x)
    config = peft.LoraConfig(
        r=2,
        target_modules=r"blocks\.[345]\.attn\.qkv",
        modules_to_save=[vit.facts.classifier],
        init_lora_weights=False,
    )
    wrapped = peft.get_peft_model(fork.model, config)
    with torch.no_grad():
        fork.classifier.modules_to_save["default"].bias.add_(1.0)
    expected = wrapped(x)
    assert not torch.allclose(expected, plain + 1.0, atol=1e-4)
    for k in (0, 3, 5):
        state = x if k == 0 else fork.advance(0, x, k)
        assert torch.equal(fork.forward_from(k, state), expected)
    assert fork.place("blocks.4.attn.qkv.lora_A.default.weight") == 4
    assert not any("lora" in n for n, _ in vit.model.named_modules())


def test_own_parameters_train_without_reaching_the_resident(vit):
    fork = vit.fork()
    name = "blocks.5.attn.proj.bias"
    before = vit.model.get_parameter(name).clone()
    opened = fork.own([name])
    optimizer = torch.optim.SGD(opened.values(), lr=1.0)
    state = fork.advance(0, pixels(vit), 6)
    fork.pooled(state, 6, "token").square().mean().backward()
    optimizer.step()
    assert fork.model.get_parameter(name) is opened[name]
    assert not torch.equal(opened[name], before)
    assert torch.equal(vit.model.get_parameter(name), before)
    assert [n for n, p in fork.model.named_parameters() if p.requires_grad] == [name]


def test_fork_shares_storage_but_not_objects(vit):
    fork = random_backbone("test_resnet", image_size=64)
    twin = fork.fork(3)
    for name, tensor in fork.model.state_dict(keep_vars=True).items():
        other = twin.model.state_dict(keep_vars=True)[name]
        assert other.data_ptr() == tensor.data_ptr()
        assert other is not tensor
    twin.model.layer1[0].conv1 = nn.Identity()
    assert isinstance(fork.model.layer1[0].conv1, nn.Conv2d)


def test_fresh_classifier_depends_on_its_generator_only(vit):
    def fork(seed):
        return vit.fork(3, torch.Generator().manual_seed(seed)).classifier.weight

    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(fork(0), fork(0))
    assert torch.equal(torch.rand(2), expected), "the global generator was used"
    assert not torch.equal(fork(0), fork(1))
    assert vit.fork(3).classifier.weight.abs().max() == 0
    assert isinstance(vit.fork().classifier, nn.Identity)


@torch.no_grad()
def test_dropped_blocks_hold_nothing_and_keep_the_names(vit):
    fork = vit.fork()
    fork.drop_blocks(2)
    x = pixels(vit)
    expected = vit.pooled(vit.advance(0, x, 2), 2, "avg")
    assert torch.equal(fork.pooled(fork.advance(0, x, 6), 2, "avg"), expected)
    assert len(fork.blocks) == fork.depth == 2
    assert not any(n.startswith("blocks.2") for n, _ in fork.model.named_parameters())
    assert vit.depth == 6
    with pytest.raises(RuntimeError, match="dropped"):
        fork.forward_from(0, x)


def test_batchnorm_never_trains_even_under_a_wrapper():
    network = random_backbone("test_resnet", image_size=64)
    fork = network.fork()
    wrapper = nn.Sequential(fork.model)
    wrapper.train()
    before = fork.model.bn1.running_mean.clone()
    wrapper(pixels(network) * 3 + 1)
    norms = [m for m in fork.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    assert torch.equal(fork.model.bn1.running_mean, before)
    assert fork.model.layer1[0].training, "other modules do follow train()"


@pytest.mark.parametrize(
    ("name", "dropout"),
    [
        ("test_vit", {"proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "img_size": 64}),
        ("test_convnext", {"drop_path_rate": 0.9}),
        ("test_efficientnet", {"drop_rate": 0.5}),
    ],
)
def test_dropout_of_the_pretrained_model_is_off(name, dropout):
    torch.manual_seed(0)
    model = timm.create_model(name, **dropout)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
    x = torch.randn(4, 3, 64, 64)
    assert not torch.equal(model(x), model.eval()(x))
    network = network_of(model, name, 64)
    expected = network.model(x)
    network.model.train()
    assert torch.equal(network.model(x), expected)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "mobilenetv2_035"])
@torch.no_grad()
def test_drop_path_acts_from_its_first_block_in_training_only(name):
    network = random_backbone(name, image_size=64).fork()
    first = network.depth // 2
    x = pixels(network).repeat(8, 1, 1, 1)
    network.model.train()
    at_first = network.advance(0, x, first)
    plain = network.run(at_first, first, network.depth)
    network.set_drop_path(0.9, first_block=first)
    torch.manual_seed(0)
    assert torch.equal(network.advance(0, x, first), at_first)
    assert not torch.equal(network.run(at_first, first, network.depth), plain)
    network.model.eval()
    assert torch.equal(network.run(at_first, first, network.depth), plain)
    network.model.train()
    network.set_drop_path(0.0)
    assert torch.equal(network.run(at_first, first, network.depth), plain)


def test_drop_path_grows_linearly_as_in_timm(vit):
    fork = vit.fork()
    fork.set_drop_path(0.5, first_block=2)
    reference = timm.create_model("test_vit", drop_path_rate=0.5).blocks
    for i, block in enumerate(fork.blocks):
        rate = getattr(block.drop_path1, "drop_prob", 0.0)
        assert rate == pytest.approx(reference[i].drop_path1.drop_prob if i >= 2 else 0.0)


def test_place_covers_every_parameter_once(vit):
    places = [n for p in range(-1, 7) for n, _ in parameters_at(vit, p)]
    assert sorted(places) == sorted(n for n, _ in vit.model.named_parameters())
    assert vit.place("pos_embed") == vit.place("cls_token") == -1
    assert vit.place("norm.weight") == vit.place("head.weight") == 6
    assert vit.place("blocks.1.norm1.weight") == 1
    assert vit.block_names(3) == "blocks.3"
    assert vit.module_path(3, "qkv") == "blocks.3.attn.qkv"
