"""Each tuner of peft keeps the contract, computes its formula, is refused where it is wrong."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional

from autopeft.adapter import load_adapter, save
from autopeft.backbones.describe import random_backbone
from autopeft.errors import UserError
from autopeft.methods import build, canonical, method_named, own
from autopeft.methods.conformance import check_method
from autopeft.methods.merge import merged_state
from autopeft.methods.tuners import ROWS, TUNERS
from autopeft.training.fast import Casts, speed_up

NAMES = [*(t.name for t in TUNERS), "adalora", "ln_tuning"]
# Sizes for layers of 64 x 192 numbers; the rest are defaults.
SMALL = {
    "adalora": {"init_r": 8, "target_r": 7},
    "adamss": {"r": 8},
    "fourierft": {"n_frequency": 100},
    "osf": {"k": 4},
    "psoft": {"r": 8},
    "pvera": {"r": 16},
    "tinylora": {"u": 16},
    "unilora": {"theta_d_length": 64},
    "vblora": {"num_vectors": 8, "vector_length": 16},
    "vera": {"r": 16},
    "waveft": {"n_frequency": 100},
}
# Where N(0, 0.01) moves the output too little to see a broken merge.
NOISE = {"adalora": 0.2, "c3a": 0.1, "hira": 0.1, "loha": 0.1, "lokr": 0.05, "tinylora": 0.1}
NOISE |= {"hra": 0.05, "ln_tuning": 0.05, "peanut": 0.05}
NOISE |= {"pvera": 0.1, "unilora": 0.3, "vera": 0.1}
INEXACT = {row.name for row in ROWS if not row.exact}
CONVS = ["adalora", "hira", "hra", "ia3", "loha", "lokr", "ln_tuning", "boft", "oft"]
META = {"classes": ["a", "b", "c"], "kind": "multiclass"}


def raw_of(name, blocks=1, **options):
    return {"method": name, "blocks": blocks, **SMALL.get(name, {}), **options}


def check(raw, network, noise=None):
    name = raw["method"]
    noise = noise or NOISE.get(name, 0.01)
    check_method(raw, network, identity=name not in INEXACT, noise=noise)


def moved(network, raw, noise=0.05, seed=0):
    """An adapter whose every number has moved, the head's too."""
    adapted = build(network, canonical(raw, network.facts), 3, seed, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return adapted


def change(network, adapted, path="blocks.5.attn.qkv.weight"):
    """W' - W of one layer, from the merged model, in double precision."""
    before = network.model.state_dict()[path].double()
    return merged_state(adapted)[path].double() - before


def rank(matrix):
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-4))


def qkv(adapted, name):
    return adapted.tensors()[f"blocks.5.attn.qkv.{name}"].double()


# -- the contract ------------------------------------------------------------------------------


def test_the_whole_cluster_is_there_and_in_the_registry():
    cluster = "adalora adamss boft c3a deft delora fourierft frod glora gralora hira hra ia3"
    cluster += " ln_tuning loha lokr beft miss oft osf peanut psoft pvera randlora road shira"
    cluster += " supertuning tinylora unilora vblora vera waveft"
    assert sorted(NAMES) == sorted(cluster.split())
    for name in NAMES:
        method = method_named(name)
        assert all((method.summary, method.paper, method.__doc__))
        assert {"adamw"} <= method.rates.keys()
        assert not method.defaults().keys() & own._TAKEN


@pytest.mark.parametrize("name", NAMES)
def test_vit(vit, name):
    check(raw_of(name), vit)


LINEAR = ["beft", "boft", "c3a", "deft", "fourierft", "ia3", "ln_tuning", "osf", "vblora", "vera"]
REST = sorted(set(NAMES) - {*LINEAR, "gralora", "oft"})


@pytest.mark.parametrize(
    "name", [*LINEAR, *(pytest.param(n, marks=pytest.mark.slow) for n in REST)]
)
def test_convnext(networks, name):
    raw = raw_of(name, group_size=8) if name == "road" else raw_of(name)
    check(raw, networks["test_convnext"])


