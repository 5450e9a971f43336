"""A user's own methods: what a file must be, how it travels, what an adapter folder may say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from autopeft import plugins
from autopeft.adapter import load_adapter, save
from autopeft.errors import RunError, UserError
from autopeft.methods import METHODS, build, canonical, own, register
from autopeft.methods.lora import Lora
from autopeft.methods.merge import can_merge, merged_state
from autopeft.methods.own import receive, register_files, register_methods, ship, try_methods
from autopeft.testing import check_method

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"
GATE = EXAMPLE.read_text()
META = {"classes": ["a", "b"], "kind": "multilabel"}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Each test begins without methods of a user's own and leaves none behind."""
    before = dict(METHODS)
    monkeypatch.setattr(own, "_EXECUTED", {})
    monkeypatch.setattr(own, "_FILES", {})
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def file(tmp_path):
    """Writes a file of the user's and gives its path."""

    def write(text=GATE, name="gate.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def forget():
    """As in a fresh process."""
    del METHODS["gate"]
    own._EXECUTED.clear()
    own._FILES.clear()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
@pytest.mark.parametrize(
    "raw", [{}, {"blocks": 2, "reach": 1.0}, {"blocks": 2, "readout_block": 3}], ids=str
)
def test_the_example_keeps_the_contract(networks, name, raw):
    assert register_methods(EXAMPLE) == ("gate",)
    check_method({"method": "gate", **raw}, networks[name])


def test_the_example_is_bounded(vit):
    register_methods(EXAMPLE)
    adapted = build(vit, canonical({"method": "gate", "reach": 0.2}, vit.facts), 2, 0, 0)
    gated = adapted.network.model.blocks[0].attn.qkv
    with torch.no_grad():
        gated.gate.copy_(torch.linspace(-9, 9, len(gated.gate)))
        scale = gated.scale()
    assert scale.min() == pytest.approx(0.8)
    assert scale.max() == pytest.approx(1.2)


def test_a_rate_for_each_optimizer_is_not_needed(vit):
    register_methods(EXAMPLE)  # it has one for adamw only
    assert canonical({"method": "gate", "optimizer": "sgd", "lr": 0.1}, vit.facts).train.lr == 0.1
    with pytest.raises(UserError, match=r"gate has no learning rate for sgd\. Give lr"):
        canonical({"method": "gate", "optimizer": "sgd"}, vit.facts)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("class Gate(Method):", "class Gate:", "line 1: defines no subclass"),
        ('name: ClassVar[str] = "gate"', "", "line 1: defines no subclass"),
        ('= "gate"', '= "lora"', "line 20: method 'lora' is built in"),
        ('= "gate"', '= "train"', "line 20: 'train' is no name for a method"),
        ('= "gate"', '= "My gate"', "'My gate' is no name for a method"),
        ("@dataclass(frozen=True)\n", "", "Gate is no frozen dataclass"),
        ("(frozen=True)", "", "TypeError: cannot inherit non-frozen dataclass"),
        ("    family:", "    familly:", "Gate lacks family"),
        ("def parameter_count", "def count", "Gate lacks parameter_count"),
        ("def inject", "def insert", "Gate lacks a class method inject"),
        ("    @classmethod\n    def inject", "    def inject", "lacks a class method inject"),
        ('{"adamw": Rate', '{"adam": Rate', "Gate.rates has no Rate for adamw"),
        ("number(0.5, 0.1, 1.0)", "0.5", "option 'reach' of Gate has no range"),
        ("number(0.5, 0.1, 1.0)", "number(5.0, 0.1, 1.0)", "reach = 5.0 is not possible"),
        ("    reach: float", "    lr: float", "option 'lr' of Gate means something else"),
        ('name: ClassVar[str] = "gate"', 'name: str = "gate"', "or mark it ClassVar"),
        ("import torch\n", "import torch_of_mine\n", "line 13: ModuleNotFoundError"),
        ("class Gate(Method):", "class Gate(Method)", "line 20: SyntaxError"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_line(file, old, new, said):
    assert old in GATE
    with pytest.raises(UserError) as caught:
        register_methods(file(GATE.replace(old, new, 1)))
    assert re.search(r"gate\.py, line \d+: ", str(caught.value))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "gate" not in METHODS
    assert METHODS["lora"] is Lora


def test_two_files_with_one_name_are_refused_and_nothing_is_registered(file):
    first, second = file(), file(GATE + "\n# another file\n", "door.py")
    with pytest.raises(UserError, match=r"door\.py, line 20: method 'gate' is already defined"):
        register_methods(first, second)
    assert "gate" not in METHODS


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(UserError, match=r"none\.py: the file cannot be read"):
        register_methods(tmp_path / "none.py")
    with pytest.raises(UserError, match=r"gate\.yaml: is no \.py file"):
        register_methods(tmp_path / "gate.yaml")


def test_a_class_without_a_name_is_what_others_are_made_from(file):
    text = GATE + "\n\n@dataclass(frozen=True)\nclass Door(Gate):\n"
    text += '    """A gate of another name."""\n\n    name: ClassVar[str] = "door"\n'
    assert register_methods(file(text)) == ("gate", "door")
    del METHODS["door"]


def test_an_edited_file_takes_the_place_of_what_it_defined(file):
    register_methods(file())
    register_methods(file(GATE.replace("number(0.5,", "number(0.7,")))
    assert METHODS["gate"]().reach == 0.7
    register_methods(file())
    assert METHODS["gate"]().reach == 0.5


def test_registering_a_class_never_replaces_a_built_in():
    with pytest.raises(UserError, match="'lora' already exists"):
        register(type("Lora", (Lora,), {}))
    assert METHODS["lora"] is Lora
    assert register(Lora) is Lora


# ---- how it travels ---------------------------------------------------------------------------


def test_a_worker_executes_the_text_once_and_never_opens_the_file(file, tmp_path):
    trace = tmp_path / "trace"
    text = f"{GATE}\nwith open({str(trace)!r}, 'a') as stream:\n    stream.write('x')\n"
    path = file(text)
    shipped = ship([plugins.read_python(path)])
    assert not trace.exists()  # reading executes nothing
    path.unlink()
    receive(shipped)
    receive(shipped)
    assert trace.read_text() == "x"
    assert METHODS["gate"].name == "gate"


def test_a_text_that_changed_on_the_way_is_refused(file):
    ((name, text, sha256),) = ship([plugins.read_python(file())])
    with pytest.raises(RunError, match=r"gate\.py reached a worker changed"):
        receive([(name, text + " ", sha256)])
    assert "gate" not in METHODS


# ---- tried before a trial ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return sum(shape[1]", "return 1 + sum(shape[1]", "its parameter_count says"),
        (
            "module_path(block,",
            "module_path(block - 1,",
            "changes block 2, its first_block says 3",
        ),
        ("shape[1] for", "shape[7] for", "IndexError"),
        ("self.layer(x)", "self.leyer(x)", "AttributeError"),
        ("gated.gate\n", "gated.gait\n", "AttributeError"),
    ],
)
def test_a_method_that_cannot_run_is_named_before_a_trial(file, vit, old, new, said):
    assert old in GATE
    files = [plugins.read_python(file(GATE.replace(old, new, 1)))]
    register_files(files)
    with pytest.raises(UserError, match=r"gate\.py, line \d+: ") as caught:
        try_methods(files, vit)
    assert said in str(caught.value)


