"""Starting from an earlier adapter: folding, folders, going on, staying orthogonal."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import flags, tiny

import autopeft
from autopeft import trial
from autopeft.adapter import folded, load_adapter, merge, save
from autopeft.adapter_files import adapter_hash
from autopeft.backbones.describe import fingerprint, random_backbone
from autopeft.data.task import Task
from autopeft.errors import UserError
from autopeft.files import new_folder
from autopeft.init_adapter import BOUND, PENALTY, Start, open_start, outside, overlap
from autopeft.job import Job, Rows, Setup
from autopeft.methods import build, canonical
from autopeft.training.images import build_store

META = {"classes": ["nodule"], "kind": "binary"}
LORA = {"method": "lora", "blocks": [2, 5], "r": 4}
FOLDS = [
    LORA,
    {"method": "lora", "readout_block": 4, "readout_pool": "token+avg"},
    {"method": "lora_qv", "blocks": [2, 5]},
    {"method": "bitfit"},
    {"method": "ssf"},
    {"method": "full", "blocks": [3, 4]},
    {"strata": [{"method": "lora", "blocks": [2, 4]}, {"method": "bitfit", "blocks": [4, 5]}]},
]


@pytest.fixture(scope="module")
def vit():
    return random_backbone("test_vit", 32)


@pytest.fixture(scope="module")
def resnet():
    return random_backbone("test_resnet", 32)


@pytest.fixture
def first(vit, tmp_path):
    """Folder of an earlier LoRA adapter."""
    return saved(trained(vit, LORA), tmp_path / "first")


def trained(network, raw, seed=0):
    """An adapter whose every number has moved."""
    adapted = build(network, canonical(raw, network.facts), 1, seed, 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return adapted


def saved(adapted, folder, **changes):
    with new_folder(folder) as temporary:
        save(adapted, temporary, {**META, **changes})
    return folder


def pixels(network, n=3):
    size = network.facts.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


# ---- folding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", FOLDS, ids=str)
def test_a_folded_backbone_computes_what_the_adapter_does(vit, tmp_path, raw):
    adapted = trained(vit, raw)
    before = fingerprint(vit.model, vit.facts.classifier)
    network = folded(load_adapter(saved(adapted, tmp_path / "a"), network=vit), tmp_path / "a")
    x, readout = pixels(vit), adapted.candidate.readout
    with torch.no_grad():
        state = network.advance(0, x, readout.block)
        got = network.pooled(state, readout.block, readout.pool)
        plain = vit.pooled(vit.advance(0, x, readout.block), readout.block, readout.pool)
        want = adapted.pooled(x)
    assert (got - want).abs().max() < 1e-5 < (plain - want).abs().max()
    assert network.facts == replace(vit.facts, sha256=network.facts.sha256)
    assert fingerprint(vit.model, vit.facts.classifier) == before == vit.facts.sha256
    behind = f"blocks.{readout.block}.attn.qkv.weight"  # behind an early readout nothing moved
    if readout.block < vit.depth:
        assert torch.equal(network.model.state_dict()[behind], vit.model.state_dict()[behind])


def test_a_cnn_is_folded_too(resnet, tmp_path):
    adapted = trained(resnet, {"method": "lora", "r": 2})
    folder = saved(adapted, tmp_path / "a")
    network = folded(load_adapter(folder, network=resnet), folder)
    x = pixels(resnet)
    with torch.no_grad():
        got = network.own_features(network.advance(0, x, network.depth))
        assert (got - adapted.pooled(x)).abs().max() < 1e-5
    assert network.facts.image_size == 32


def test_the_hash_stands_for_backbone_and_adapter(vit, first, tmp_path):
    one, two = (folded(load_adapter(first, network=vit), first) for _ in range(2))
    other = saved(trained(vit, LORA, seed=1), tmp_path / "other")
    third = folded(load_adapter(other, network=vit), other)
    assert one.facts.sha256 == two.facts.sha256
    assert len({vit.facts.sha256, one.facts.sha256, third.facts.sha256}) == 3
    assert one.init.base_sha256 == vit.facts.sha256
    assert one.fork().init == one.init


def test_what_cannot_be_folded_is_refused(vit, tmp_path):
    for raw, words in (({"method": "linear_probe"}, "changes no weight"),
                       ({"method": "vpt_deep"}, "vpt_deep cannot be merged")):  # fmt: skip
        folder = saved(trained(vit, raw), tmp_path / raw["method"])
        with pytest.raises(UserError, match=words):
            open_start(folder, "merged", vit)


# ---- the folder of what was trained on it -------------------------------------------------------


def test_the_second_adapter_loads_by_itself_wherever_it_is_moved(vit, first, tmp_path):
    start = open_start(first, "merged", vit)
    adapted = trained(start.network, {"method": "bitfit", "blocks": 2}, seed=2)
    folder = saved(adapted, tmp_path / "second")
    shutil.rmtree(first)
    moved = tmp_path / "elsewhere" / "x"
    shutil.copytree(folder, moved)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    want = load_adapter(folder, network=start.network).predict(images)
    assert np.abs(load_adapter(moved, network=vit).predict(images) - want).max() < 1e-6
    assert "peft_type" not in json.loads((moved / "adapter_config.json").read_text())
    assert "init/" in (moved / "README.md").read_text()
    assert sorted(p.name for p in (moved / "init").iterdir()) == sorted(
        ["adapter_config.json", "adapter_model.safetensors", "autopeft.json", "README.md"]
    )


def test_adapters_may_follow_each_other(vit, first, tmp_path):
    second = saved(
        trained(open_start(first, "merged", vit).network, {"method": "bitfit"}, 2), tmp_path / "b"
    )
    start = open_start(second, "merged", vit)
    third = trained(start.network, {"method": "lora", "r": 2}, 3)
    folder = saved(third, tmp_path / "c")
    assert (folder / "init" / "init" / "autopeft.json").exists()
    x = pixels(vit)
    again = load_adapter(folder, network=vit).adapted
    with torch.no_grad():
        assert torch.allclose(again.logits(x), third.logits(x), atol=1e-6)
    # naive: the second goes on, on its own backbone
    assert open_start(second, "naive", vit).network.init.folder == second / "init"


def test_merged_weights_hold_both(vit, first, tmp_path):
    start = open_start(first, "merged", vit)
    adapted = trained(start.network, {"method": "lora", "r": 2}, 3)
    name, state = "blocks.3.attn.qkv.weight", merge(adapted)
    steps = [vit.model.state_dict()[name]]
    steps += [start.network.model.state_dict()[name], state[name]]
    early = load_file(first / "adapter_model.safetensors")
    a, b = (early[f"base_model.model.blocks.3.attn.qkv.lora_{f}.weight"] for f in "AB")
    scale = canonical(LORA, vit.facts).strata[0].options["lora_alpha"] / 4
    assert torch.allclose(steps[1], steps[0] + scale * b @ a, atol=1e-6)
    tensors = adapted.tensors()
    a, b = (tensors[f"blocks.3.attn.qkv.lora_{f}.weight"] for f in "AB")
    scale = adapted.candidate.strata[0].options["lora_alpha"] / 2
    assert torch.allclose(steps[2], steps[1] + scale * b @ a, atol=1e-6)


def test_a_missing_or_changed_init_is_refused(vit, first, tmp_path):
    start = open_start(first, "merged", vit)
    adapted = trained(start.network, LORA, 2)
    folder = saved(adapted, tmp_path / "second")
    ours = folder / "init" / "autopeft.json"
    text = ours.read_text()
    ours.write_text(text.replace("nodule", "module"))
    with pytest.raises(UserError, match="is not the adapter that is folded in"):
        load_adapter(folder, network=vit)
    shutil.rmtree(folder / "init")
    with pytest.raises(UserError, match="lacks the adapter that is folded into its backbone"):
        load_adapter(folder, network=vit)
    with new_folder(tmp_path / "state") as state:  # as a worker leaves it
        save(adapted, state, META, whole=False)
    assert not (tmp_path / "state" / "init").exists()
    load_adapter(tmp_path / "state", network=start.network)
    with pytest.raises(UserError, match="lacks the adapter"):
        load_adapter(tmp_path / "state", network=vit)


# ---- what is refused ----------------------------------------------------------------------------


def test_another_backbone_size_or_weights_is_one_clear_line(vit, resnet, first):
    def refused(network):
        with pytest.raises(UserError) as error:
            open_start(first, "merged", network)
        return str(error.value)

    assert "was trained on test_vit, this run is on test_resnet" in refused(resnet)
    assert "at 32 px, this run is at 48 px" in refused(random_backbone("test_vit", 48))
    assert "was trained on test_vit with weights" in refused(random_backbone("test_vit", 32, 1))
    with pytest.raises(UserError, match="is no adapter folder: it has no autopeft.json"):
        open_start(first.parent / "none", "merged", vit)
    (first / "autopeft.json").write_text("[]")
    assert "is damaged" in refused(vit)
    (first / "autopeft.json").write_text('{"backbone": 1}')
    assert "names no backbone" in refused(vit)


def test_a_probe_has_nothing_to_go_on_from(vit, tmp_path):
    folder = saved(trained(vit, {"method": "linear_probe"}), tmp_path / "p")
    with pytest.raises(UserError, match="has no adapter to go on from"):
        open_start(folder, "naive", vit)


# ---- naive --------------------------------------------------------------------------------------


def test_naive_takes_all_but_the_head(vit, first):
    start = open_start(first, "naive", vit)
    assert start.network is vit
    adapted = build(vit, canonical({**LORA, "lr": 1e-4}, vit.facts), 1, 5, 0)
    fresh = {k: v.clone() for k, v in adapted.tensors().items()}
    assert start.begin(adapted) is False
    earlier = load_adapter(first, network=vit).adapted.tensors()
    for name, value in adapted.tensors().items():
        from_head = name.startswith(vit.facts.classifier)
        assert torch.equal(value, (fresh if from_head else earlier)[name]), name
    assert start.record(adapted.candidate)["started_from"]["mode"] == "naive"


def test_naive_takes_the_head_where_it_means_the_same(vit, first):
    start = open_start(first, "naive", vit)
    assert not start.for_task(("mass",), "binary").head
    assert not start.for_task(("nodule",), "multilabel").head
    start = start.for_task(("nodule",), "binary")
    adapted = build(vit, canonical(LORA, vit.facts), 1, 5, 0)
    assert start.begin(adapted) is True
    assert torch.equal(adapted.head.weight, load_adapter(first, network=vit).adapted.head.weight)


@pytest.mark.parametrize("change", [{"r": 2}, {"blocks": [3, 5]}, {"readout_block": 5}])
def test_only_the_very_same_adapter_goes_on(vit, first, change):
    start = open_start(first, "naive", vit)
    other = canonical({**LORA, **change}, vit.facts)
    assert start.goes_on(canonical(LORA, vit.facts))
    assert not start.goes_on(other)
    assert start.fixed(other) == start.record(other) == {}
    adapted = build(vit, other, 1, 0, 0)
    fresh = {k: v.clone() for k, v in adapted.tensors().items()}
    assert not start.begin(adapted)
    assert all(torch.equal(v, fresh[k]) for k, v in adapted.tensors().items())


# ---- orthogonal ---------------------------------------------------------------------------------


def test_overlap_is_the_squared_frobenius_norm():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 7))
    want = sum((row @ other) ** 2 for row in a for other in b)
    got = overlap(torch.tensor(a), torch.tensor(b))
    assert float(got) == pytest.approx(want, rel=1e-12)


def test_outside_is_orthogonal_and_the_nearest():
    generator = torch.Generator().manual_seed(0)
    earlier = torch.randn(3, 9, generator=generator)
    earlier[2] = earlier[0] + earlier[1]  # of rank 2
    a = torch.randn(4, 9, generator=generator)
    got = outside(earlier, a)
    assert (earlier @ got.t()).abs().max() < 1e-6
    assert torch.allclose(outside(earlier, got), got, atol=1e-6)
    # the removed part lies in the span, so nothing else was taken away
    removed = torch.cat([earlier[:2], a - got])
    assert torch.linalg.matrix_rank(removed, rtol=1e-5) == 2
    assert torch.equal(outside(torch.zeros(2, 9), a), a)


@pytest.mark.parametrize("method", BOUND)
def test_a_fresh_one_starts_orthogonal_and_changes_nothing(vit, first, method):
    start = open_start(first, "orthogonal", vit)
    raw = {"method": method} | ({"c2": 0} if method == "spafit" else {})  # else all is biases here
    adapted = build(start.network, canonical(raw, vit.facts), 1, 0, 0)
    pairs = [(start.reads[path], a) for path, a in start._factors(adapted)]
    assert len({id(early) for early, _ in pairs}) >= 4
    x = pixels(vit)
    with torch.no_grad():
        assert all(float(overlap(early, a)) > 1e-6 for early, a in pairs)
        before = adapted.logits(x)
        assert start.begin(adapted) is False
        assert torch.equal(adapted.logits(x), before)
        assert all(float(overlap(early, a)) < 1e-10 for early, a in pairs)
    assert start.record(adapted.candidate)["started_from"]["mode"] == "orthogonal"


def test_the_penalty_is_the_sum_over_common_modules(vit, first):
    start = open_start(first, "orthogonal", vit)
    adapted = trained(start.network, {"method": "lora", "blocks": [4, 5], "r": 3}, 7)
    start.bind(adapted)
    early, late = load_adapter(first, network=vit).adapted.tensors(), adapted.tensors()
    common = [k for k in late if "lora_A" in k and k in early]
    assert len(common) == 2 * 4
    want = sum(float((early[k] @ late[k].t()).pow(2).sum()) for k in common)
    assert float(adapted.extra_loss().detach()) == pytest.approx(PENALTY * want, rel=1e-5)
    adapted.extra_loss().backward()
    assert all(p.grad is not None for k, p in adapted.trainable.items() if k in common)


def test_others_are_left_alone(vit, first):
    start = open_start(first, "orthogonal", vit)
    for raw in ({"method": "bitfit"}, {"method": "lora", "blocks": [0, 1], "r": 2}):
        adapted = build(start.network, canonical(raw, vit.facts), 1, 0, 0)
        start.bind(adapted)
        assert adapted.extra_loss is None
    pissa = build(start.network, canonical({**LORA, "init": "pissa"}, vit.facts), 1, 0, 0)
    x = pixels(vit)
    with torch.no_grad():
        before = pissa.logits(x)
        start.begin(pissa)
        assert torch.equal(pissa.logits(x), before)
    plain = Start(vit)
    adapted = build(vit, canonical(LORA, vit.facts), 1, 0, 0)
    plain.bind(adapted)
    assert plain.begin(adapted) is False
    assert adapted.extra_loss is None


def test_orthogonal_to_what_is_refused(vit, tmp_path):
    folder = saved(trained(vit, {"method": "bitfit"}), tmp_path / "b")
    with pytest.raises(UserError, match="bitfit has no A that another could be orthogonal to"):
        open_start(folder, "orthogonal", vit)
    width = vit.facts.modules["qkv"][0][0]
    raw = {"method": "lora", "r": width, "modules": ["qkv"]}
    folder = saved(trained(vit, raw), tmp_path / "wide")
    with pytest.raises(UserError, match=f"reads all {width} inputs of blocks.0.attn.qkv"):
        open_start(folder, "orthogonal", vit)


# ---- trainings ----------------------------------------------------------------------------------


@pytest.fixture
def setup(vit, first, tmp_path, monkeypatch):
    """A run's setup on small pictures (bright ones are positive)."""
    rng, label = np.random.default_rng(0), np.arange(28) % 2
    for i in range(28):
        picture = rng.integers(0, 150, (40, 30)) + 60 * label[i]
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"{i:02}.png")
    everyone = Rows(
        np.array([f"{i:02}.png" for i in range(28)]), np.arange(28),
        np.array([f"patient{i // 2}" for i in range(28)]),
        label.astype(np.float32)[:, None], {},
    )  # fmt: skip
    splits = np.array(["train"] * 20 + ["search"] * 8)
    task = Task("t", "binary", "patient", ("nodule",), tmp_path, (), (), (), everyone, splits)
    store = build_store(tmp_path, task.paths, 32, "pad", tmp_path / "cache")
    monkeypatch.setattr(trial, "load_backbone", lambda *args: vit)
    return Setup(
        kind="binary", classes=("nodule",), backbone="test_vit", weights=None,
        weights_sha256=vit.facts.sha256, image_size=32, fit="pad", images=str(store.folder),
        cache=str(tmp_path / "cache"), run_dir=str(tmp_path / "run"),
        rows={s: task.rows(s) for s in ("train", "search")}, epochs=2, batch_size=8, views=2,
        precision="fp32", threads=1, seed=0, offline=True,
    )  # fmt: skip


