"""What a finished run says, against what is made again from its stored predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autopeft import protocol, seals
from autopeft.answer import Answer
from autopeft.errors import UserError
from autopeft.numbers import numbers
from autopeft.progress import Screen
from autopeft.rebuild import Files, open_files, rebuild
from autopeft.report import page
from autopeft.writing import context, predictions_table, trials_table

Word = Literal["ok", "differs", "told"]
SHOWN = 20  # differences that are named one by one
_TAKEN = ("date", "log", "seconds", "versions")  # of `result.json`: nothing to make them from
_SAME = 1e-9  # relative: sums may be added up in another order on another machine


@dataclass(frozen=True)
class Check:
    """One line.

    Attributes:
        word: ``ok``, ``differs``, or ``told``: to be known, and no fault.
        what: the file or number.
        detail: what was found.
    """

    word: Word
    what: str
    detail: str = ""

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.word:8} {self.what}" + (f": {self.detail}" if self.detail else "")


def recomputed(
    folder: Path, result: Mapping[str, Any], scratch: Path, screen: Screen
) -> list[Check]:
    """Everything that is made again from the stored predictions."""
    try:
        files = open_files(folder, result, scratch)
    except Exception as error:
        return [_not_recomputed(error)]
    checks = [*_predictions(files), *_task(files)]
    try:
        answer = rebuild(files, scratch)
        with screen.bar("recomputing") as bar:
            found = json.loads(json.dumps(numbers(answer, bar), allow_nan=False))
    except Exception as error:  # whatever a changed file may lead to, it is one line
        return [*checks, _not_recomputed(error)]
    again = {**found, **{k: result[k] for k in _TAKEN if k in result}}
    checks += _compared(result, again)
    checks += _tables(files, answer)
    return [*checks, _report(folder, again)]


def _not_recomputed(error: Exception) -> Check:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    text = " ".join(str(error).split())[:300]
    return Check("differs", "result.json", f"cannot be recomputed: {kind}{text}")


def _predictions(files: Files) -> Iterator[Check]:
    """Each file of predictions against the hash that its record in the journal holds."""
    outcomes = [o for o in files.study.outcomes if o.predictions]
    names = {o.predictions for o in outcomes}
    folder = files.folder / "predictions"
    lost = sorted(str(n) for n in names if not (folder / str(n)).exists())
    wrong = seals.changed(files.folder, outcomes)
    bare = sorted(str(o.predictions) for o in outcomes if o.sha256 is None)
    yield from (Check("differs", f"predictions/{n}", "is missing") for n in lost)
    yield from (Check("differs", f"predictions/{n}", "changed since its record") for n in wrong)
    yield from (
        Check("differs", f"predictions/{n}", "its record holds no hash")
        for n in dict.fromkeys(bare)
        if n not in lost
    )
    if not lost and not wrong and not bare:
        yield Check("ok", "predictions", f"{len(names)} files are as they were recorded")
    more = sum(f.name not in names for f in folder.glob("*.npz"))
    if more:
        detail = f"{more} file(s) that no record names; nothing reads them"
        yield Check("told", "predictions", detail)


def _task(files: Files) -> Iterator[Check]:
    """The rows of ``splits.csv`` and the settings against the protocol."""
    declared, settings = files.declared, files.settings
    digest = files.task.digest
    if digest != declared["task"]["digest"]:
        detail = f"declared were the data {declared['task']['digest']}, these are {digest}"
        yield Check("differs", "splits.csv", detail)
    else:
        rows = len(files.task.paths)
        yield Check("ok", "splits.csv", f"{rows:,} rows, the declared data {digest}")
    now = protocol.digest_of(files.folder)
    if now != files.numbers["protocol"]:
        detail = f"declared was {files.numbers['protocol']}, it is {now}"
        yield Check("differs", "protocol.yaml", detail)
    else:
        yield Check("ok", "protocol.yaml", f"as declared before the first trial ({now})")
    same = ("objective", "space", "epochs", "margin", "label_fraction")
    pairs = {n: (declared[n], getattr(settings, n)) for n in same if n in declared}
    wrong = {n: pair for n, pair in pairs.items() if pair[0] != pair[1]}
    for name, (then, here) in wrong.items():
        yield Check("differs", "settings.yaml", f"{name} is {here}, declared was {then}")
    if not wrong:
        yield Check("ok", "settings.yaml", "agrees with the protocol")


def _compared(stored: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Check]:
    """Every number and word of ``result.json``."""
    wrong = list(differences(stored, found))
    for where, old, new in wrong[:SHOWN]:
        detail = f"{where}: stored {short(old)}, recomputed {short(new)}"
        yield Check("differs", "result.json", detail)
    if len(wrong) > SHOWN:
        yield Check("differs", "result.json", f"and {len(wrong) - SHOWN} more values")
    if not wrong:
        count = _leaves({k: v for k, v in stored.items() if k not in _TAKEN})
        yield Check("ok", "result.json", f"{count:,} values recomputed from stored predictions")


def differences(stored: Any, found: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Places where two plain values differ: (path, stored, found)."""
    if isinstance(stored, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*stored, *found]):
            place = f"{where}.{key}" if where else str(key)
            if key in stored and key in found:
                yield from differences(stored[key], found[key], place)
            else:
                yield place, stored.get(key, "nothing"), found.get(key, "nothing")
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for i, (a, b) in enumerate(zip(stored, found, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif not _equal(stored, found):
        yield where, stored, found


def _equal(a: Any, b: Any) -> bool:
    plain = (int, float)
    if isinstance(a, plain) and isinstance(b, plain) and bool not in (type(a), type(b)):
        return math.isclose(a, b, rel_tol=_SAME, abs_tol=1e-12)
    return type(a) is type(b) and bool(a == b)


def _leaves(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_leaves, value.values()))
    return sum(map(_leaves, value)) if isinstance(value, list) else 1


def short(value: Any) -> str:
    """A value in a line."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _tables(files: Files, answer: Answer) -> Iterator[Check]:
    """Tables for people against what they were made from."""
    plain = json.dumps(context(answer), indent=1, allow_nan=False) + "\n"
    for name, make in (
        ("predictions.csv", lambda: predictions_table(answer)),
        ("trials.csv", lambda: trials_table(answer)),
        ("task.json", lambda: plain),
    ):
        yield _same_text(files.folder / name, make)


def _same_text(path: Path, make: Callable[[], str]) -> Check:
    """A text file against what it is made of, by its first other line."""
    try:
        stored = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        return Check("differs", path.name, f"cannot be read ({type(error).__name__})")
    found = make()
    if stored == found:
        return Check("ok", path.name, f"{len(found.splitlines()):,} lines, made again")
    old, new = stored.splitlines(), found.splitlines()
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    if place is None:
        return Check("differs", path.name, f"has {len(old):,} lines, made again {len(new):,}")
    return Check("differs", path.name, f"line {place + 1} is not what the stored predictions give")


def _report(folder: Path, found: Mapping[str, Any]) -> Check:
    """The page against one that is made from the recomputed numbers."""
    return _same_text(folder / "report.html", lambda: page(folder, found))
