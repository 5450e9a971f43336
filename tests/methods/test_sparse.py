"""The sparse engine and its presets: contract, choice, gradients, numbers."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.nn import functional

from autopeft.adapter import load_adapter, save
from autopeft.errors import UserError
from autopeft.methods import build, canonical
from autopeft.methods.conformance import check_method
from autopeft.methods.delta import SparseLayer, entries, tiles_of
from autopeft.methods.merge import merged_state
from autopeft.methods.registry import method_named
from autopeft.methods.scored import ToyScoring, look
from autopeft.methods.scores import contrastive, dense, paths_of, scored
from autopeft.methods.sparse import Recipe, Sparse
from autopeft.training.fast import Casts, speed_up

EVERY = [
    {"method": "gps", "per_row": 2},
    {"method": "gps", "blocks": 2, "per_row": 4, "score_loss": "supcon", "train_bias": False},
    {"method": "lt_sft", "share": 0.05, "phase_lr": 1e-3},
    {"method": "lt_sft", "blocks": 2, "share": 0.2, "phase_lr": 1e-3, "l1": 1e-7},
    {"method": "smt", "tile": 8, "share": 0.05},
    {
        "method": "smt",
        "tile": 8,
        "share": 0.1,
        "ranking": "layer",
        "tile_score": "l2",
        "blocks": 2,
    },
    {"method": "sara", "share": 0.2},
    {"method": "sara", "blocks": 3, "share": 0.3, "reselect_at": 0.4, "rank_weight": 0.0},
    {"method": "large_weight", "share": 0.05},
    {"method": "fedselect_rule", "rounds": 3, "blocks": 2, "phase_lr": 1e-3},
    {"method": "fisher_mask", "share": 0.05},
    {"method": "sparse", "share": 0.05, "ranking": "layer", "train_bias": True},
    {"method": "sparse", "score": "delta", "granularity": "row", "per_row": 3, "readout_block": 3},
    {"method": "sparse", "score": "abs_small", "granularity": "block", "tile": 8, "share": 0.2},
]
MIXED = [
    {
        "strata": [
            {"method": "gps", "blocks": 2},
            {"method": "large_weight", "blocks": 2, "share": 0.02},
            {"method": "bitfit", "blocks": 2},
            {"method": "lora", "blocks": 2},
        ]
    },
    {
        "strata": [
            {"method": "gps", "blocks": [1, 1]},
            {"method": "gps", "blocks": [2, 2], "per_row": 4},
        ]
    },
]
OUTPUTS = 3


def toy(network, raw, images=6):
    """A candidate and what it may look at."""
    candidate = canonical(raw, network.facts)
    size = network.facts.image_size
    generator = torch.Generator().manual_seed(3)
    label = torch.arange(images) % OUTPUTS
    x = torch.randn(images, 3, size, size, generator=generator) + label.view(-1, 1, 1, 1)
    return candidate, ToyScoring(network, candidate, x, label, OUTPUTS)


def made(network, raw, **options):
    candidate, scoring = toy(network, raw, **options)
    return build(network, candidate, OUTPUTS, 0, 0, look(candidate, scoring)), scoring


def weights(network, paths):
    model = network.model
    return [model.get_submodule(p).weight.detach().flatten(1).numpy() for p in paths]


def chosen(adapted):
    """Path -> places that the only method of a candidate chose."""
    return {k.rpartition(".")[0]: v for k, v in adapted.fixed.items() if k.endswith("_index")}


def trained(adapted, x, label, steps=3, total=None, lr=1e-2):
    optimizer = torch.optim.AdamW(adapted.param_groups(lr, 0.01))
    adapted.set_train(True)
    for step in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(adapted.logits(x).float(), label)
        (loss + (adapted.extra_loss() if adapted.extra_loss else 0)).backward()
        optimizer.step()
        if adapted.after_step:
            adapted.after_step(step, total or steps)
    adapted.set_train(False)


# ---- the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [*EVERY, *MIXED], ids=str)
def test_vit(networks, raw):
    check_method(raw, networks["test_vit"])


@pytest.mark.parametrize("raw", [*EVERY[1::2], EVERY[10], MIXED[0]], ids=str)
def test_resnet(networks, raw):
    check_method(raw, networks["test_resnet"])


@pytest.mark.parametrize("raw", [EVERY[4], EVERY[11]], ids=str)
def test_convnext(networks, raw):
    check_method(raw, networks["test_convnext"])


@pytest.mark.parametrize("raw", [EVERY[1], EVERY[8]], ids=str)
def test_efficientnet(networks, raw):
    check_method(raw, networks["test_efficientnet"])


@pytest.mark.parametrize("raw", [EVERY[1], EVERY[5], EVERY[7], MIXED[0]], ids=str)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_fresh_load_computes_the_same(networks, tmp_path, name, raw):
    network = networks[name]
    adapted, scoring = made(network, raw)
    x, label = scoring._x, scoring._label
    trained(adapted, x, label)
    meta = {"classes": ["a", "b", "c"], "kind": "multiclass"}
    save(adapted, tmp_path, meta)
    again = load_adapter(tmp_path, network=network).adapted
    with torch.no_grad():
        assert torch.equal(again.logits(x), adapted.logits(x))
        assert not torch.equal(adapted.logits(x), build_probe(network, adapted).logits(x))


def build_probe(network, adapted):
    probe = build(network, canonical({"method": "linear_probe"}, network.facts), OUTPUTS, 0, 0)
    probe.set_head(adapted.head.weight.detach(), adapted.head.bias.detach())
    return probe


@pytest.mark.parametrize("raw", [EVERY[0], EVERY[4], EVERY[7], MIXED[0]], ids=str)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_bf16(networks, name, raw):
    """Sped up, in bf16: near fp32, gradients to everything, saved values fp32."""
    network = networks[name]
    plain, scoring = made(network, raw)
    low, _ = made(network, raw)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for a, b in zip(plain.trainable.values(), low.trainable.values(), strict=True):
            b.copy_(a.add_(torch.randn(a.shape, generator=generator), alpha=0.01))
    speed_up(low, "bf16", Casts(network.model))
    assert all(t.dtype == torch.float32 for t in low.trainable.values())
    with torch.autocast("cpu", torch.bfloat16):
        got = low.logits(scoring._x)
    want = plain.logits(scoring._x)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()
    functional.cross_entropy(got.float(), scoring._label).backward()
    functional.cross_entropy(want, scoring._label).backward()
    for name_, parameter in low.trainable.items():
        assert parameter.grad is not None, name_
        assert parameter.grad.dtype == torch.float32
    ours = torch.cat([p.grad.reshape(-1) for p in low.trainable.values()])
    theirs = torch.cat([p.grad.reshape(-1) for p in plain.trainable.values()])
    assert functional.cosine_similarity(ours, theirs, 0) > 0.98


def test_bf16_rounds_the_sum_once(networks):
    """bf16(W + v) and not bf16(bf16(W) + v), which loses a small v."""
    network = networks["test_vit"]
    adapted, _ = made(network, {"method": "large_weight", "blocks": 1, "share": 0.05})
    speed_up(adapted, "bf16", Casts(network.model))
    path, places = next(iter(chosen(adapted).items()))
    layer = adapted.network.model.get_submodule(path)
    assert layer.weight.dtype == torch.bfloat16
    with torch.no_grad():
        layer.large_weight_value.fill_(3e-3)
    before = network.model.get_submodule(path).weight.detach().reshape(-1)[places.long()]
    moved = layer._moved(layer.values(), torch.bfloat16).view(-1)[places.long()]
    assert torch.equal(moved, (before + 3e-3).bfloat16())
    assert not torch.equal(moved, before.bfloat16() + torch.tensor(3e-3).bfloat16())


# ---- gradients and weights ----------------------------------------------------------------------


def linear_of(few, tile=0, outputs=64, inputs=96, seed=0):
    """A layer's input, output gradient and some places, with the whole product beside."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 7, inputs, generator=generator)
    grad = torch.randn(5, 7, outputs, generator=generator)
    if tile:
        cells = torch.arange(outputs * inputs).reshape(outputs, inputs)
        places = torch.cat([cells[8:16, 16:24].reshape(-1), cells[40:48, :8].reshape(-1)])
        places = places.sort().values
    else:
        places = torch.randperm(outputs * inputs, generator=generator)[:few].sort().values
    whole = torch.einsum("bto,bti->oi", grad.double(), x.double()).reshape(-1)
    return x, grad, places, whole[places].float()