def started(setup, start):
    return replace(
        setup, init_adapter=str(start.folder), init_mode=start.mode, init_sha256=start.sha256,
        weights_sha256=start.network.facts.sha256,
    )  # fmt: skip


def trained_by(setup, vit, raw, start=0, stop=2, state=None):
    job = Job("rung", setup.digest(), canonical(raw, vit.facts), 0, "all", start, stop, state)
    outcome = trial.run(setup, job)
    assert outcome.status == "ok", outcome.reason
    return outcome


@pytest.mark.parametrize("mode", ["merged", "naive", "orthogonal"])
def test_a_worker_trains_from_it_and_in_rungs_as_in_one_go(setup, vit, first, tmp_path, mode):
    start = open_start(first, mode, vit).for_task(("nodule",), "binary")
    setup = started(setup, start)
    raw = {**LORA, "lr": 1e-3}
    whole = trained_by(setup, vit, raw)
    other = replace(setup, run_dir=str(tmp_path / "other"))
    half = trained_by(other, vit, raw, 0, 1)
    again = trained_by(other, vit, raw, 1, 2, half.state)
    folders = [Path(s.run_dir) / "states" for s in (setup, other)]
    one, two = (
        load_file(f / o.state / "adapter_model.safetensors")
        for f, o in zip(folders, (whole, again), strict=True)
    )
    assert all(torch.equal(one[k], two[k]) for k in one)
    info = json.loads((folders[0] / whole.state / "autopeft.json").read_text())
    assert info.get("started_from", {}).get("mode") == (None if mode == "merged" else mode)
    assert ("init" in info) == (mode != "naive")
    model = load_adapter(folders[0] / whole.state, network=start.network)
    if mode == "orthogonal":
        for path, a in start._factors(model.adapted):
            far = (start.reads[path] @ a.flatten(1).t()).norm()
            assert far < 0.05 * start.reads[path].norm() * a.norm()
    if mode == "naive":
        early = load_adapter(first, network=vit).adapted.tensors()
        moved = [float((model.adapted.tensors()[k] - early[k]).norm()) for k in early]
        assert 0 < max(moved) < 1


