"""Imports point one way, each library has one door, functions and files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "autopeft"
FILES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "objectives").glob("*.py"))

EVERYONE_MAY = {"errors", "files", "version"}  # and they import nothing else of ours
ANYTHING = {
    "cli",
    "cli_runs",
    "catalog",
    "driver",
    "forecast",
    "estimate",
    "planning",
    "rungs",
    "testing",
    "doctor",
}  # the ends: nobody builds on them

# Room -> what it may import besides `EVERYONE_MAY`. An arrow more is a decision: make it here.
MAY = {
    # what things are
    "settings": "",
    "candidate": "",
    "evaluation": "",
    "job": "candidate evaluation",
    "words": "",
    "progress": "",
    "interrupts": "",
    "cli_flags": "settings",
    "cli_print": "",
    # what is measured, on whom
    "plugins": "",
    "metrics": "evaluation",
    "terms": "evaluation metrics plugins",
    "rules": "evaluation terms",
    "objective": "evaluation metrics plugins rules terms",
    "redrawn": "evaluation metrics terms",
    "replay": "evaluation metrics objective redrawn rules terms",
    "data": "evaluation job settings",
    # what is trained, and how
    "backbones": "",
    "methods": "backbones candidate plugins",
    "training": "candidate evaluation job",
    "adapter_files": "",
    "card": "backbones methods",
    "adapter": "adapter_files backbones candidate card methods training",
    "init_adapter": "adapter adapter_files backbones candidate job methods",
    "posthoc": "adapter backbones candidate methods",
    "states": "adapter backbones job",
    "parts": "job",
    "readouts": "job parts states training",
    "simple": "job states training",
    "trial": "adapter backbones candidate evaluation init_adapter job methods parts posthoc "
    "readouts simple states training",
    # what is tried next
    "ranges": "",
    "sections": "candidate plugins ranges",
    "space": "candidate plugins ranges sections",
    "suited": "candidate ranges sections space",
    "seen": "data",
    "starting": "candidate init_adapter methods ranges sections seen space",
    "schedule": "",
    "entry": "candidate job",
    "seals": "job",
    "study": "candidate entry job seals",
    "sampler": "candidate schedule study",
    "engine": "candidate evaluation job schedule study",
    "simulated": "candidate engine evaluation job sampler schedule study",
    "runners": "job",
    # what comes out
    "machine": "methods runners settings training",
    "bench": "candidate evaluation job metrics parts progress runners study",
    "baselines": "backbones bench candidate evaluation job methods progress",
    "ablation": "backbones candidate evaluation methods metrics",
    "selection": "backbones bench candidate evaluation job metrics objective progress replay "
    "study",
    "confirmation": "baselines bench clock evaluation metrics objective progress replay selection "
    "settings study",
    "chain": "",
    "secret": "",
    "ledger": "chain secret",
    "protocol": "chain",
    "clock": "",
    "reserve": "baselines data parts settings",
    "audit": "data",
    "timing": "backbones candidate job methods trial",
    "sample": "data job progress settings timing training",
    "plan_words": "words",
    "result": "adapter plot settings study",
    "answer": "backbones baselines bench clock confirmation data evaluation ledger metrics "
    "objective selection settings study",
    "choice_numbers": "answer candidate confirmation evaluation metrics objective replay "
    "selection",
    "group_numbers": "answer evaluation metrics",
    "operating_numbers": "answer evaluation metrics",
    "context_numbers": "ablation answer metrics selection",
    "verdict": "answer evaluation metrics selection",
    "readings": "answer data evaluation metrics verdict",
    "numbers": "answer bench choice_numbers context_numbers evaluation group_numbers metrics "
    "operating_numbers "
    "readings selection verdict",
    "patient_words": "words",
    "choice_words": "words",
    "drawing": "",
    "plot": "drawing words",
    "report": "choice_words patient_words plot words",
    "summary": "choice_words patient_words result words",
    "writing": "adapter answer baselines chain data ledger metrics numbers progress protocol "
    "report "
    "result seals selection",
    "stages": "ablation answer baselines bench clock confirmation job members metrics objective "
    "prepare progress protocol selection settings",
    # what a finished run is held against
    "rebuild": "answer backbones bench clock data job ledger objective plugins prepare progress "
    "protocol settings stages study writing",
    "recount": "",
    "comparison": "answer numbers progress protocol rebuild report seals writing",
    "verification": "chain comparison ledger progress protocol recount result seals writing",
    "choices": "baselines bench candidate choice_numbers choice_words clock objective plugins "
    "progress rebuild replay result selection stages",
    "external": "adapter adapter_files backbones data evaluation job ledger methods metrics "
    "progress "
    "seen settings training words",
    "rehearsal": "bench evaluation metrics objective",
    "members": "bench candidate evaluation job metrics parts progress",
    "declaring": "baselines job parts plugins prepare protocol settings starting",
    "prepare": "adapter_files backbones baselines bench data job machine methods metrics "
    "objective "
    "parts plugins progress protocol result runners schedule settings space starting study suited "
    "training",
}

# Library -> the only files (or folders) that import it.
DOORS = {
    "optuna": (
        "space.py",
        "sections.py",
        "suited.py",
        "study.py",
        "sampler.py",
        "ranges.py",
        "entry.py",
    ),
    "ray": ("runners/",),
    "peft": ("methods/tuner.py", "adapter.py", "training/fast.py"),
    "timm": ("backbones/",),
    "huggingface_hub": ("backbones/",),
    "fairlearn": ("metrics/odds.py",),
    "sklearn": ("training/probe.py", "recount.py"),
    "torch": (
        "backbones/",
        "methods/",
        "training/",
        "posthoc/",
        "adapter.py",
        "init_adapter.py",
        "states.py",
        "trial.py",
    ),
    "safetensors": ("backbones/", "posthoc/", "adapter.py", "states.py", "writing.py"),
    "typer": ("cli.py", "cli_flags.py", "cli_runs.py"),
    "jinja2": ("report/",),
}

NEVER = {"utils", "helpers", "common", "base", "manager", "handler"}


def running_code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from running_code(other)
            continue
        yield child
        yield from running_code(child)


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in running_code(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return names


def room_of(dotted: str) -> str:
    """``autopeft.data.task.Task`` -> ``data``."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def room_of_file(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms() -> dict[str, set[str]]:
    """Room -> rooms that it imports."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = room_of_file(file)
        ours = {room_of(n) for n in imported(file) if n.split(".")[0] == "autopeft"}
        # `from autopeft import settings` names a room; `from autopeft import Term` does not.
        ours = {r for r in ours if (PACKAGE / r).is_dir() or (PACKAGE / f"{r}.py").exists()}
        found.setdefault(room, set()).update(ours - {room, ""})
    return found


def test_imports_are_those_of_the_table():
    found = rooms()
    assert "training" in found["trial"]  # plain imports are seen
    assert "summary" in found["cli"]  # and those inside functions
    real = {
        f"{room} -> {other}"
        for room, others in found.items()
        if room not in ANYTHING | {"__init__"}
        for other in others - EVERYONE_MAY
    }
    table = {f"{room} -> {other}" for room, others in MAY.items() for other in others.split()}
    assert sorted(real - table) == [], "new arrows: a decision, to be written into the table"
    assert sorted(table - real) == [], "arrows of the table that nothing uses any more"
    assert set(found) - ANYTHING - {"__init__"} == set(MAY) | EVERYONE_MAY
    assert found["errors"] == found["version"] == set()
    assert found["files"] == {"errors"}
    assert not any({"cli", "cli_runs"} & others for room, others in found.items() if room != "cli")


def test_there_are_no_circles():
    graph = {room: others - {"__init__"} for room, others in rooms().items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MAY)


def test_objectives_import_two_rooms_only():
    for file in (ROOT / "objectives").glob("*.py"):
        ours = {room_of(n) for n in imported(file) if n.startswith("autopeft")}
        assert ours <= {"objective", "metrics"}, file


@pytest.mark.parametrize("library", DOORS)
def test_one_library_one_door(library):
    users = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == library for name in imported(file))
    }
    assert users
    assert [u for u in sorted(users) if not u.startswith(DOORS[library])] == []


def test_the_driver_s_own_rooms_load_no_torch():
    names = ("data", "metrics", "objective", "space", "study", "sampler", "engine", "runners")
    names += ("baselines", "selection", "protocol", "result", "job", "methods", "plugins")
    code = "import sys\n" + "\n".join(f"import autopeft.{n}" for n in names)
    heavy = "{'torch', 'ray', 'timm', 'peft'}"
    code += f"\nsys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_functions_and_files_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            length = (node.end_lineno or first) - first + 1
            # The flags of `autopeft search` are one list, a line each.
            flags = ("cli_flags.py", "search_flags")
            assert length <= 60 or (file.name, node.name) == flags, node.name


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_is_unpickled_and_nothing_has_an_empty_name(file):
    assert not set(file.stem.split("_")) & NEVER
    assert not {n.split(".")[0] for n in imported(file)} & {"dill", "joblib", "cloudpickle"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr == "UnpicklingError"  # to be caught
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") == "True"
            assert given.get("allow_pickle", "False") == "False"


def test_every_package_is_in_the_wheel():
    """A list, because two folders at the root are packages of the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {f.parent.relative_to(ROOT).as_posix() for f in FILES if f.name == "__init__.py"}
    assert {f.replace("/", ".") for f in folders if f.startswith("autopeft")} <= set(listed)