@pytest.mark.parametrize(("few", "tile"), [(20, 0), (3000, 0), (1, 0), (0, 8)])
def test_the_gradient_is_the_whole_one_gathered(few, tile):
    x, grad, places, want = linear_of(few, tile)
    tiles = tiles_of(places, tile, 96) if tile else None
    got = entries(grad.reshape(-1, 64), x.reshape(-1, 96), places, tiles)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_many_columns_are_gathered_in_parts(monkeypatch):
    monkeypatch.setattr("autopeft.methods.delta.COLUMNS", 7)
    x, grad, places, want = linear_of(50)
    got = entries(grad.reshape(-1, 64), x.reshape(-1, 96), places, None)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("raw", [EVERY[0], EVERY[4], EVERY[8]], ids=str)
def test_values_have_the_gradient_of_their_entries(networks, name, raw):
    """Against autograd on a plain network whose weights hold W + v."""
    network = networks[name]
    adapted, scoring = made(network, raw)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapted.trainable.values():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)
    plain = network.fork(OUTPUTS)
    plain.model.load_state_dict(merged_state(adapted), assign=True)
    opened = plain.own([f"{path}.weight" for path in chosen(adapted)])
    functional.cross_entropy(plain.model(scoring._x), scoring._label).backward()
    functional.cross_entropy(adapted.logits(scoring._x), scoring._label).backward()
    for path, places in chosen(adapted).items():
        value = next(v for k, v in adapted.trainable.items() if k.startswith(f"{path}.")
                     and k.endswith("_value"))  # fmt: skip
        want = opened[f"{path}.weight"].grad.reshape(-1)[places.long()]
        torch.testing.assert_close(value.grad, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("raw", EVERY[:13], ids=str)
def test_what_was_not_chosen_keeps_every_bit(networks, raw):
    network = networks["test_vit"]
    adapted, scoring = made(network, {**raw, "readout_block": network.facts.depth})
    trained(adapted, scoring._x, scoring._label)
    merged, plain = merged_state(adapted), network.model.state_dict()
    places = {f"{k}.weight": v.long() for k, v in chosen(adapted).items()}
    method = canonical(raw, network.facts).strata[0]
    biased = method_named(method.method)(**method.options).recipe().train_bias
    for name, before in plain.items():
        moved = (merged[name] != before).reshape(-1).nonzero().reshape(-1)
        if name in places:
            assert set(moved.tolist()) <= set(places[name].tolist())
            assert len(moved) > 0.7 * len(places[name])
        elif len(moved):
            assert biased, name
            assert name.endswith(("qkv.bias", "proj.bias", "fc1.bias", "fc2.bias"))


def test_bytes_are_those_of_places_and_values(networks):
    network = networks["test_vit"]
    head = 4 * (OUTPUTS * 64 + OUTPUTS)
    for share in (0.01, 0.1):
        adapted, _ = made(network, {"method": "large_weight", "share": share})
        entries_ = int(share * sum(w.size for w in weights(network, all_paths(network))) + 0.5)
        assert adapted.adapter_params == entries_
        assert adapted.adapter_bytes == 8 * entries_ + head


def all_paths(network):
    facts = network.facts
    return [paths[b] for b in range(facts.depth) for paths in facts.paths.values() if paths[b]]


def test_two_forward_passes_before_one_backward(networks):
    adapted, scoring = made(networks["test_vit"], EVERY[0])
    one = adapted.logits(scoring._x[:3]).sum()
    (one + adapted.logits(scoring._x[3:]).sum()).backward()
    twice = {k: p.grad.clone() for k, p in adapted.trainable.items()}
    again, _ = made(networks["test_vit"], EVERY[0])
    again.logits(scoring._x).sum().backward()
    for name, parameter in again.trainable.items():
        torch.testing.assert_close(twice[name], parameter.grad, rtol=1e-3, atol=1e-4)


def test_inference_before_training(networks):
    """What inference mode left behind must not be in training's way."""
    adapted, scoring = made(networks["test_vit"], EVERY[4])
    with torch.inference_mode():
        before = adapted.logits(scoring._x).clone()
    trained(adapted, scoring._x, scoring._label)
    with torch.inference_mode():
        assert not torch.equal(adapted.logits(scoring._x), before)


def test_loading_other_places_is_seen(networks):
    network = networks["test_vit"]
    one, scoring = made(network, EVERY[8])
    with torch.no_grad():
        for parameter in one.trainable.values():
            parameter.add_(0.01)
        one.logits(scoring._x)
        other = {k: v.clone() for k, v in one.tensors().items()}
        for name in one.fixed:
            other[name] = torch.flip(other[name].max() - other[name], (0,))
        one.load_tensors(other)
        fresh = build(network, one.candidate, OUTPUTS, 0, 0, other)
        fresh.load_tensors(other)
        assert torch.equal(one.logits(scoring._x), fresh.logits(scoring._x))


def test_without_a_look_it_cannot_be_built(networks):
    network = networks["test_vit"]
    with pytest.raises(ValueError, match="call look"):
        build(network, canonical({"method": "gps"}, network.facts), 2, 0, 0)


# ---- scores -------------------------------------------------------------------------------------


def recipe_of(candidate):
    stratum = candidate.strata[0]
    return method_named(stratum.method)(**stratum.options).recipe()


def scores_of(network, raw, **options):
    candidate, scoring = toy(network, raw, **options)
    paths = paths_of(network, candidate.strata)
    found = scored(
        scoring, recipe_of(candidate), candidate.strata[0].method, paths, candidate.strata,
        candidate.readout,
    )  # fmt: skip
    return candidate, scoring, paths, found


def autograd(network, scoring, paths, x, label):
    """Gradients of the weights, by autograd on a plain network."""
    weight, bias = scoring.head()
    fork = network.fork(OUTPUTS)
    with torch.no_grad():
        fork.classifier.weight.copy_(weight)
        fork.classifier.bias.copy_(bias)
    opened = fork.own([f"{p}.weight" for p in paths])
    functional.cross_entropy(fork.model(x), label).backward()
    return [opened[f"{p}.weight"].grad.flatten(1) for p in paths]


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_the_gradient_score_is_the_gradient_s_sum(networks, name, monkeypatch):
    monkeypatch.setattr("autopeft.methods.scores.BATCH", 4)  # batches of 4 and 2
    network = networks[name]
    _, scoring, paths, found = scores_of(network, {"method": "sparse", "blocks": 2})
    want = autograd(network, scoring, paths, scoring._x, scoring._label)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b * 6, rtol=2e-3, atol=1e-4)


