"""The shipped backbone: an ordinary timm model whose stored numbers mean what the card says."""

import hashlib
import math

import numpy as np
import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from scipy.special import erf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from autopeft.backbones import nano

CARD = nano.WEIGHTS.with_suffix(".md").read_text()


def build(**options):
    return timm.create_model(nano.NAME, pretrained=True, **{"num_classes": 0, **options}).eval()


@pytest.fixture(scope="module")
def stored():
    return load_file(nano.WEIGHTS)


# ---- timm sees an ordinary model -------------------------------------------------------------


def test_timm_lists_it_as_pretrained():
    assert nano.NAME in timm.list_models(pretrained=True)
    config = timm.get_pretrained_cfg(nano.NAME)
    assert config.input_size == (3, 112, 112)
    assert (config.classifier, config.first_conv) == ("head", "patch_embed.proj")
    assert config.license == "apache-2.0"


def test_shape_of_the_network():
    model = build(num_classes=5)
    assert type(model) is timm.models.VisionTransformer
    assert len(model.blocks) == nano.DEPTH == 6
    assert model.global_pool == "token"
    assert model.patch_embed.grid_size == (8, 8)
    assert sum(p.numel() for p in model.parameters()) == 10_903_680 + 5 * 385


@pytest.mark.parametrize("size", [84, 112, 224])
@pytest.mark.parametrize("classes", [0, 3])
def test_any_size_and_head(size, classes):
    model = build(num_classes=classes, img_size=size)
    with torch.inference_mode():
        out = model(torch.zeros(1, 3, size, size))
    assert out.shape == (1, classes or 384)
    assert torch.isfinite(out).all()


def test_one_channel_is_the_sum_of_three():
    gray = torch.rand(1, 1, 112, 112)
    with torch.inference_mode():
        one, three = build(in_chans=1)(gray), build()(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(one, three, atol=1e-4, rtol=1e-4)


def test_pretrained_false_is_random():
    weight = timm.create_model(nano.NAME, num_classes=0).blocks[0].attn.qkv.weight
    assert not torch.allclose(weight, build().blocks[0].attn.qkv.weight)


def test_a_users_own_float_file_loads(tmp_path):
    from safetensors.torch import save_file

    state = {name: value + 0.5 for name, value in build().state_dict().items()}
    save_file(state, tmp_path / "own.safetensors")
    loaded = build(pretrained_cfg_overlay={"file": str(tmp_path / "own.safetensors")})
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_peft_wraps_it_and_lora_learns():
    config = LoraConfig(r=2, target_modules=r"blocks\.[45]\.attn\.qkv", modules_to_save=["head"])
    model = get_peft_model(build(num_classes=2), config)
    model(torch.rand(2, 3, 112, 112)).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert sum("lora_" in name for name in trained) == 4
    assert all("lora_" in name or "head" in name for name in trained)


# ---- the file ---------------------------------------------------------------------------------


def test_file_is_the_one_of_the_card():
    content = nano.WEIGHTS.read_bytes()
    assert len(content) <= 12_000_000
    assert hashlib.sha256(content).hexdigest() in CARD


def test_card_and_notice_carry_the_licence():
    notice = (nano.WEIGHTS.parent / "NOTICE").read_text()
    for text in (CARD, notice):
        assert "Apache" in text
        assert "Meta" in text
        assert "not a medical device" in text.lower()


def test_matrices_are_int8(stored):
    for name, value in stored.items():
        if value.ndim > 1 and value.shape[0] > 1:
            assert value.dtype == np.int8
            assert stored[name + nano.SCALE].shape == value.shape[:1]
            assert (np.abs(value.reshape(len(value), -1).astype(int)).max(1) == 127).all()


def test_rounding_is_within_half_a_step():
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(7, 3, 4, generator=random) * torch.logspace(-6, 6, 7)[:, None, None]
    matrix[3] = 0
    state = {"w": matrix, "b": torch.arange(3.0), "pos_embed": torch.ones(1, 5, 2)}
    back = nano.dequantize(nano.quantize(state))
    step = matrix.abs().amax((1, 2), keepdim=True) / 127
    assert ((back["w"] - matrix).abs() <= step * 0.5001).all()
    assert torch.equal(back["b"], state["b"])
    assert torch.equal(back["pos_embed"], state["pos_embed"])


def test_rounding_twice_changes_nothing():
    state = {"w": torch.randn(16, 9, generator=torch.Generator().manual_seed(1))}
    once = nano.quantize(state)
    assert torch.equal(nano.quantize(nano.dequantize(once))["w"], once["w"])


# ---- golden values: a ViT in numpy -----------------------------------------------------------


def numpy_vit(stored, image, positions):
    """Class and patch tokens [1 + P, 384] of one image [3, H, W], straight from the file."""

    def get(name):
        value = stored[name].astype(np.float64)
        scale = stored.get(name + ":scale")
        return value if scale is None else value * scale.reshape(-1, *[1] * (value.ndim - 1))

    def norm(x, name):
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6)
        return x * get(name + ".weight") + get(name + ".bias")

    def linear(x, name):
        return x @ get(name + ".weight").T + get(name + ".bias")

    grid = image.shape[1] // 14
    patches = image.reshape(3, grid, 14, grid, 14).transpose(1, 3, 0, 2, 4).reshape(grid**2, -1)
    kernel = get("patch_embed.proj.weight").reshape(384, -1)
    x = np.vstack([get("cls_token")[0], patches @ kernel.T + get("patch_embed.proj.bias")])
    x = x + positions
    for block in (f"blocks.{i}." for i in range(6)):
        qkv = linear(norm(x, block + "norm1"), block + "attn.qkv")
        q, k, v = qkv.reshape(len(x), 3, 6, 64).transpose(1, 2, 0, 3)
        weight = np.exp(q @ k.transpose(0, 2, 1) / 8)
        mixed = weight / weight.sum(2, keepdims=True) @ v
        attended = linear(mixed.transpose(1, 0, 2).reshape(len(x), 384), block + "attn.proj")
        x = x + attended * get(block + "ls1.gamma")
        hidden = linear(norm(x, block + "norm2"), block + "mlp.fc1")
        hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
        x = x + linear(hidden, block + "mlp.fc2") * get(block + "ls2.gamma")
    return norm(x, "norm")


