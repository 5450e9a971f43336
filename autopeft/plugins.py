"""Finds a search space, an objective or a method's file: built-ins and users' files, one door.

A file is executed only when it was asked for by name. What was loaded never crosses a process
border: the other side looks the name up again, or executes the same text.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from autopeft.errors import UserError, nearest

PluginKind = Literal["objectives", "search_spaces"]
_SUFFIX = {"objectives": ".py", "search_spaces": ".yaml"}
_FLAG = {"objectives": "--objective", "search_spaces": "--space"}


@dataclass(frozen=True)
class Plugin:
    """One plug-in file, read once.

    Attributes:
        name: file name without its ending.
        path: where it lies.
        text: its whole content, saved with the run.
        sha256: of the file's bytes.
    """

    name: str
    path: Path
    text: str
    sha256: str


def folder(kind: PluginKind) -> Path:
    """Folder of the built-in plug-ins: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / kind
    return inside if inside.is_dir() else inside.parent.parent / kind


def names(kind: PluginKind) -> tuple[str, ...]:
    """Names of the built-in plug-ins, sorted."""
    found = folder(kind).glob(f"*{_SUFFIX[kind]}")
    return tuple(sorted(path.stem for path in found if not path.stem.startswith("_")))


def find(kind: PluginKind, name_or_path: str) -> Plugin:
    """Looks a plug-in up.

    Args:
        kind: ``objectives`` or ``search_spaces``.
        name_or_path: a built-in's name, or a path: anything with a ``/`` or the kind's ending.

    Raises:
        UserError: no such name (the nearest is offered), no such file, or not UTF-8 text.
    """
    suffix = _SUFFIX[kind]
    is_path = "/" in name_or_path or Path(name_or_path).suffix in (suffix, ".py", ".yml")
    if not is_path:
        if name_or_path not in names(kind):
            raise UserError(
                f"there is no {_word(kind)} {name_or_path!r}",
                _FLAG[kind],
                f"{nearest(name_or_path, names(kind))}; or give a file such as ./mine{suffix}.",
            )
        return _read(kind, folder(kind) / f"{name_or_path}{suffix}")
    return _read(kind, Path(name_or_path).expanduser())


def execute(plugin: Plugin) -> ModuleType:
    """Runs a Python plug-in as a module of its own, under a name that can hide no other module.

    Raises:
        UserError: the file failed; one line that names file and line.
    """
    key = hashlib.sha256(f"{plugin.path}\0{plugin.text}".encode()).hexdigest()[:12]
    module = ModuleType(f"autopeft_plugin_{plugin.name}_{key}")
    module.__file__ = str(plugin.path)
    # A dataclass in the user's file looks its own module up while it is being made.
    sys.modules[module.__name__] = module
    try:
        # Compiled from the text that was hashed: what is saved with the run is what ran.
        exec(compile(plugin.text, str(plugin.path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(" ".join(what.split()), place(error, str(plugin.path))) from error
    return module


@contextmanager
def blamed(plugins: Sequence[Plugin]) -> Iterator[None]:
    """Names file and line where a user's Python file fails later, when what it defines is called.

    Raises:
        UserError: in place of any other exception that passed through one of the files.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for plugin in plugins:
            where = place(error, str(plugin.path))
            if where != str(plugin.path):
                what = " ".join(f"{type(error).__name__}: {error}".split())
                raise UserError(what, where) from error
        raise


def read_python(path: str | Path) -> Plugin:
    """A user's Python file, read and not executed.

    Raises:
        UserError: no such file, not Python by its ending, or not UTF-8 text.
    """
    path = Path(path).expanduser()
    if path.suffix != ".py":
        raise UserError("is no .py file", str(path), "Name a Python file such as ./gate.py.")
    return _plugin(path, "file", "Check the path.")


def place(error: BaseException, file: str) -> str:
    """``mine.py, line 12``: where in the user's file it went wrong."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{file}, line {lines[-1]}" if lines else file


def _read(kind: PluginKind, path: Path) -> Plugin:
    suffix = _SUFFIX[kind]
    allowed = (suffix, ".yml") if suffix == ".yaml" else (suffix,)
    if path.suffix not in allowed:
        raise UserError(f"{str(path)!r} is no {suffix} file", _FLAG[kind], f"Use {suffix}.")
    fix = f"Check the path, or use a built-in: {', '.join(names(kind))}."
    return _plugin(path, _word(kind), fix)


def _plugin(path: Path, word: str, fix: str) -> Plugin:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise UserError(f"the {word} cannot be read ({error.strerror})", str(path), fix) from None
    except UnicodeDecodeError:
        raise UserError(f"the {word} is not UTF-8 text", str(path)) from None
    return Plugin(path.stem, path, text, hashlib.sha256(data).hexdigest())


def _word(kind: PluginKind) -> str:
    return "objective" if kind == "objectives" else "search space"