def test_fisher_is_a_loop_of_single_images(networks):
    network = networks["test_vit"]
    raw = {"method": "fisher_mask", "blocks": 2, "score_images": 5}
    _, scoring, paths, found = scores_of(network, raw)
    squares = [0.0] * len(paths)
    for i in range(5):
        one = autograd(network, scoring, paths, scoring._x[i : i + 1], scoring._label[i : i + 1])
        squares = [s + g.double() ** 2 / 5 for s, g in zip(squares, one, strict=True)]
    for a, b in zip(found, squares, strict=True):
        assert (a >= 0).all()
        torch.testing.assert_close(a, b.float(), rtol=5e-3, atol=1e-9)


def test_fisher_does_not_know_the_sign_of_the_loss(networks):
    network = networks["test_vit"]
    candidate, scoring = toy(network, {"method": "fisher_mask", "blocks": 2, "share": 0.05})
    first = look(candidate, scoring)
    _, turned = toy(network, {"method": "fisher_mask", "blocks": 2})
    turned.loss = lambda logits, label: -functional.cross_entropy(logits, label)
    second = look(candidate, turned)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_delta_is_how_far_fine_tuning_moves_and_is_taken_back(networks):
    network = networks["test_vit"]
    raw = {"method": "lt_sft", "blocks": 2, "phase_epochs": 2, "phase_lr": 1e-3}
    before = {k: v.clone() for k, v in network.model.state_dict().items()}
    candidate, scoring, paths, found = scores_of(network, raw)
    fork = network.fork(OUTPUTS)
    with torch.no_grad():
        fork.classifier.weight.copy_(scoring.head()[0])
        fork.classifier.bias.copy_(scoring.head()[1])
    opened = fork.own([f"{p}.weight" for p in paths])
    head = fork.own([f"{network.facts.classifier}.{n}" for n in ("weight", "bias")])
    optimizer = torch.optim.AdamW([*opened.values(), *head.values()], 1e-3, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(fork.model(scoring._x), scoring._label).backward()
        optimizer.step()
    for path, delta in zip(paths, found, strict=True):
        moved = opened[f"{path}.weight"].detach() - before[f"{path}.weight"]
        # Adam's first steps are signs, so entries of tiny gradient may differ.
        near = (moved.flatten(1) - delta).abs() < 2e-5
        assert near.float().mean() > 0.995
    assert all(torch.equal(before[k], v) for k, v in network.model.state_dict().items())
    assert build(network, candidate, OUTPUTS, 0, 0, look(candidate, scoring)).adapter_params > 0


def test_one_pass_serves_all_budgets_and_blocks(networks, monkeypatch):
    network = networks["test_vit"]
    asked = []
    candidate, scoring = toy(network, {"method": "gps"})
    inner = ToyScoring.batches
    monkeypatch.setattr(ToyScoring, "batches", lambda self, *a: asked.append(a) or inner(self, *a))
    whole = look(candidate, scoring)
    for raw in ({"method": "gps", "per_row": 3}, {"method": "gps", "blocks": 2}):
        part = look(canonical(raw, network.facts), scoring)
    assert len(asked) == 1
    assert all(torch.equal(whole[k], v) for k, v in part.items())
    look(canonical({"method": "gps", "score_loss": "supcon"}, network.facts), scoring)
    assert len(asked) == 2


def test_the_same_seed_gives_the_same_mask(networks):
    network = networks["test_vit"]
    for raw in EVERY[:7]:
        one, two = (look(*toy(network, raw)) for _ in range(2))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_contrastive_against_loops():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 4, generator=generator)
    label = torch.tensor([[0.0, 1], [0, 1], [1, 1], [0, 1], [1, 1], [torch.nan, 0]])
    z = (features / features.norm(dim=1, keepdim=True)).double().numpy()[:5]
    total = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        pairs = [j for j in others if torch.equal(label[i], label[j])]
        scale = sum(np.exp(z[i] @ z[j] / 0.07) for j in others)
        total.append(-np.mean([np.log(np.exp(z[i] @ z[j] / 0.07) / scale) for j in pairs]))
    assert float(contrastive(features, label)) == pytest.approx(np.mean(total), rel=1e-4)
    alone = contrastive(features[:2], torch.tensor([0, 1]))
    assert float(alone) == 0.0


