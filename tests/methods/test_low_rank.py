"""lora_qv, lora_b_only, pego and spafit: contract, formulas, export to peft, refusals."""

from __future__ import annotations

import peft
import pytest
import timm
import torch

from autopeft import adapter
from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.conformance import check_method
from autopeft.methods.lora_qv import as_lora
from autopeft.methods.lora_variants import penalty_of
from autopeft.methods.low_rank import AddLowRank
from autopeft.methods.merge import merged_state

from .precise import check_bf16, moved, pixels

BOTH = [
    {"method": "lora_b_only", "blocks": 2},
    {"method": "lora_b_only", "a_init": "svd", "r": 8},
    {"method": "lora_b_only", "a_init": "kaiming", "blocks": 2},
    {"method": "pego", "blocks": 2},
    {"method": "pego", "basis": "top", "n": 2, "r": 2, "lam": 0.1},
    {"method": "spafit", "c2": 3, "blocks": {"first_block": 1}},
]
VIT = [
    {"method": "lora_qv"},
    {"method": "lora_qv", "train_final_norm": False, "lora_dropout": 0, "blocks": 2},
    {"method": "lora_qv", "readout_block": 3},
    {"method": "spafit", "c2": 4, "modules": ["qkv"], "blocks": {"first_block": 2}},
    {
        "strata": [
            {"method": "lora_qv", "blocks": [1, 3], "r": 2},
            {"method": "lora_qv", "blocks": [4, 5], "r": 4},
            {"method": "bitfit", "blocks": [2, 4]},
        ]
    },
]
QKV = "blocks.4.attn.qkv"


@pytest.fixture(scope="module")
def mae():
    """Layer scale, mean pooling and a final norm behind the pool."""
    return random_backbone("test_vit2", 32)


def of(raw, network, repeat=0):
    return build(network, canonical(raw, network.facts), 3, 0, repeat)


def steps(adapted, x, count=3):
    """A few optimizer steps, the extra loss included."""
    optimizer = torch.optim.AdamW(adapted.param_groups(1e-2, 0.1))
    adapted.set_train(True)
    for _ in range(count):
        optimizer.zero_grad()
        loss = adapted.logits(x).square().sum()
        loss = loss + adapted.extra_loss() if adapted.extra_loss else loss
        loss.backward()
        optimizer.step()
    adapted.set_train(False)
    return adapted


@pytest.mark.parametrize("raw", [*BOTH, *VIT], ids=str)
def test_vit(vit, raw):
    check_method(raw, vit)
    check_bf16(raw, vit)


@pytest.mark.parametrize("raw", [VIT[0], BOTH[5]], ids=str)
def test_vit_with_layer_scale_and_mean_pooling(mae, raw):
    check_method(raw, mae)
    check_bf16(raw, mae)


@pytest.mark.parametrize("raw", [BOTH[0], BOTH[1], BOTH[4], BOTH[5]], ids=str)
def test_resnet(resnet, raw):
    check_method(raw, resnet)
    check_bf16(raw, resnet)


@pytest.mark.parametrize("raw", [BOTH[0], BOTH[3], BOTH[5]], ids=str)
def test_convnext(networks, raw):
    check_method(raw, networks["test_convnext"])


# ---- the function ---------------------------------------------------------------------------


@pytest.mark.parametrize("trains", [(1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 0, 1), (0, 0, 1, 1)])
def test_the_function_has_the_right_gradients(trains):
    torch.manual_seed(0)
    shapes = ((2, 3, 7), (2, 3, 5), (4, 5), (7, 4))
    given = [torch.randn(s, dtype=torch.float64, requires_grad=bool(t)) for s, t in
             zip(shapes, trains, strict=True)]  # fmt: skip

    def plain(out, x, a, b):
        return out * 1 + x @ a.t() @ b.t()

    def fast(out, x, a, b):
        return AddLowRank.apply(out * 1, x, a, b)

    torch.testing.assert_close(fast(*given), plain(*given))
    assert torch.autograd.gradcheck(fast, given)


def test_it_goes_on_under_later_changes_of_the_same_output(vit):
    raw = {"strata": [{"method": "lora_qv", "blocks": 2}, {"method": "ssf", "blocks": 2}]}
    check_bf16(raw, vit)
    adapted = moved(raw, vit)
    adapted.logits(pixels(vit)).square().sum().backward()
    assert all(p.grad is not None for p in adapted.trainable.values())


# ---- lora_qv --------------------------------------------------------------------------------


def test_lora_qv_is_what_the_paper_says(vit):
    adapted = moved({"method": "lora_qv", "r": 4, "blocks": [4, 5]}, vit)
    plain, state, d = vit.model.state_dict(), merged_state(adapted), 64
    own = {n: adapted.trainable[f"{QKV}.lora_qv_{n}"].detach() for n in ("aq", "av", "bq", "bv")}
    weight = plain[f"{QKV}.weight"].clone()
    weight[:d] += 32 / 4 * own["bq"] @ own["aq"]
    weight[2 * d :] += 32 / 4 * own["bv"] @ own["av"]
    torch.testing.assert_close(state[f"{QKV}.weight"], weight)
    assert torch.equal(state[f"{QKV}.weight"][d : 2 * d], plain[f"{QKV}.weight"][d : 2 * d])
    assert adapted.adapter_params == 2 * 4 * 4 * d + 2 * d