def test_modes_and_contents_are_other_setups(setup, vit, first):
    starts = [open_start(first, mode, vit) for mode in ("merged", "naive", "orthogonal")]
    setups = [setup, *(started(setup, s) for s in starts)]
    setups.append(replace(setups[1], init_sha256="0" * 64))
    assert len({s.digest() for s in setups}) == 5
    assert replace(setups[1], init_adapter="/elsewhere").digest() == setups[1].digest()
    with pytest.raises(RuntimeError, match="found another init adapter than the driver"):
        trial.run(setups[-1], Job("rung", setups[-1].digest(), canonical(LORA, vit.facts)))


# ---- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_one(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    (runs / "lora.yaml").write_text("methods: {lora: {r: 4, last: 2, lr: {choices: [1e-3]}}}")
    autopeft.search(**tiny(runs, name="first", space=str(runs / "lora.yaml"), trials=1))
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["merged", "naive", "orthogonal"])
def test_a_search_from_the_command_line(run_one, mode, monkeypatch, capsys):
    from autopeft import cli

    folder = run_one / "first" / "baselines" / "lora_r8"
    asked = tiny(run_one, name=mode, init_adapter=str(folder), init_mode=mode, trials=2)
    monkeypatch.setattr("sys.argv", ["autopeft", "search", *flags(asked)])
    cli.main()
    result = autopeft.load_result(run_one / mode)
    words = {"merged": "has lora", "naive": "went on from", "orthogonal": "kept orthogonal"}
    assert any(words[mode] in note for note in result.numbers["notes"])
    assert str(run_one) not in json.dumps(result.numbers["notes"])
    declared = (run_one / mode / "protocol.yaml").read_text()
    assert f"mode: {mode}" in declared
    assert adapter_hash(folder) in declared
    moved = run_one / f"moved-{mode}"
    shutil.copytree(run_one / mode / "best", moved)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    got = load_adapter(moved).predict(images)
    assert np.array_equal(got, result.best.adapter().predict(images))
    assert (moved / "init").exists() == (mode != "naive")
    if mode == "naive":
        strata = json.loads((folder / "autopeft.json").read_text())["candidate"]["strata"]
        tried = [e.user_attrs["candidate"]["strata"] for e in result.study.trials]
        assert tried == [strata] * len(tried)


@pytest.mark.slow
def test_folds_do_not_judge_by_who_trained_it(run_one):
    folder = run_one / "first" / "baselines" / "lora_r8"
    asked = tiny(run_one, name="folds", init_adapter=str(folder), inner="cv5")
    with pytest.raises(UserError, match="Take --inner holdout, or an adapter of other patients"):
        autopeft.search(**asked)
    assert not (run_one / "folds").exists()


@pytest.mark.slow
def test_a_changed_adapter_is_another_question(run_one, tmp_path):
    folder = tmp_path / "early"
    shutil.copytree(run_one / "first" / "baselines" / "lora_r8", folder)
    asked = tiny(run_one, name="changed", init_adapter=str(folder), trials=1)
    autopeft.search(**asked)
    assert autopeft.search(**asked).folder.name == "changed"
    ours = folder / "autopeft.json"
    ours.write_text(ours.read_text() + " ")
    with pytest.raises(UserError, match="the init adapter changed since this run was finished"):
        autopeft.search(**asked)
    (run_one / "changed" / "result.json").unlink()
    with pytest.raises(UserError, match="the init adapter changed since this run was started"):
        autopeft.search(**asked)