# ---- presets ------------------------------------------------------------------------------------


def test_gps_takes_so_many_of_each_row(networks):
    network = networks["test_vit"]
    raw = {"method": "gps", "per_row": 2, "train_bias": False, "blocks": 2}
    adapted, scoring = made(network, raw)
    _, _, paths, found = scores_of(network, raw)
    trained(adapted, scoring._x, scoring._label)
    merged = merged_state(adapted)
    for path, score in zip(paths, found, strict=True):
        before = network.model.get_submodule(path).weight
        assert ((merged[f"{path}.weight"] != before).sum(1) == 2).all()
        rows = np.argsort(-score.abs().numpy(), axis=1, kind="stable")[:, :2]
        want = (np.arange(len(rows))[:, None] * score.shape[1] + rows).reshape(-1)
        assert chosen(adapted)[path].tolist() == sorted(want.tolist())
    outputs = sum(s.shape[0] for s in found)
    assert adapted.adapter_params == 2 * outputs
    biased, _ = made(network, {**raw, "train_bias": True})
    assert biased.adapter_params == 3 * outputs


@pytest.mark.parametrize("raw", [EVERY[2], EVERY[8], EVERY[10], EVERY[6]], ids=str)
def test_elements_are_the_largest_of_all_layers(networks, raw):
    network = networks["test_vit"]
    adapted, _ = made(network, raw)
    candidate, _, paths, found = scores_of(network, raw)
    flat = np.concatenate([s.numpy().reshape(-1) for s in found])
    if recipe_of(candidate).score == "delta":
        flat = np.abs(flat)
    count = int(raw["share"] * len(flat) + 0.5)
    want = sorted(np.argsort(-flat, kind="stable")[:count].tolist())
    starts = dict(zip(paths, np.cumsum([0, *(s.numel() for s in found)]).tolist(), strict=False))
    got = [starts[path] + int(p) for path, places in chosen(adapted).items() for p in places]
    assert sorted(got) == want
    assert adapted.adapter_params == count