def test_keys_keep_every_bit_in_the_forward_pass(vit):
    adapted, d = moved({"method": "lora_qv", "blocks": [4, 4]}, vit), 64
    x = torch.randn(2, 5, d)
    with torch.no_grad():
        plain, ours = (n.model.get_submodule(QKV)(x) for n in (vit, adapted.network))
    same = (plain == ours).all((0, 1))
    assert same[d : 2 * d].all()
    assert not same[:d].any()
    assert not same[2 * d :].any()


def test_dropout_acts_while_training_only(vit):
    adapted = moved({"method": "lora_qv", "lora_dropout": 0.5, "blocks": 2}, vit)
    x = pixels(vit)
    with torch.no_grad():
        adapted.set_train(True)
        assert not torch.equal(adapted.logits(x), adapted.logits(x))
        adapted.set_train(False)
        assert torch.equal(adapted.logits(x), adapted.logits(x))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_export_to_a_folder_that_peft_loads(networks, mae, name, tmp_path):
    network = networks.get(name, mae)
    strata = [
        {"method": "lora_qv", "blocks": [1, 2], "r": 2},
        {"method": "lora_qv", "blocks": [3, network.depth - 1], "r": 4},
    ]
    adapted = steps(moved({"strata": strata}, network), pixels(network))
    exported, x = as_lora(adapted, network), pixels(network)
    with torch.no_grad():
        expected = adapted.logits(x)
        torch.testing.assert_close(exported.logits(x), expected, rtol=1e-5, atol=1e-5)
    adapter.save(exported, tmp_path, {"classes": ["a", "b", "c"], "kind": "multilabel"})
    base = timm.create_model(name, num_classes=3, img_size=32)
    base.load_state_dict(network.model.state_dict(), strict=False)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-5)


def test_export_refuses_other_methods(vit):
    with pytest.raises(UserError, match="not lora_qv alone"):
        as_lora(of({"method": "bitfit"}, vit), vit)


# ---- lora_b_only ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("init", ["orthonormal", "svd"])
def test_rows_of_a_are_orthonormal_and_stay(networks, name, init):
    network = networks[name]
    adapted = of({"method": "lora_b_only", "a_init": init, "blocks": 2, "r": 8}, network)
    before = {n: a.clone() for n, a in adapted.fixed.items()}
    assert before
    assert all(n.endswith("lora_b_only_a") for n in before)
    steps(adapted, pixels(network))
    for path, a in adapted.fixed.items():
        assert torch.equal(a, before[path])
        torch.testing.assert_close(a @ a.t(), torch.eye(len(a)), atol=1e-5, rtol=0)


def test_a_is_saved_and_differs_between_repeats(vit):
    first, second = (of({"method": "lora_b_only", "blocks": 1}, vit, repeat=i) for i in (0, 1))
    name = "blocks.5.mlp.fc1.lora_b_only_a"
    assert not torch.equal(first.fixed[name], second.fixed[name])
    second.load_tensors(first.tensors())
    assert torch.equal(first.fixed[name], second.fixed[name])


def test_singular_vectors_as_a(vit):
    adapted = of({"method": "lora_b_only", "a_init": "svd", "blocks": [4, 4], "r": 3}, vit)
    weight = vit.model.get_submodule(QKV).weight.detach().double()
    vt = torch.linalg.svd(weight)[2][:3].float()
    overlap = (adapted.fixed[f"{QKV}.lora_b_only_a"] @ vt.t()).abs()
    torch.testing.assert_close(overlap, torch.eye(3), atol=1e-5, rtol=0)


# ---- pego -----------------------------------------------------------------------------------


def test_the_penalty_is_the_papers(vit):
    torch.manual_seed(0)
    a, w = torch.randn(3, 2, 10), torch.randn(7, 10)
    expected = sum((w @ one.t()).square().sum() for one in a)
    for i in range(3):
        for j in range(i + 1, 3):
            expected = expected + (a[i] @ a[j].t()).square().sum()
    torch.testing.assert_close(penalty_of(a.flatten(0, 1), w.t() @ w, 3), expected)


def test_no_penalty_for_groups_that_are_apart():
    basis = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(0)))[0]
    gram = basis[6:].t() @ basis[6:]  # W reads the last four directions
    assert abs(float(penalty_of(basis[:6], gram, 3))) < 1e-5
    same = torch.cat([basis[:2], basis[:2]])
    assert float(penalty_of(same, gram, 2)) == pytest.approx(2, abs=1e-5)
    assert float(penalty_of(basis[6:8], gram, 2)) == pytest.approx(2, abs=1e-5)