@pytest.mark.parametrize("name", CONVS)
def test_resnet(networks, name):
    size = {"oft": {"oft_block_size": 16}, "hra": {"modules": ["conv1"], "r": 2}}
    noise = 0.3 if name == "hra" else None
    check(raw_of(name, [2, 2], **size.get(name, {})), networks["test_resnet"], noise)


@pytest.mark.parametrize("name", ["hira", "ia3", "loha", "lokr", "adalora"])
def test_a_wide_kernel(networks, name):
    check_method(raw_of(name, [0, 0], modules=["conv2"]), networks["test_resnet"], noise=0.3)


@pytest.mark.parametrize("net", ["test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("name", ["ia3", "loha", "lokr"])
def test_a_depthwise_convolution(networks, net, name):
    check_method(raw_of(name, modules=["conv_dw"]), networks[net], noise=0.3)
    (stratum,) = canonical(raw_of(name), networks[net].facts).strata
    assert "conv_dw" in stratum.modules


@pytest.mark.parametrize("name", ["lora", "hira", "lora_b_only", "gps", "svdiff"])
def test_other_methods_refuse_convolutions_of_several_groups(networks, name):
    facts = networks["test_convnext"].facts
    said = "conv_dw of test_convnext has several groups.*These take it: ia3, loha, lokr"
    with pytest.raises(UserError, match=said):
        canonical({"method": name, "modules": ["conv_dw", "fc1"]}, facts)
    for stratum in canonical({"method": name}, facts).strata:
        assert "conv_dw" not in stratum.modules


@pytest.mark.parametrize("name", ["boft", "ln_tuning"])
def test_efficientnet(networks, name):
    check(raw_of(name), networks["test_efficientnet"])


@pytest.mark.parametrize("name", ["delora", "loha", "lokr", "osf"])
def test_ranks_may_differ_between_strata(vit, name):
    size = {"osf": ("k", 2, 5)}.get(name, ("r", 2, 3))
    strata = [
        {"method": name, "blocks": [3, 4], "modules": ["qkv"], size[0]: size[1]},
        {"method": name, "blocks": [5, 5], size[0]: size[2]},
    ]
    check_method({"strata": strata}, vit, noise=NOISE.get(name, 0.01))


def test_two_tuners_side_by_side_and_beside_plain_lora(vit):
    strata = [raw_of("lora", [2, 2]), raw_of("adalora", [3, 3]), raw_of("vera", [4, 4])]
    check_method({"strata": [*strata, {"method": "bitfit", "blocks": [5, 5]}]}, vit, noise=0.1)


def test_two_tuners_on_one_layer_are_refused(vit):
    raw = {"strata": [raw_of("lora", [5, 5]), raw_of("vera", [5, 5], modules=["qkv"])]}
    with pytest.raises(UserError, match=r"(qkv|block 5)"):
        build(vit, canonical(raw, vit.facts), 3, 0, 0)


# -- saving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_peft_and_autopeft_load_the_folder_exactly(vit, name, tmp_path, recwarn):
    adapted = moved(vit, raw_of(name, [4, 5]), seed=7)
    save(adapted, tmp_path, META)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = adapted.logits(x)
        ours = load_adapter(tmp_path, network=vit).adapted.logits(x)
        base = timm.create_model("test_vit", num_classes=3, img_size=32)
        base.load_state_dict(vit.fork(3).model.state_dict())
        model = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
        theirs = model(x)
    assert torch.equal(ours, want)
    assert torch.allclose(theirs, want, atol=1e-6)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == peft.get_peft_model_state_dict(model).keys()
    assert not [w for w in recwarn if "adapter keys" in str(w.message)]


def test_batch_norm_statistics_are_saved_and_never_move(resnet, tmp_path):
    adapted = moved(resnet, raw_of("ln_tuning"))
    adapted.set_train(True)
    adapted.logits(torch.randn(4, 3, 64, 64))
    save(adapted, tmp_path, META)
    loaded = load_adapter(tmp_path, network=resnet).adapted
    for name, tensor in loaded.fixed.items():
        plain = name.replace(".ln_tuning_layers", "")
        assert torch.equal(tensor, resnet.model.state_dict()[plain]), name
    assert len(loaded.fixed) == 9


def test_projections_are_not_saved(vit):
    for name in ("vera", "pvera", "randlora", "frod"):
        adapted = moved(vit, raw_of(name))
        assert adapted.adapter_bytes == 4 * adapted.trainable_params


# -- low precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_bf16_step(vit, casts, name):
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = moved(vit, raw_of(name), 0.02).pooled(x)
    adapted = moved(vit, raw_of(name), 0.02)
    speed_up(adapted, "bf16", casts)
    with torch.autocast("cpu", torch.bfloat16):
        features = adapted.pooled(x)
        loss = functional.cross_entropy(adapted.head(features).float(), torch.arange(3))
    loss.backward()
    assert (features.float() - want).norm() / want.norm() < 0.02
    for key, parameter in adapted.trainable.items():
        assert parameter.dtype == torch.float32, key
        assert parameter.grad.any(), key


@pytest.fixture(scope="module")
def casts(networks):
    return Casts(networks["test_vit"].model)


# -- refused -----------------------------------------------------------------------------------

BAD = [
    (raw_of("hra", r=3), "r = 3 must be even"),
    (raw_of("hra", r=1), "from 2 to 128"),
    (raw_of("c3a", block_size=48), "block_size = 48 must divide inputs and outputs"),
    (raw_of("vblora", vector_length=24), "vector_length = 24 must divide"),
    (raw_of("road", group_size=31), "must be even"),
    (raw_of("road", group_size=48, modules=["proj"]), "must divide outputs"),
    (raw_of("psoft", r=100), r"at most min\(inputs, outputs\) = 64"),
    (raw_of("osf", k=0), "from 1 to 256"),
    (raw_of("osf", k=64), "= 63"),
    (raw_of("adalora", init_r=4, target_r=4), "must be less than init_r"),
    (raw_of("gralora", r=5), "gralora_k = 2 must divide r"),
    (raw_of("miss", variant="bat", r=48), "r = 48 must divide"),
    (raw_of("shira", r=100), "more entries than W has"),
    (raw_of("supertuning", sparsity=0.9999), "leaves no entry"),
    (raw_of("fourierft", n_frequency=100_000), "at most inputs x outputs = "),
    (raw_of("oft", oft_block_size=48), "must divide inputs"),
    (raw_of("peanut", depth=1), "must be even"),
    (raw_of("lily"), "averages over the batch"),
    (raw_of("prefix_tuning"), "text model"),
]


@pytest.mark.parametrize(("raw", "reason"), BAD, ids=str)
def test_bad_options_are_refused_with_the_reason(vit, raw, reason):
    with pytest.raises(UserError, match=reason):
        build(vit, canonical(raw, vit.facts), 3, 0, 0)


@pytest.mark.parametrize("name", [n for n in NAMES if "r" in method_named(n).defaults()])
def test_rank_zero_is_refused_with_the_range(vit, name):
    with pytest.raises(UserError, match=r"r = 0 is not possible.*from \d+ to \d+"):
        canonical({"method": name, "r": 0}, vit.facts)


def test_what_is_wrong_on_a_cnn_is_refused(networks):
    for name in sorted(set(NAMES) - set(CONVS)):
        with pytest.raises(UserError, match="has no layer for it"):
            canonical({"method": name}, networks["test_resnet"].facts)
    for name in ("gralora", "oft"):
        with pytest.raises(UserError, match="has no layer for it"):
            canonical({"method": name}, networks["test_convnext"].facts)
    facts = networks["test_resnet"].facts
    assert method_named("oft")(oft_block_size=16).sites(facts, 2) == ("conv1", "conv3")
    assert method_named("boft")().sites(facts, 0) == ()
    with pytest.raises(UserError, match="has no layer for it"):
        canonical({"method": "beft"}, no_bias(networks["test_convnext"].facts))


def no_bias(facts):
    return replace(facts, module_biases=dict.fromkeys(facts.modules, (0,) * facts.depth))


@pytest.mark.parametrize("name", ["unilora", "vblora"])
def test_one_vector_for_all_layers_needs_one_range(vit, name):
    raw = raw_of(name, {"mask": [0, 0, 1, 0, 1, 0]})
    with pytest.raises(UserError, match="one range"):
        build(vit, canonical(raw, vit.facts), 3, 0, 0)


def test_lily_depends_on_the_batch(vit):
    """Why it is refused: an image's output is another one in other company."""
    model = vit.fork(3, torch.Generator().manual_seed(0)).model
    config = peft.LilyConfig(r=4, target_modules=r"blocks\.5\.mlp\.fc1")
    lily = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for key, parameter in lily.named_parameters():
            if "lily" in key:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        assert (lily(x)[:1] - lily(x[:1])).abs().max() > 1e-3


# -- formulas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deft", "delora", "psoft"])
def test_the_change_has_rank_r(vit, name):
    assert rank(change(vit, moved(vit, raw_of(name, r=4)))) <= 4


@pytest.mark.parametrize("name", ["gralora", "hira", "randlora", "shira"])
def test_the_change_has_a_higher_rank_than_r(vit, name):
    assert rank(change(vit, moved(vit, raw_of(name, r=4)))) > 4


def test_gralora_with_one_block_is_of_rank_r(vit):
    assert rank(change(vit, moved(vit, raw_of("gralora", r=4, gralora_k=1)))) <= 4


def test_loha(vit):
    adapted = moved(vit, raw_of("loha", r=2, alpha=3.0))
    a, b, c, d = (qkv(adapted, f"hada_{k}") for k in ("w1_a", "w1_b", "w2_a", "w2_b"))
    got = change(vit, adapted)
    assert torch.allclose(got, 3 / 2 * (a @ b) * (c @ d), atol=1e-6)
    assert rank(got) <= 4


def test_lokr(vit):
    adapted = moved(vit, raw_of("lokr", r=2, alpha=3.0), 0.2)
    one, a, b = (qkv(adapted, f"lokr_{k}") for k in ("w1", "w2_a", "w2_b"))
    assert torch.allclose(change(vit, adapted), 3 / 2 * torch.kron(one, a @ b), atol=1e-6)


def test_hira_and_ia3_multiply(vit):
    weight = vit.model.state_dict()["blocks.5.attn.qkv.weight"].double()
    adapted = moved(vit, raw_of("hira", r=2))
    factor = qkv(adapted, "hira_B") @ qkv(adapted, "hira_A")
    assert torch.allclose(change(vit, adapted), weight * factor, atol=1e-6)
    adapted = moved(vit, raw_of("ia3"))
    assert torch.allclose(change(vit, adapted), weight * (qkv(adapted, "ia3_l") - 1), atol=1e-6)


@pytest.mark.parametrize("name", ["hra", "oft"])
def test_inputs_are_rotated(vit, name):
    raw = raw_of("oft", use_cayley_neumann=False) if name == "oft" else raw_of("hra", r=4)
    adapted = moved(vit, raw)
    weight = vit.model.state_dict()["blocks.5.attn.qkv.weight"].double()
    turned = weight + change(vit, adapted)
    assert torch.allclose(turned @ turned.T, weight @ weight.T, atol=1e-5)
    assert (turned - weight).abs().max() > 1e-3


def test_hra_is_a_product_of_reflections(vit):
    adapted = moved(vit, raw_of("hra", r=2))
    weight = vit.model.state_dict()["blocks.5.attn.qkv.weight"].double()
    u = functional.normalize(qkv(adapted, "hra_u"), dim=0)
    eye = torch.eye(64, dtype=torch.double)
    turn = (eye - 2 * u[:, :1] @ u[:, :1].T) @ (eye - 2 * u[:, 1:] @ u[:, 1:].T)
    assert torch.allclose(weight + change(vit, adapted), weight @ turn, atol=1e-5)


def test_c3a_is_block_circulant(vit):
    got = change(vit, moved(vit, raw_of("c3a", block_size=16)))
    block = got[16:32, 32:48]
    for i in range(16):
        assert torch.allclose(block[i], block[0].roll(i), atol=1e-6) or torch.allclose(
            block[i], block[0].roll(-i), atol=1e-6
        )


def test_fourierft_is_linear_and_its_places_are_fixed(vit):
    once, twice = (moved(vit, raw_of("fourierft", [5, 5]), noise) for noise in (0.1, 0.2))
    a, b = change(vit, once), change(vit, twice)
    assert torch.allclose(2 * a, b, atol=1e-5)
    assert a.abs().max() > 1e-3


def test_vera_shares_its_frames(vit):
    adapted = moved(vit, raw_of("vera", [4, 5]))
    first, second = (adapted.network.model.get_submodule(f"blocks.{i}.attn.qkv") for i in (4, 5))
    down, up = first.vera_A["default"].double(), first.vera_B["default"].double()
    assert first.vera_A["default"].data_ptr() == second.vera_A["default"].data_ptr()
    b, d = qkv(adapted, "vera_lambda_b"), qkv(adapted, "vera_lambda_d")
    want = b[:, None] * (up[:192] @ (d[:, None] * down[:, :64]))
    assert torch.allclose(change(vit, adapted), want, atol=1e-5)


def test_pvera_is_noisy_only_while_training(vit):
    adapted = moved(vit, raw_of("pvera"), 0.5)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(adapted.logits(x), adapted.logits(x))
        adapted.set_train(True)
        assert not torch.equal(adapted.logits(x), adapted.logits(x))


def test_unilora_has_one_vector_whatever_the_depth(vit):
    for blocks in (1, 6):
        adapted = moved(vit, raw_of("unilora", blocks))
        assert adapted.adapter_params == 64
    adapted = moved(vit, raw_of("vblora", 2))
    banks = {
        id(m.vblora_vector_bank["default"])
        for m in adapted.network.model.modules()
        if hasattr(m, "vblora_vector_bank")
    }
    assert len(banks) == 1


def test_tinylora_names_tell_the_layer(vit):
    adapted = moved(vit, raw_of("tinylora", [4, 5], modules=["qkv", "fc2"]))
    adapter = [n for n in adapted.trainable if "tinylora" in n]
    assert adapter == [
        "blocks.4.attn.qkv.tinylora_v.0",
        "blocks.4.mlp.fc2.tinylora_v.1",
        "blocks.5.attn.qkv.tinylora_v.2",
        "blocks.5.mlp.fc2.tinylora_v.3",
    ]
    with torch.no_grad():
        for name in adapter[:3]:
            adapted.trainable[name].zero_()
    assert not change(vit, adapted).any()
    assert change(vit, adapted, "blocks.5.mlp.fc2.weight").any()


@pytest.mark.parametrize("name", ["shira", "supertuning"])
def test_sparse_ones_change_the_announced_entries_only(vit, name):
    adapted = moved(vit, raw_of(name))
    got = change(vit, adapted)
    count = {"shira": 8 * (64 + 192), "supertuning": int(64 * 192 * 0.01)}[name]
    assert int((got != 0).sum()) == count
    if name == "supertuning":
        size = vit.model.state_dict()["blocks.5.attn.qkv.weight"].abs()
        assert size[got != 0].min() >= size[got == 0].max()


def test_miss_repeats_one_block(vit):
    got = change(vit, moved(vit, raw_of("miss", r=16))).T
    assert all(torch.allclose(part, got[:16], atol=1e-6) for part in got.split(16))


def test_beft_changes_biases_only(vit):
    adapted = moved(vit, raw_of("beft"))
    merged, plain = merged_state(adapted), vit.model.state_dict()
    changed = {k for k, v in plain.items() if not torch.equal(v, merged[k])}
    modules = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert changed == {f"blocks.5.{m}.bias" for m in modules}


def test_delora_is_bounded(vit):
    adapted = moved(vit, raw_of("delora", r=2, delora_lambda=3), 10.0)
    strength = float(qkv(adapted, "delora_lambda"))
    scale = vit.model.state_dict()["blocks.5.attn.qkv.weight"].double().norm(dim=0)
    assert (change(vit, adapted) / scale).norm() <= abs(strength) + 1e-4


def test_osf_moves_off_the_frozen_directions(vit):
    adapted = build(vit, canonical(raw_of("osf"), vit.facts), 3, 0, 0)
    x, low = torch.randn(4, 3, 32, 32), "osf_svd_params.U_low"
    weight = vit.model.state_dict()["blocks.5.attn.qkv.weight"].double()
    high = torch.linalg.svd(weight, full_matrices=False)[0][:, :60]
    before = qkv(adapted, low).clone()
    optimizer = torch.optim.SGD(adapted.param_groups(1.0, 0.0))
    adapted.logits(x).square().mean().backward()
    optimizer.step()
    step = qkv(adapted, low) - before
    assert step.norm() > 1e-5
    assert (high.T @ step).norm() < 1e-2 * step.norm()


def test_adamss_groups_share_out_all_outputs(vit):
    layers = [
        build(vit, canonical(raw_of("adamss"), vit.facts), 3, seed, 0).network.model.get_submodule(
            "blocks.5.attn.qkv"
        )
        for seed in (0, 1)
    ]
    rows = [layer.scatter_index["default"] for layer in layers]
    assert torch.equal(rows[0], rows[1])
    assert sorted(rows[0].tolist()) == list(range(192))


# -- AdaLoRA -----------------------------------------------------------------------------------


def test_adalora_ends_with_the_ranks_it_was_asked_for(vit):
    raw = raw_of("adalora", 2, init_r=6, target_r=2)
    adapted = build(vit, canonical(raw, vit.facts), 3, 0, 0)
    values = {n: p for n, p in adapted.trainable.items() if n.endswith("lora_E")}
    assert len(values) == 8
    assert not any(p.any() for p in values.values())
    x, label = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    optimizer = torch.optim.AdamW(adapted.param_groups(1e-2, 0.0))
    active = []
    for step in range(20):
        optimizer.zero_grad()
        loss = functional.cross_entropy(adapted.logits(x), label) + adapted.extra_loss()
        loss.backward()
        optimizer.step()
        adapted.after_step(step, 20)
        active.append(sum(int((p != 0).sum()) for p in values.values()))
    assert (active[0], active[-1]) == (6 * 8, 2 * 8)
    assert len(set(active)) > 3
    assert active == sorted(active, reverse=True)
    assert not method_named("adalora").pausable


def test_adalora_s_penalty(vit):
    adapted = moved(vit, raw_of("adalora", modules=["qkv"], orth_reg_weight=0.7), 0.3)
    down, up = qkv(adapted, "lora_A"), qkv(adapted, "lora_B")
    eye = torch.eye(8, dtype=torch.double)
    want = 0.7 * ((down @ down.T - eye).norm() + (up.T @ up - eye).norm()) / 2
    assert float(adapted.extra_loss().detach()) == pytest.approx(float(want), rel=1e-5)
    free = moved(vit, raw_of("adalora", orth_reg_weight=0.0))
    assert free.extra_loss is None


@pytest.mark.parametrize("total", [1, 2, 3])
def test_adalora_with_hardly_any_steps(total):
    network = random_backbone("test_vit", 32)
    adapted = build(network, canonical(raw_of("adalora"), network.facts), 3, 0, 0)
    for step in range(total):
        adapted.logits(torch.randn(2, 3, 32, 32)).sum().backward()
        adapted.after_step(step, total)
    assert all(p.isfinite().all() for p in adapted.trainable.values())
    assert adapted.logits(torch.randn(2, 3, 32, 32)).isfinite().all()