def test_a_good_method_passes_and_the_backbone_stays(file, vit):
    files = [plugins.read_python(file())]
    register_files(files)
    before = {k: v.clone() for k, v in vit.model.state_dict().items()}
    try_methods(files, vit)
    assert all(torch.equal(v, before[k]) for k, v in vit.model.state_dict().items())


# ---- adapter folders --------------------------------------------------------------------------


@pytest.fixture
def folder(file, vit, tmp_path):
    """A saved adapter of the user's method, seen from a fresh process."""
    register_methods(file())
    adapted = build(vit, canonical({"method": "gate", "blocks": 2}, vit.facts), 2, 0, 0)
    target = tmp_path / "best"
    target.mkdir()
    save(adapted, target, META)
    forget()
    return target


def test_an_adapter_needs_the_method_s_file(folder, file, vit):
    with pytest.raises(UserError, match=r"method 'gate' of gate\.py") as caught:
        load_adapter(folder, network=vit)
    assert 'Call autopeft.register_methods("path/to/gate.py") first.' in str(caught.value)
    register_methods(file())
    assert load_adapter(folder, network=vit).candidate.method == "gate"


def test_nothing_in_an_adapter_folder_is_executed(folder, vit, tmp_path):
    trace = tmp_path / "trace"
    (folder / "gate.py").write_text(f"{GATE}\nopen({str(trace)!r}, 'w').close()\n")
    with pytest.raises(UserError, match="is not loaded"):
        load_adapter(folder, network=vit)
    assert not trace.exists()


