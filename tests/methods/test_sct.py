"""Salient channels: which are chosen, from what, and what the layer computes."""

import numpy as np
import pytest
import torch

from autopeft.errors import UserError
from autopeft.methods import METHODS, build, canonical
from autopeft.methods.conformance import check_method

from .precise import check_bf16, moved, pixels, some

VIT = [
    {"method": "sct", "k": 16},
    {"method": "sct", "k": 8, "where": "mlp", "blocks": 2},
    {"method": "sct", "k": 64, "where": "block_out", "readout": {"block": 3, "pool": "avg"}},
    {"method": "sct", "k": 16, "where": "attn", "blocks": 2, "drop_path": 0.1},
    {
        "strata": [
            {"method": "sct", "k": 16, "blocks": [1, 2], "where": "mlp"},
            {"method": "sct", "k": 8, "blocks": [4, 5]},
            {"method": "lora", "blocks": [2, 5]},
            {"method": "adapter_houlsby", "blocks": [2, 4], "r": 4},
        ]
    },
]


@pytest.mark.parametrize("raw", some(VIT, 1, 2, 4), ids=str)
def test_vit_keeps_the_contract(networks, raw):
    check_method(raw, networks["test_vit"])


@pytest.mark.parametrize("raw", [{"method": "sct", "k": 16, "scale": 2.0, "init": "paper"}])
def test_the_paper_s_start_is_no_identity(networks, raw):
    check_method(raw, networks["test_vit"], identity=False)
    with pytest.raises(AssertionError, match="fresh adapter"):
        check_method(raw, networks["test_vit"])


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        pytest.param("test_convnext", marks=pytest.mark.slow),
        pytest.param("test_efficientnet", marks=pytest.mark.slow),
    ],
)
def test_cnns_keep_the_contract(networks, name):
    check_method({"method": "sct", "k": 16}, networks[name])


class Images:
    """Training images for the choice, and a count of how often they are looked at."""

    def __init__(self, network, label, count=6):
        self.network, self.seed, self.looks, self.kept = network, 0, 0, {}
        self.x, self.label = pixels(network, count), torch.tensor(label)

    def batches(self, size, limit=None):
        self.looks += 1
        for start in range(0, len(self.x), 4):
            yield self.x[start : start + 4], self.label[start : start + 4]

    def cached(self, key, make):
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def choose(network, raw, scoring):
    candidate = canonical(raw, network.facts)
    fixed = METHODS["sct"].prepare(scoring, candidate.strata, candidate.readout)
    return candidate, fixed


LABEL = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [np.nan, 1.0], [np.nan, np.nan]]
# Class 0: images 0, 2; class 1: 1, 2, 4; none of them: 3; the last one has no label at all.
GROUPS = [[0, 2], [1, 2, 4], [3]]


def activation(network, x, block, where):
    """What stands at a place of the frozen backbone, by its own modules."""
    with torch.no_grad():
        state, part = (
            network.advance(0, x, block),
            network.model.get_submodule(network.block_names(block)),
        )
        if where == "block_out":
            return network.run(state, block, block + 1)
        middle = state + part.ls1(part.attn(part.norm1(state)))
        return middle if where == "attn" else part.mlp(part.norm2(middle))


@pytest.mark.parametrize("where", ["attn", "mlp", "block_out"])
def test_channels_have_the_largest_class_averaged_norm(networks, where):
    vit = networks["test_vit"]
    scoring = Images(vit, LABEL)
    raw = {"method": "sct", "k": 8, "where": where, "blocks": [2, 3]}
    _, fixed = choose(vit, raw, scoring)
    assert list(fixed) == ["blocks.2.sct.channels", "blocks.3.sct.channels"]
    for block in (2, 3):
        values = activation(vit, scoring.x, block, where)[:, 1:].numpy()
        norms = [np.linalg.norm(values[rows].reshape(-1, 64), axis=0) for rows in GROUPS]
        expected = sorted(np.argsort(-np.mean(norms, 0))[:8])
        assert fixed[f"blocks.{block}.sct.channels"].tolist() == expected


def test_a_map_s_channels_are_chosen_over_the_map(networks):
    resnet = networks["test_resnet"]
    scoring = Images(resnet, [[1.0], [0.0], [1.0], [0.0], [0.0], [np.nan]])
    _, fixed = choose(resnet, {"method": "sct", "k": 16, "blocks": [1, 1]}, scoring)
    values = activation(resnet, scoring.x, 1, "block_out").numpy()
    norms = [np.sqrt((values[rows] ** 2).sum((0, 2, 3))) for rows in ([0, 2], [1, 3, 4])]
    [found] = fixed.values()
    assert found.tolist() == sorted(np.argsort(-np.mean(norms, 0))[:16])


