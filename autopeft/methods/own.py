"""Methods of a user's own, one Python file each: read, executed once, registered by name.

A file is executed only where a person named it: in a space's ``methods_from``, or in
``register_methods``. To workers it travels as (name, text, sha256) and is executed there from that
text, since nodes of a cluster do not see the file. What an adapter folder says about a method is
compared, never executed.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft import plugins
from autopeft.candidate import Train
from autopeft.errors import RunError, UserError
from autopeft.methods.canonical import canonical
from autopeft.methods.method import Method, Rate, Scored, checked
from autopeft.methods.registry import BUILT_IN, METHODS
from autopeft.plugins import Plugin

if TYPE_CHECKING:
    from autopeft.backbones.network import Network
    from autopeft.candidate import Candidate

Shipped = tuple[str, str, str]  # name, source text, sha256

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SECTIONS = {"method", "readout", "train"}  # first words of a study's parameter names
_PLACES = {"method", "blocks", "first_block", "last_block", "last", "modules", "options"}
_OUTER = {"v", "strata", "train", "readout", "readout_block", "readout_pool", "post", "when"}
_TAKEN = _PLACES | _OUTER | {f.name for f in fields(Train)}

_EXECUTED: dict[str, tuple[type[Method], ...]] = {}  # sha256 -> the methods of that text
_FILES: dict[str, Plugin] = {}  # method -> the file that it came from


def register_methods(*paths: str | Path) -> tuple[str, ...]:
    """Executes Python files of yours and makes their methods known, for ``load_adapter`` and more.

    Args:
        *paths: files; each defines one or more subclasses of ``autopeft.methods.Method``.

    Returns:
        The methods' names.

    Raises:
        UserError: a broken file, a file without a method, or a name that is taken.
    """
    return register_files([plugins.read_python(path) for path in paths])


def register_files(files: Sequence[Plugin]) -> tuple[str, ...]:
    """Registers the methods of files that were read; the same text is executed only once.

    A file that was edited takes the place of what it defined before.

    Raises:
        UserError: as ``register_methods``.
    """
    owner: dict[str, Plugin] = {}
    for file in files:
        for method in _methods_in(file):
            if method.name in owner:
                where, other = _line(file, method), owner[method.name].path
                what = f"method {method.name!r} is already defined in {other}"
                raise UserError(what, where, "Give one of them another name.")
            owner[method.name] = file
    for file in files:
        for method in _methods_in(file):
            METHODS[method.name], _FILES[method.name] = method, file
    return tuple(owner)


def ship(files: Sequence[Plugin]) -> tuple[Shipped, ...]:
    """What travels to workers: name, text and sha256 of each file."""
    return tuple((file.name, file.text, file.sha256) for file in files)


def receive(shipped: Sequence[Shipped]) -> None:
    """Registers what ``ship`` sent, in a worker; no file is opened.

    Raises:
        RunError: a text is not the one whose sha256 was declared.
    """
    for name, text, sha256 in shipped:
        if hashlib.sha256(text.encode()).hexdigest() != sha256:
            raise RunError(f"{name}.py reached a worker changed: its sha256 is not {sha256[:12]}")
    register_files([Plugin(name, Path(f"{name}.py"), *rest) for name, *rest in shipped])


def try_methods(files: Sequence[Plugin], network: Network) -> None:
    """Builds and runs each method of the files once, so that a mistake is found before a trial.

    Args:
        files: registered files.
        network: the backbone; stays as it is.

    Raises:
        UserError: it fails, trains another number of parameters than its formula says, or changes
            a block below its ``first_block``, where cached activations would hide the change.
    """
    import torch

    from autopeft.methods.adapted import build
    from autopeft.methods.scored import ToyScoring, has_scored, look

    facts, fix = network.facts, "autopeft.testing.check_method checks the whole contract."
    for file in files:
        for method in _methods_in(file):
            # The upper half, so that what reaches below its blocks is seen.
            raw = {"method": method.name, "blocks": max(1, facts.depth // 2)}
            with plugins.blamed([file]), torch.no_grad():
                candidate = canonical(raw, facts)
                where = next(network.model.parameters()).device
                x = torch.zeros(4, 3, facts.image_size, facts.image_size, device=where)
                x += torch.arange(4, device=where).view(4, 1, 1, 1) * 0.5
                fixed = None
                if has_scored(candidate):
                    label = torch.arange(4) % 2
                    fixed = look(candidate, ToyScoring(network, candidate, x, label, 2))
                adapted = build(network, candidate, 2, 0, 0, fixed)
                adapted.logits(x[:1])
                formula = sum(
                    method(**s.options).parameter_count(facts, s, candidate.readout)
                    for s in candidate.strata
                )
            what = ""
            if formula != adapted.adapter_params:
                count = adapted.adapter_params
                what = f"trains {count} numbers, its parameter_count says {formula}"
            first = min(map(network.place, adapted.trainable))
            if adapted.prefix_ok and first < adapted.first_block:
                place = f"block {first}" if first >= 0 else "the stem"
                what = f"changes {place}, its first_block says {adapted.first_block}"
            if what:
                raise UserError(f"method {method.name!r} {what}", _line(file, method), fix)


def origins(candidate: Candidate) -> dict[str, dict[str, str]]:
    """Method -> file name and sha256, for a candidate's methods that came from a user's file."""
    found = {s.method: _FILES[s.method] for s in candidate.strata if s.method in _FILES}
    return {m: {"file": f.path.name, "sha256": f.sha256} for m, f in found.items()}


def check_origins(
    methods: Sequence[str], saved: Mapping[str, Mapping[str, str]], where: str
) -> None:
    """Compares the methods of a saved adapter with those that are known here; executes nothing.

    Args:
        methods: the methods of its strata.
        saved: what ``origins`` said when it was saved.
        where: the folder, for errors.

    Raises:
        UserError: a method's file is needed, or the one that is loaded is another one.
    """
    for method in methods:
        then, now = saved.get(method), _FILES.get(method)
        if method in METHODS and (then is None or (now and now.sha256 == then["sha256"])):
            continue
        file = then["file"] if then else "its_file.py"
        sha256 = f" (sha256 {then['sha256'][:12]})" if then else ""
        what = f"was trained with method {method!r} of {file}{sha256}"
        fix = f'Call autopeft.register_methods("path/to/{file}") first.'
        if method not in METHODS:
            raise UserError(f"{what}, which is not loaded", where, fix)
        loaded = f"of {now.path.name} ({now.sha256[:12]})" if now else "of no file"
        raise UserError(f"{what}; the one that is loaded is {loaded}", where, fix)


def _methods_in(file: Plugin) -> tuple[type[Method], ...]:
    """The methods that a file defines, executed from the text that was hashed."""
    if file.sha256 not in _EXECUTED:
        module = plugins.execute(file)
        found = [
            value
            for value in dict.fromkeys(v for v in vars(module).values() if isinstance(v, type))
            # A class without a name is what others here are made from.
            if issubclass(value, Method)
            and value.__module__ == module.__name__
            and hasattr(value, "name")
        ]
        if not found:
            what = "defines no subclass of autopeft.methods.Method with a name"
            raise UserError(what, f"{file.path}, line 1", "See examples/own_method.py.")
        for method in found:
            _check(method, _line(file, method))
        _EXECUTED[file.sha256] = tuple(found)
    return _EXECUTED[file.sha256]


def _check(method: type[Method], where: str) -> None:
    """Refuses what would fail later and less clearly."""
    name = method.name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _SECTIONS:
        fix = "Lower-case letters, digits and _; not method, readout or train."
        raise UserError(f"{name!r} is no name for a method", where, fix)
    if name in BUILT_IN:
        raise UserError(f"method {name!r} is built in", where, "Give yours another name.")
    if not vars(method).get("__dataclass_params__", _Thawed).frozen:
        raise UserError(
            f"{method.__name__} is no frozen dataclass", where, "Write @dataclass(frozen=True)."
        )
    absent = [k for k in ("family", "paper", "summary", "rates") if not hasattr(method, k)]
    if method.placed and method.parameter_count is Method.parameter_count:
        absent.append("parameter_count")
    # A method that looks at images first has these two in the place of inject.
    looks = issubclass(method, Scored)
    for part in ("prepare", "inject_scored") if looks else ("inject",):
        unwritten = (None, _function(Scored if looks else Method, part))
        if method.placed and _function(method, part) in unwritten:
            absent.append(f"a class method {part}")
    if absent:
        fix = "See examples/own_method.py."
        raise UserError(f"{method.__name__} lacks {', '.join(absent)}", where, fix)
    rates: Any = method.rates
    plain = isinstance(rates, Mapping) and all(isinstance(r, Rate) for r in rates.values())
    if not plain or "adamw" not in rates:
        fix = 'Write rates = {"adamw": Rate(prior, low, high)}.'
        raise UserError(f"{method.__name__}.rates has no Rate for adamw", where, fix)
    _check_options(method, where)


def _check_options(method: type[Method], where: str) -> None:
    for option in fields(method):
        if option.name in _TAKEN:
            what = f"option {option.name!r} of {method.__name__} means something else in a space"
            raise UserError(what, where, "Give it another name.")
        known = "choices" in option.metadata or {"type", "low", "high"} <= option.metadata.keys()
        if not known or option.default is MISSING:
            what = f"option {option.name!r} of {method.__name__} has no range"
            fix = "Make it with integer, number, choice or flag, or mark it ClassVar."
            raise UserError(what, where, fix)
        checked(option, option.default, where)


def _function(method: type[Method], name: str) -> Any:
    """What stands behind a class method; None where it is something else."""
    return getattr(getattr(method, name), "__func__", None)


class _Thawed:
    """Stands for what ``@dataclass`` leaves on a class, where it was not used."""

    frozen = False


def _line(file: Plugin, method: type[Method]) -> str:
    """``gate.py, line 12``: where the class begins."""
    for node in ast.walk(ast.parse(file.text)):
        if isinstance(node, ast.ClassDef) and node.name == method.__name__:
            return f"{file.path}, line {node.lineno}"
    return str(file.path)
