"""WiSE-FT and slerp."""

from __future__ import annotations

import math

import numpy as np
import peft
import pytest
import timm
import torch

from autopeft import load_adapter, posthoc
from autopeft.adapter import merge
from autopeft.errors import UserError
from autopeft.posthoc.interpolation import arc, line

LORA = {"method": "lora", "blocks": [2, 5], "r": 4}
KINDS = [LORA, {"method": "bitfit", "blocks": 2}, {"method": "full", "blocks": 1}]
EARLY = {**LORA, "readout_block": 5, "readout_pool": "avg"}


def by_hand(model, alpha, head=None):
    """(1 - alpha) frozen + alpha merged, in numpy."""
    trained, frozen = merge(model.adapted), model.base.model.state_dict()
    state = {}
    for name, value in trained.items():
        if name.startswith(("head.", "fc.")):
            start = value if head is None else head[name.endswith("bias")]
        else:
            start = frozen[name]
        mixed = (1 - alpha) * start.double().numpy() + alpha * value.double().numpy()
        state[name] = torch.from_numpy(np.asarray(mixed)).to(value.dtype)
    return state


def close(one, two, tolerance=1e-5):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("raw", KINDS, ids=str)
def test_the_adapter_s_path_is_the_path_of_merged_weights(trained, raw):
    model = trained(raw)
    probe = trained({"method": "linear_probe"}, seed=5)
    head = (probe.adapted.head.weight.detach(), probe.adapted.head.bias.detach())
    for given in (None, head, probe):
        found = posthoc.wise_ft(model, 0.3, given)
        want = by_hand(model, 0.3, None if given is None else head)
        close(merge(found.adapted), want)
        close(posthoc.wise_ft_weights(model, 0.3, given), want)


@pytest.mark.parametrize("raw", [*KINDS, EARLY], ids=str)
def test_both_ends_bit_for_bit(trained, raw, pixels):
    model, probe = trained(raw), trained({"method": "linear_probe"}, seed=5)
    if raw is EARLY:
        probe = trained({"method": "linear_probe", "readout_block": 5, "readout_pool": "avg"})
    with torch.no_grad():
        one = posthoc.wise_ft(model, 1.0, probe).model(pixels)
        assert torch.equal(one, model.model(pixels))
        zero = posthoc.wise_ft(model, 0.0, probe).model(pixels)
        assert torch.equal(zero, probe.model(pixels))
        half = posthoc.wise_ft(model, 0.5, probe).model(pixels)
    assert (half - one).abs().max() > 1e-3
    assert (half - zero).abs().max() > 1e-3


def test_of_lora_only_b_and_the_head_move(trained):
    model = trained(LORA)
    found = posthoc.wise_ft(model, 0.25, (torch.zeros(3, 64), torch.zeros(3)))
    for name, before in model.adapted.tensors().items():
        after = found.adapted.tensors()[name]
        assert torch.equal(after, before if "lora_A" in name else 0.25 * before), name


def test_a_cnn(trained, resnet):
    model = trained({"method": "lora", "blocks": 2}, network=resnet)
    close(merge(posthoc.wise_ft(model, 0.3).adapted), by_hand(model, 0.3), 1e-4)


def test_the_result_is_saved_as_any_adapter(trained, vit, pixels, tmp_path):
    model = trained(LORA)
    found = posthoc.wise_ft(model, 0.5)
    posthoc.save(found, tmp_path / "half")
    loaded = load_adapter(tmp_path / "half", network=vit)
    assert loaded.info["steps"] == [{"step": "wise_ft", "alpha": 0.5, "head": False}]
    assert loaded.thresholds == ()
    assert model.thresholds == (0.5, 0.5, 0.5)
    plain = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    plain.load_state_dict(vit.model.state_dict(), strict=False)
    alone = peft.PeftModel.from_pretrained(plain, tmp_path / "half").eval()
    with torch.no_grad():
        want = found.model(pixels)
        assert torch.equal(loaded.model(pixels), want)
        torch.testing.assert_close(alone(pixels), want, rtol=1e-5, atol=1e-5)


def test_sources_are_left_as_they_are(trained, vit):
    model = trained({"method": "full", "blocks": 2})
    before = {k: v.clone() for k, v in model.adapted.tensors().items()}
    frozen = {k: v.clone() for k, v in vit.model.state_dict().items()}
    posthoc.wise_ft(model, 0.5)
    posthoc.wise_ft_weights(model, 0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.adapted.tensors().items())
    assert all(torch.equal(v, frozen[k]) for k, v in vit.model.state_dict().items())


def test_refusals_say_why(trained):
    oft = trained({"method": "oft", "blocks": 2})
    with pytest.raises(UserError, match="oft is not known.*wise_ft_weights"):
        posthoc.wise_ft(oft, 0.5)
    close(posthoc.wise_ft_weights(oft, 0.5), by_hand(oft, 0.5))
    prompts = trained({"method": "vpt_deep"})
    with pytest.raises(UserError, match="no weight of the plain model"):
        posthoc.wise_ft(prompts, 0.5)
    with pytest.raises(UserError, match="cannot be merged"):
        posthoc.wise_ft_weights(prompts, 0.5)
    lora = trained(LORA)
    with pytest.raises(UserError, match="Range: 0 to 1"):
        posthoc.wise_ft(lora, 1.5)
    with pytest.raises(UserError, match="head has shapes"):
        posthoc.wise_ft(lora, 0.5, (torch.zeros(2, 64), torch.zeros(2)))
    early = trained({"method": "linear_probe", "readout_block": 3})
    with pytest.raises(UserError, match="another readout"):
        posthoc.wise_ft(lora, 0.5, early)


def test_line_ends_are_exact():
    a, b = torch.tensor([1e-8, 1e8]), torch.tensor([1e8, 1e-8])
    assert torch.equal(line(a, b, 0.0), a)
    assert torch.equal(line(a, b, 1.0), b)


# ---- slerp --------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [10, 90, 170])
def test_an_arc_turns_evenly_and_keeps_length(degrees):
    w = math.radians(degrees)
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([2 * math.cos(w), 2 * math.sin(w)])
    for t in (0.0, 0.25, 0.5, 1.0):
        want = [2 * math.cos(t * w), 2 * math.sin(t * w)]
        np.testing.assert_allclose(arc(a, b, t).numpy(), want, atol=1e-6)


def test_an_arc_without_an_angle_is_a_line():
    a = torch.tensor([1.0, 2.0])
    for b in (3 * a, -a, 0 * a):
        torch.testing.assert_close(arc(a, b, 0.25).float(), 0.75 * a + 0.25 * b)


def test_slerp_of_adapters(trained, vit):
    one, two = trained(LORA), trained(LORA, seed=1)
    ends = [merge(m.adapted) for m in (one, two)]
    for t in (0, 1):
        close(posthoc.slerp([one, two], t), ends[t], 0)
    name = "blocks.3.attn.qkv.weight"
    w0 = vit.model.state_dict()[name]
    change = posthoc.slerp([one, two], 0.5)[name] - w0
    changes = [end[name] - w0 for end in ends]
    lengths = [float(c.norm()) for c in changes]
    assert min(lengths) * 0.9 < float(change.norm())  # a line's middle would be 0.7 of it
    assert float((sum(changes) / 2).norm()) < 0.8 * min(lengths)
    with pytest.raises(UserError, match="needs two adapters"):
        posthoc.slerp([one, two, one])
    with pytest.raises(UserError, match="list of 2 adapters"):
        posthoc.slerp(one)