def test_an_adapter_refuses_another_version_of_the_file(folder, file, vit):
    register_methods(file(GATE + "\n# edited\n"))
    with pytest.raises(UserError, match=r"the one that is loaded is of gate\.py"):
        load_adapter(folder, network=vit)


def test_folder_and_card_name_file_and_sha256(folder):
    sha256 = plugins.read_python(EXAMPLE).sha256
    saved = json.loads((folder / "autopeft.json").read_text())["methods_from"]
    assert saved == {"gate": {"file": "gate.py", "sha256": sha256}}
    card = (folder / "README.md").read_text()
    assert sha256 in card
    assert 'autopeft.register_methods("gate.py")' in card


def test_a_method_without_a_file_is_still_asked_for(vit, tmp_path):
    register_methods(EXAMPLE)
    own._FILES.clear()  # as if it had been registered as a class
    save(build(vit, canonical({"method": "gate"}, vit.facts), 2, 0, 0), tmp_path, META)
    forget()
    with pytest.raises(UserError, match="which is not loaded"):
        load_adapter(tmp_path, network=vit)


def test_what_cannot_be_merged_says_so_before_it_is_tried(file, vit):
    register_methods(
        file(GATE.replace("    wraps: C", "    mergeable: ClassVar[bool] = False\n    wraps: C"))
    )
    raw = {"method": "gate", "blocks": 2}
    own_method = build(vit, canonical(raw, vit.facts), 2, 0, 0)
    assert not can_merge(own_method)
    with pytest.raises(UserError, match="gate cannot be merged"):
        merged_state(own_method)
    lora = build(vit, canonical({"method": "lora"}, vit.facts), 2, 0, 0)
    assert can_merge(lora)
    early = build(vit, canonical({"method": "lora", "readout_block": 3}, vit.facts), 2, 0, 0)
    assert not can_merge(early)


# The gate as a method that looks first: it keeps the images' mean, which is saved with it.
LOOKS = GATE
for _old, _new in (
    ("import Injection, Method,", "import Injection, Scored,"),
    ("class Gate(Method)", "class Gate(Scored)"),
    ("return Injection(trainable)", "return Injection(trainable, {seen: fixed[seen].clone()})"),
    (
        "    def inject(cls, network, strata: Sequence, readout) -> Injection:",
        """    def prepare(cls, scoring, strata, readout):
        means = torch.stack([x.mean() for x, _ in scoring.batches(2)])
        path = scoring.network.block_names(strata[0].blocks[0])
        return {f"{path}.seen": means.mean().reshape(1)}

    @classmethod
    def inject_scored(cls, network, strata: Sequence, readout, fixed) -> Injection:
        seen = f"{network.block_names(strata[0].blocks[0])}.seen\"""",
    ),
):
    assert _old in LOOKS
    LOOKS = LOOKS.replace(_old, _new)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_method_of_one_s_own_may_look_first(networks, file, tmp_path, name):
    network, path = networks[name], file(LOOKS)
    register_methods(path)
    try_methods([plugins.read_python(path)], network)
    raw = {"method": "gate", "blocks": 2}
    check_method(raw, network)
    fixed = {f"{network.block_names(network.facts.depth - 2)}.seen": torch.tensor([0.25])}
    adapted = build(network, canonical(raw, network.facts), 2, 0, 0, fixed)
    save(adapted, tmp_path, META)
    again = load_adapter(tmp_path, network=network).adapted
    assert [float(v) for v in again.fixed.values()] == [0.25]


@pytest.mark.parametrize("part", ["prepare", "inject_scored"])
def test_a_method_that_looks_first_needs_both_parts(file, part):
    with pytest.raises(UserError, match=f"Gate lacks a class method {part}"):
        register_methods(file(LOOKS.replace(f"def {part}(", "def other(")))


def test_a_look_that_fails_is_found_before_a_trial(vit, file):
    path = file(LOOKS.replace("scoring.batches(2)", "scoring.pictures(2)"))
    register_methods(path)
    with pytest.raises(UserError, match="pictures"):
        try_methods([plugins.read_python(path)], vit)