def test_lt_sft_masks_add_up(networks):
    """Two deltas on disjoint places over one backbone: the merged weights add."""
    network = networks["test_vit"]
    merged = []
    for modules in (["qkv"], ["fc1"]):
        raw = {"method": "lt_sft", "modules": modules, "share": 0.1, "blocks": 2}
        adapted, scoring = made(network, raw)
        trained(adapted, scoring._x, scoring._label)
        merged.append(merged_state(adapted))
    plain = network.model.state_dict()
    both = {k: v + sum(m[k] - v for m in merged) for k, v in plain.items()}
    for name, before in plain.items():
        if name.endswith("weight") and "blocks.5" in name:
            moved = [not torch.equal(m[name], before) for m in merged]
            assert not all(moved)
            if any(moved):
                torch.testing.assert_close(both[name], merged[moved.index(True)][name])


def test_lt_sft_pulls_to_the_pretrained_weights(networks):
    raw = {"method": "lt_sft", "blocks": 2, "share": 0.1}
    sizes = []
    for l1 in (0.0, 0.1):
        adapted, scoring = made(networks["test_vit"], {**raw, "l1": l1})
        trained(adapted, scoring._x, scoring._label, steps=8, lr=1e-3)
        values = [v.detach() for k, v in adapted.trainable.items() if k.endswith("_value")]
        sizes.append(float(sum(v.abs().sum() for v in values)))
        if l1:
            want = l1 * sizes[1]
            assert adapted.extra_loss().item() == pytest.approx(want, rel=1e-4)
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("ranking", ["global", "layer"])
@pytest.mark.parametrize("how", ["mean_abs", "abs_mean", "l2"])
def test_smt_trains_whole_tiles(networks, ranking, how):
    network = networks["test_vit"]
    raw = {"method": "smt", "tile": 16, "share": 0.1, "ranking": ranking, "tile_score": how}
    adapted, scoring = made(network, {**raw, "blocks": 3})
    trained(adapted, scoring._x, scoring._label)
    merged, tiles = merged_state(adapted), []
    for path in chosen(adapted):
        before = network.model.get_submodule(path).weight.detach()
        moved = (merged[f"{path}.weight"] != before).numpy()
        o, i = moved.shape
        cells = moved.reshape(o // 16, 16, i // 16, 16).mean((1, 3))
        assert set(np.unique(cells > 0.9)) <= {False, True}
        assert ((cells == 0) | (cells > 0.9)).all()
        tiles.append((int((cells > 0).sum()), o * i // 256))
    total = sum(w.size for w in weights(network, all_paths(network))) // 2 // 256
    if ranking == "global":
        assert sum(n for n, _ in tiles) == int(0.1 * total + 0.5)
    else:
        assert all(n == max(1, int(0.1 * grid + 0.5)) for n, grid in tiles)
    assert adapted.adapter_params == 256 * sum(n for n, _ in tiles)


def test_smt_leaves_out_what_a_tile_does_not_divide(networks):
    facts = networks["test_convnext"].facts  # widths 24, 32, 48, 64
    candidate = canonical({"method": "smt", "tile": 32}, facts)
    sides = {s for st in candidate.strata for b in range(st.blocks[0], st.blocks[1] + 1)
             for s in method_named("smt")(**st.options).sites(facts, b)}  # fmt: skip
    assert sides == {"fc1", "fc2"}
    kept = [b for b in range(facts.depth) if method_named("smt")(tile=32).sites(facts, b)]
    assert kept == [b for b in range(facts.depth) if facts.modules["fc1"][b][0] in (32, 64)]
    with pytest.raises(UserError, match="tile = 100 divides no layer of test_convnext"):
        canonical({"method": "smt", "tile": 100}, facts)


def test_sara_chooses_below_a_quantile_and_lets_grown_ones_go(networks):
    network = networks["test_vit"]
    raw = {"method": "sara", "blocks": 2, "share": 0.2, "reselect_at": 0.5}
    adapted, scoring = made(network, raw)
    paths = list(chosen(adapted))
    tau = max(
        float(np.abs(w.reshape(-1)[chosen(adapted)[p]]).max())
        for p, w in zip(paths, weights(network, paths), strict=True)
    )
    for path, weight in zip(paths, weights(network, paths), strict=True):
        outside = np.delete(np.abs(weight).reshape(-1), chosen(adapted)[path].numpy())
        assert outside.min() >= tau
    x, label = scoring._x, scoring._label
    trained(adapted, x, label, steps=2, total=4)
    active = {k: v.clone() for k, v in adapted.fixed.items() if k.endswith("_active")}
    values = {k: v.detach().clone() for k, v in adapted.trainable.items() if "sara" in k}
    share = float(torch.cat(list(active.values())).float().mean())
    assert 0.02 < share < 0.98  # some grew
    for path, weight in zip(paths, weights(network, paths), strict=True):
        start = torch.from_numpy(weight.reshape(-1))[chosen(adapted)[path].long()]
        within = (start + values[f"{path}.sara_value"]).abs() <= tau
        assert torch.equal(active[f"{path}.sara_active"].bool(), within)
    optimizer = torch.optim.AdamW(adapted.param_groups(1e-2, 0.01))
    for p in adapted.trainable.values():  # a momentum that would move everything
        optimizer.state[p] = {"step": torch.tensor(5.0), "exp_avg": torch.ones_like(p),
                              "exp_avg_sq": torch.ones_like(p)}  # fmt: skip
    for step in (2, 3):
        optimizer.zero_grad()
        functional.cross_entropy(adapted.logits(x), label).backward()
        optimizer.step()
        adapted.after_step(step, 4)
    for name, before in values.items():
        on = active[name.replace("_value", "_active")].bool()
        after = adapted.trainable[name].detach()
        assert torch.equal(after[~on], before[~on])
        assert (after[on] != before[on]).all()


def test_sara_s_penalty_is_a_nuclear_norm(networks):
    network = networks["test_vit"]
    raw = {"method": "sara", "blocks": 1, "modules": ["fc1"], "share": 0.3, "rank_weight": 0.01}
    adapted, _ = made(network, raw)
    ((path, places),) = chosen(adapted).items()
    (weight,) = weights(network, [path])
    masked = np.zeros_like(weight).reshape(-1)
    masked[places] = weight.reshape(-1)[places]
    want = 0.01 * np.linalg.svd(masked.reshape(weight.shape), compute_uv=False).sum()
    assert adapted.extra_loss().item() == pytest.approx(want, rel=1e-4)


def test_large_weight_is_peft_s_supertuning_layer_by_layer(networks):
    from peft import SupertuningConfig, get_peft_model

    network = networks["test_vit"]
    raw = {"method": "large_weight", "share": 0.05, "ranking": "layer", "modules": ["fc1"]}
    adapted, _ = made(network, raw)
    config = SupertuningConfig(target_modules=r"blocks\.\d+\.mlp\.fc1", sparsity=0.95)
    model = get_peft_model(network.fork(OUTPUTS).model, config)
    found = 0
    for path, places in chosen(adapted).items():
        (weight,) = weights(network, [path])
        size = np.abs(weight).reshape(-1)
        assert size[places].min() >= np.delete(size, places).max()
        layer = model.base_model.model.get_submodule(path)
        indices = [b for n, b in layer.named_buffers() if "ind" in n.lower()]
        for index in indices:
            if index.numel() == len(places):
                assert set(index.reshape(-1).tolist()) == set(places.tolist())
                found += 1
    assert found == len(chosen(adapted))


def test_fedselect_masks_are_nested_and_grow_by_the_rule(networks):
    network = networks["test_vit"]
    masks, total = [], sum(w.size for w in weights(network, all_paths(network))) // 6
    for rounds in (1, 2, 3, 7):
        raw = {"method": "fedselect_rule", "blocks": 1, "rounds": rounds, "phase_lr": 1e-3}
        adapted, _ = made(network, raw)
        share = min(0.8, 1 - 0.75**rounds)
        assert adapted.adapter_params == pytest.approx(share * total, abs=rounds + 1)
        masks.append({(k, int(p)) for k, v in chosen(adapted).items() for p in v})
    assert masks[0] < masks[1] < masks[2] < masks[3]


def test_fedselect_rewinds_what_is_not_taken(networks):
    """At the start of each round only what was taken is away from the pretrained weights."""
    network = networks["test_vit"]
    raw = {"method": "fedselect_rule", "blocks": 1, "rounds": 3, "grow": 0.1}
    candidate, scoring = toy(network, raw)
    starts, generator = [], torch.Generator().manual_seed(0)

    def fine_tune(adapted, epochs, lr):
        values = [v for k, v in adapted.trainable.items() if k.endswith("_value")]
        starts.append(torch.cat([v.detach().clone() for v in values]))
        with torch.no_grad():
            for value in values:
                value.add_(torch.randn(value.shape, generator=generator))

    scoring.fine_tune = fine_tune
    found = look(candidate, scoring)
    total = sum(w.size for w in weights(network, paths_of(network, candidate.strata)))
    assert [int((s != 0).sum()) for s in starts] == [0, 4096, 7782]  # of 40,960
    assert sum(map(len, found.values())) == pytest.approx(0.271 * total, abs=2)


def test_strata_with_equal_options_are_ranked_together(networks):
    """As many entries as their formulas say one by one, wherever the largest weights are."""
    network = networks["test_vit"]
    parts = [{"method": "large_weight", "blocks": [b, b], "share": 1.1e-4} for b in (0, 2)]
    adapted, _ = made(network, {"strata": parts})
    assert adapted.adapter_params == 2 * 5  # 4.5 each
    paths = paths_of(network, adapted.candidate.strata)
    flat = np.concatenate([np.abs(w).reshape(-1) for w in weights(network, paths)])
    sizes = [
        np.abs(w).reshape(-1)[chosen(adapted)[p].tolist()]
        for p, w in zip(paths, weights(network, paths), strict=True)
        if p in chosen(adapted)
    ]
    assert sorted(np.concatenate(sizes)) == sorted(flat)[-10:]


# ---- options ------------------------------------------------------------------------------------


def test_idle_options_do_not_make_another_candidate(networks):
    facts = networks["test_vit"].facts
    one = canonical({"method": "sparse"}, facts)
    for idle in ({"tile": 16}, {"per_row": 4}, {"phase_lr": 1e-3}, {"tile_score": "l2"}):
        assert canonical({"method": "sparse", **idle}, facts).fingerprint == one.fingerprint
    rows = {"method": "sparse", "granularity": "row"}
    assert canonical({**rows, "share": 0.2}, facts) == canonical(rows, facts)
    for counts in ({"share": 0.2}, {"score": "fisher"}, {"ranking": "layer"}, {"score_images": 9}):
        assert canonical({"method": "sparse", **counts}, facts).fingerprint != one.fingerprint
    resnet = networks["test_resnet"].facts  # its convolutions have no bias
    assert canonical({"method": "sparse", "train_bias": True}, resnet) == canonical(
        {"method": "sparse"}, resnet
    )


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"method": "gps", "per_row": 0}, "per_row = 0 is not possible. It must be a whole"),
        ({"method": "lt_sft", "share": 0.9}, "It must be a number from 0.0001 to 0.5"),
        ({"method": "smt", "tile": 1}, "from 2 to 256"),
        ({"method": "fisher_mask", "score_images": 513}, "from 1 to 512"),
        ({"method": "sparse", "score": "fisher", "score_images": 513}, "from 1 to 512"),
        ({"method": "sparse", "score": "gradient_squared"}, "Choose: gradient, delta"),
        ({"method": "gps", "r": 3}, "unknown option 'r'"),
    ],
)
def test_wrong_options_are_refused(networks, raw, said):
    with pytest.raises(UserError) as caught:
        canonical(raw, networks["test_vit"].facts)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_engine_s_options_are_the_recipe():
    assert {f.name for f in fields(Recipe)} == {f.name for f in fields(Sparse)}


def test_dense_opens_every_entry(networks):
    network = networks["test_vit"]
    candidate, scoring = toy(network, {"method": "gps", "blocks": 1, "train_bias": False})
    adapted = dense(scoring, "gps", candidate.strata, candidate.readout)
    assert torch.equal(adapted.head.weight, scoring.head()[0])
    layers = [m for m in adapted.network.model.modules() if isinstance(m, SparseLayer)]
    assert len(layers) == 4
    assert adapted.adapter_params == sum(m.weight.numel() for m in layers)
