"""What is refused before a run writes anything, and what a run that goes on may not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_run import tiny

from autopeft import plugins, settings
from autopeft.declaring import declare, opening
from autopeft.errors import UserError
from autopeft.files import write_text
from autopeft.methods import METHODS, own
from autopeft.prepare import finished, make_setup, prepare
from autopeft.progress import Screen

GATE = (Path(__file__).parents[1] / "examples" / "own_method.py").read_text()
SPACE = "methods_from: [./gate.py]\nmethods: {gate: {lr: 1e-3}}\n"
BROKEN = GATE.replace("self.layer(x)", "self.leyer(x)")


@pytest.fixture(autouse=True)
def _no_methods_stay(monkeypatch):
    monkeypatch.setattr(own, "_EXECUTED", {})
    monkeypatch.setattr(own, "_FILES", {})
    yield
    METHODS.pop("gate", None)


@pytest.fixture
def asked(tmp_path):
    """Settings of a run whose space names a method of the user's."""
    (tmp_path / "gate.py").write_text(GATE)
    (tmp_path / "space.yaml").write_text(SPACE)

    def make(**changes):
        options = {"space": str(tmp_path / "space.yaml"), "name": "x", **changes}
        values = settings.complete(tiny(tmp_path / "runs", **options))
        return settings.from_mapping(values, "test")

    return make


def test_gp_is_for_spaces_of_one_method(tmp_path, asked):
    with pytest.raises(UserError, match="--sampler: gp needs a space of one method; quick has"):
        prepare(asked(space="quick", sampler="gp"), Screen(True))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "gate.py").write_text(BROKEN)
    with pytest.raises(UserError, match="leyer"):  # one method: gp is fine, and it goes on
        prepare(asked(sampler="gp"), Screen(True))


def test_what_this_machine_has_not_is_said_before_anything_waits_for_it(tmp_path, asked):
    for changes, words in (
        ({"cpus_per_worker": 10_000}, "--cpus-per-worker: 10000 CPU cores for a worker"),
        ({"runs_dir": "/dev/null/x"}, "--runs-dir /dev/null/x: nothing can be written there"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(asked(**changes), Screen(True))
    assert not (tmp_path / "runs").exists()


def test_one_film_under_several_ids_is_a_note(asked, monkeypatch):
    from autopeft.training import images

    plain = prepare(asked(), Screen(True))
    assert not any("identical" in note for note in plain.task.notes)
    same = lambda store: np.zeros(len(store.array), np.uint64)  # noqa: E731
    monkeypatch.setattr(images, "marks", same)
    (note,) = (n for n in prepare(asked(), Screen(True)).task.notes if "identical" in n)
    assert note.startswith(f"{plain.task.patients} patients share an identical image")


def test_a_gpu_that_is_not_there(asked, monkeypatch):
    from autopeft.training import precision

    monkeypatch.setattr(precision, "find_device", lambda: "cpu")
    with pytest.raises(UserError, match="--gpus-per-worker: torch finds no GPU here"):
        prepare(asked(runner="ray", gpus_per_worker=0.5), Screen(True))


def test_what_the_backbone_cannot_have_is_said_once(asked, tmp_path, monkeypatch):
    (tmp_path / "s.yaml").write_text(
        "methods: {lora: {r: 4, modules: {choices: [conv1, qkv]}, lr: 1e-3}, linear_probe: }"
    )
    said = []
    monkeypatch.setattr(Screen, "say", lambda self, line: said.append(line))
    ready = prepare(asked(space=str(tmp_path / "s.yaml")), Screen(True))
    assert said == ["left out, as this backbone cannot have it: modules conv1"]
    assert ready.space.fields["lora.modules"].extremes == ("qkv",)


def test_a_share_of_the_labels_is_declared_and_said(asked):
    settings_ = asked(space="quick", label_fraction=0.5)
    ready = prepare(settings_, Screen(True))
    setup = make_setup(settings_, ready)
    whole = prepare(asked(space="quick"), Screen(True))
    assert len(ready.task.rows("train")) < len(whole.task.rows("train"))
    assert declare(settings_, ready, setup)["label_fraction"] == 0.5
    assert "label_fraction" not in declare(asked(space="quick"), whole, setup)
    assert "50% of them" in opening(settings_, ready, setup)
    assert ready.images != whole.images  # a store without the others


def test_a_broken_method_leaves_nothing_behind(tmp_path, asked):
    (tmp_path / "gate.py").write_text(BROKEN)
    with pytest.raises(UserError, match=r"gate\.py, line \d+: AttributeError"):
        prepare(asked(), Screen(True))
    assert not (tmp_path / "runs").exists()


def test_a_method_that_fails_on_a_value_of_the_space_is_named(tmp_path, asked):
    text = GATE.replace(
        "    @classmethod\n    def inject",
        "    def options(self, facts):\n        return {'reach': 1 / (self.reach - 1)}\n\n"
        "    @classmethod\n    def inject",
    )
    (tmp_path / "gate.py").write_text(text)
    (tmp_path / "space.yaml").write_text(SPACE.replace("lr: 1e-3", "reach: 1.0"))
    with pytest.raises(UserError, match=r"gate\.py, line \d+: ZeroDivisionError"):
        prepare(asked(), Screen(True))


@pytest.fixture
def started(tmp_path, asked):
    """A run that was begun and not finished, as far as this concerns it."""
    run = asked()
    run.save(run.run_dir / "settings.yaml")
    declared = {
        "objective_sha256": plugins.find("objectives", run.objective).sha256,
        "space_sha256": plugins.find("search_spaces", run.space).sha256,
        "methods_from": [
            {"file": "gate.py", "sha256": plugins.read_python(tmp_path / "gate.py").sha256}
        ],
    }
    write_text(run.run_dir / "protocol.yaml", yaml.safe_dump(declared))
    return run


def test_a_started_run_goes_on_with_the_same_files(started):
    assert finished(started) is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gate.py", GATE + "\n", "gate.py changed since this run was started"),
        ("gate.py", "x = (", "gate.py changed since this run was started"),
        ("space.yaml", SPACE + "\n", "space changed since this run was started"),
        ("space.yaml", "methods: 3\n", "space changed since this run was started"),
    ],
)
def test_a_started_run_refuses_a_changed_file(tmp_path, started, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        finished(started)
    assert said in str(caught.value)
    assert "--name" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "gate" not in METHODS  # compared, not executed


def test_a_started_run_misses_its_file(tmp_path, started):
    (tmp_path / "gate.py").unlink()
    with pytest.raises(UserError, match=r"space\.yaml, methods_from: .*gate\.py.*cannot be read"):
        finished(started)


def test_slow_things_begin_once_the_task_is_there(tmp_path, asked, monkeypatch):
    """A table that is wrong must not wait for a cluster; a backbone's import is not waited for."""
    begun = []
    with pytest.raises(UserError, match="a table has no option"):
        prepare(asked(dataset=str(tmp_path / "labels.csv")), Screen(True), lambda: begun.append(1))
    assert not begun

    def load(*args):
        raise UserError(f"begun {len(begun)}", "here", "Stop.")

    monkeypatch.setattr("autopeft.backbones.weights.load_backbone", load)
    with pytest.raises(UserError, match="begun 1"):
        prepare(asked(), Screen(True), lambda: begun.append(1))