def test_training_lowers_the_penalty(vit):
    raw = {"method": "pego", "blocks": 2, "lam": 10.0}
    adapted = of(raw, vit)
    before = float(adapted.extra_loss().detach())
    steps(adapted, pixels(vit), 5)
    assert 0 < float(adapted.extra_loss().detach()) < 0.8 * before


def test_without_penalty_it_is_lora_of_all_ranks_together(vit):
    place = {"blocks": 2, "lora_dropout": 0}
    ours = moved({"method": "pego", "n": 2, "r": 4, "lora_alpha": 8, "lam": 0, "blocks": 2}, vit)
    theirs = of({"method": "lora", "r": 8, "lora_alpha": 16, **place}, vit)
    assert ours.extra_loss is None
    assert ours.adapter_params == theirs.adapter_params
    values = {}
    for name in theirs.trainable:
        path, _, leaf = name.partition(".lora_")
        values[name] = ours.tensors()[f"{path}.pego_{leaf[0].lower()}" if leaf else name]
    theirs.load_tensors(values)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(pixels(vit)), theirs.logits(pixels(vit)))


def test_without_penalty_its_form_is_no_option(vit):
    rows, top = (
        canonical({"method": "pego", "lam": 0, "basis": basis}, vit.facts)
        for basis in ("rows", "top")
    )
    assert rows == top


# ---- spafit ---------------------------------------------------------------------------------


def groups(adapted):
    """Which kinds train in which blocks."""
    found = {"bias": set(), "lora": set()}
    for name in adapted.trainable:
        if name.startswith("blocks."):
            kind = "lora" if "spafit_" in name else "bias"
            found[kind].add((int(name.split(".")[1]), ".".join(name.split(".")[2:4])))
    return found


def test_three_groups(vit):
    found = groups(of({"method": "spafit", "c2": 4, "blocks": [2, 5]}, vit))
    assert {b for b, _ in found["bias"]} == {2, 3, 4, 5}
    assert found["lora"] == {(b, f"attn.{m}") for b in (4, 5) for m in ("qkv", "proj")}
    assert not found["lora"] & found["bias"]  # LoRA's own biases stay
    assert (3, "attn.qkv") in found["bias"]
    assert of({"method": "spafit", "c2": 4, "blocks": [2, 5]}, vit).first_block == 2


def test_counts(vit):
    d, m, r = 64, 192, 8
    biases = 3 * d + d + m + d + 2 * d
    lora = r * (d + 3 * d) + r * (d + d)
    adapted = of({"method": "spafit", "c2": 4, "blocks": [1, 5]}, vit)
    assert adapted.adapter_params == 3 * biases + 2 * (biases - 4 * d + lora)


def test_the_ends(vit):
    lowest = groups(of({"method": "spafit", "c2": 0, "blocks": "all"}, vit))
    assert {b for b, _ in lowest["lora"]} == set(range(6))
    highest = of({"method": "spafit", "c2": 6, "blocks": [2, 5]}, vit)
    bitfit = of({"method": "bitfit", "blocks": [2, 5]}, vit)
    assert list(highest.trainable) == list(bitfit.trainable)
    above = canonical({"method": "spafit", "c2": 99, "blocks": [2, 5]}, vit.facts)
    assert above == highest.candidate


def test_strata_that_touch_are_one_candidate(vit):
    halves = [{"method": "spafit", "c2": 3, "blocks": b} for b in ([1, 2], [3, 5])]
    whole = canonical({"method": "spafit", "c2": 3, "blocks": [1, 5]}, vit.facts)
    assert canonical({"strata": halves}, vit.facts) == whole


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("test_resnet", {"method": "lora_qv"}, "needs the qkv layers"),
        ("test_vit", {"method": "lora_qv", "r": 0}, "1 to 128"),
        ("test_vit", {"method": "lora_qv", "lora_dropout": 1}, "0 to 0.9"),
        ("test_vit", {"method": "lora_qv", "modules": ["qkv"]}, "whole blocks"),
        ("test_vit", {"method": "lora_b_only", "r": 2.5}, "1 to 256"),
        ("test_vit", {"method": "lora_b_only", "a_init": "zero"}, "orthonormal, kaiming, svd"),
        ("test_vit", {"method": "pego", "n": 0}, "1 to 16"),
        ("test_vit", {"method": "pego", "lam": -1}, "0 to 10"),
        ("test_vit", {"method": "spafit", "c2": -1}, "0 to 1000"),
        ("test_vit", {"method": "spafit", "c3": 1}, "unknown option"),
    ],
)
def test_refusals(networks, name, raw, words):
    with pytest.raises(UserError, match=words):
        canonical(raw, networks[name].facts)


def test_alpha_follows_the_rank(vit):
    for method, r, more in (("lora_b_only", 8, {}), ("pego", 2, {}), ("spafit", 4, {"c2": 2})):
        (stratum,) = canonical({"method": method, "r": r, **more}, vit.facts).strata
        assert stratum.options["lora_alpha"] == 2 * r