def test_equals_a_vit_written_in_numpy(stored):
    # 224 px is the stored position grid: no resampling stands between file and model.
    image = np.random.default_rng(0).standard_normal((3, 224, 224))
    expected = numpy_vit(stored, image, stored["pos_embed"][0].astype(np.float64))
    with torch.inference_mode():
        tokens = build(img_size=224).forward_features(torch.from_numpy(image).float()[None])[0]
    np.testing.assert_allclose(tokens.numpy(), expected, atol=2e-3)
    assert expected.std() > 0.5


def test_positions_at_112_are_an_antialiased_bicubic_resampling(stored):
    kept, moved = stored["pos_embed"][0, :1], stored["pos_embed"][0, 1:].astype(np.float32)
    # Halving a grid with Pillow's bicubic filter (a = -0.5) in float mode, channel by channel.
    from PIL import Image

    grids = moved.reshape(16, 16, 384).transpose(2, 0, 1)
    small = [
        np.asarray(Image.fromarray(grid).resize((8, 8), Image.Resampling.BICUBIC))
        for grid in grids
    ]
    ours = build().pos_embed[0].detach().numpy()
    np.testing.assert_allclose(ours[:1], kept, atol=1e-6)
    np.testing.assert_allclose(ours[1:], np.stack(small, -1).reshape(64, 384), atol=1e-5)


# ---- the features mean something -------------------------------------------------------------


def moved_digits(count):
    """Digits at a random place, half of them inverted: hard for pixels, [N, 3, 56, 56]."""
    pictures, digits = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    chosen = random.permutation(len(digits))[:count]
    canvas = torch.zeros(count, 1, 56, 56)
    for index, row in enumerate(chosen):
        top, left = random.integers(0, 17, 2)
        digit = torch.from_numpy(pictures[row]).float().view(1, 1, 8, 8) / 16
        canvas[index, :, top : top + 40, left : left + 40] = torch.nn.functional.interpolate(
            digit, (40, 40), mode="bilinear"
        )[0]
        if random.random() < 0.5:
            canvas[index] = 1 - canvas[index]
    return ((canvas - 0.45) / 0.225).expand(-1, 3, -1, -1), digits[chosen]


def probe_accuracy(model, images, digits):
    half = len(digits) // 2
    with torch.inference_mode():
        tokens = model.forward_features(images)
        values = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1).numpy()
    values = (values - values[:half].mean(0)) / (values[:half].std(0) + 1e-6)
    fitted = LogisticRegression(C=0.01, max_iter=300).fit(values[:half], digits[:half])
    return fitted.score(values[half:], digits[half:])


def test_features_are_far_better_than_random_ones():
    images, digits = moved_digits(160)
    torch.manual_seed(0)
    random = timm.create_model(nano.NAME, num_classes=0, img_size=56).eval()
    pretrained = probe_accuracy(build(img_size=56), images, digits)
    assert pretrained > probe_accuracy(random, images, digits) + 0.15