def test_images_are_looked_at_once_and_the_resident_network_keeps_no_hook(networks):
    vit = networks["test_vit"]
    scoring = Images(vit, LABEL)
    for k in (8, 16):
        choose(vit, {"method": "sct", "k": k}, scoring)
    assert scoring.looks == 1
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vit.model.modules()]
    assert sum(hooks) == 0


def test_only_the_training_images_decide(networks):
    vit = networks["test_vit"]
    one, other = Images(vit, LABEL), Images(vit, LABEL)
    other.x = other.x.flip(0) * 3 + 1
    raw = {"method": "sct", "k": 8}
    (_, a), (_, b) = choose(vit, raw, one), choose(vit, raw, other)
    assert any(not torch.equal(a[n], b[n]) for n in a)
    (_, c), (_, d) = choose(vit, raw, Images(vit, LABEL)), choose(vit, raw, Images(vit, LABEL))
    assert all(torch.equal(c[n], d[n]) for n in c)


@pytest.mark.parametrize("where", ["attn", "mlp", "block_out"])
def test_a_block_computes_the_formula(networks, where):
    vit = networks["test_vit"]
    raw = {"method": "sct", "k": 8, "where": where, "blocks": [2, 2], "scale": 0.5}
    _, fixed = choose(vit, raw, Images(vit, LABEL))
    adapted, block = moved(raw, vit, fixed, by=0.1), vit.model.blocks[2]
    chosen = fixed["blocks.2.sct.channels"]
    g, bias = (adapted.trainable[f"blocks.2.sct.{n}"] for n in ("weight", "bias"))

    def tuned(x):
        x = x.clone()
        x[..., chosen] += 0.5 * (x[..., chosen] @ g.T + bias)
        return x

    with torch.no_grad():
        x = vit.advance(0, pixels(vit), 2)
        middle = x + block.ls1(block.attn(block.norm1(x)))
        middle = tuned(middle) if where == "attn" else middle
        mlp = block.mlp(block.norm2(middle))
        out = middle + block.ls2(tuned(mlp) if where == "mlp" else mlp)
        out = tuned(out) if where == "block_out" else out
        torch.testing.assert_close(adapted.network.run(x, 2, 3), out, rtol=1e-4, atol=1e-5)
        if where == "block_out":
            rest = [c for c in range(64) if c not in chosen.tolist()]
            plain = vit.run(x, 2, 3)
            assert torch.equal(adapted.network.run(x, 2, 3)[..., rest], plain[..., rest])
            assert not torch.allclose(adapted.network.run(x, 2, 3), plain, atol=1e-3)


@pytest.mark.parametrize("where", ["attn", "mlp", "block_out"])
def test_bf16(networks, where):
    for name in ("test_vit", "test_resnet"):
        raw = {"method": "sct", "k": 8, "where": where, "blocks": 3}
        label = [[1.0], [0.0], [1.0], [0.0], [0.0], [np.nan]]
        _, fixed = choose(networks[name], raw, Images(networks[name], label))
        check_bf16(raw, networks[name], fixed)


def test_the_channels_are_saved_and_narrow_blocks_are_left_out(networks):
    resnet = networks["test_resnet"]
    widths = [s[0] for s in resnet.facts.shapes[1:]]
    k = min(widths) + 1
    candidate, fixed = choose(resnet, {"method": "sct", "k": k}, Images(resnet, [[1.0]] * 6))
    adapted = build(resnet, candidate, 3, 0, 0, fixed)
    wide = [i for i, w in enumerate(widths) if w >= k]
    assert list(fixed) == [f"{resnet.block_names(i)}.sct.channels" for i in wide]
    assert adapted.adapter_params == len(wide) * (k * k + k)
    assert all(torch.equal(adapted.tensors()[n], v) for n, v in fixed.items())


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("test_vit", {"method": "sct", "k": 65}, "whole number from 1 to 64"),
        ("test_vit", {"method": "sct"}, None),
        ("test_vit", {"method": "sct", "where": "qkv"}, "Choose: attn, mlp, block_out"),
        ("test_resnet", {"method": "sct", "k": 4096}, "whole number from 1 to"),
    ],
)
def test_refusals(networks, name, raw, words):
    if words is None:
        assert canonical(raw, networks[name].facts).strata[0].options["k"] == 48
        return
    with pytest.raises(UserError, match=words):
        canonical(raw, networks[name].facts)


def test_where_is_idle_on_a_cnn(networks):
    facts = networks["test_resnet"].facts
    one, other = (canonical({"method": "sct", "k": 8, "where": w}, facts) for w in ("attn", "mlp"))
    assert one.fingerprint == other.fingerprint
