"""The ledger of all runs in a folder: whose images have been looked at as test patients before.

Rule: the look of a run is 1 + the number of earlier runs whose test patients share at least one
image with its own, or, in a data set that is known by its name, one patient. An image is known by
the patient's id and its file name together, a patient by data set and id; what is written down is
six bytes of an HMAC, with a key that lies outside (``secret``): two hospitals that both count
patients from 1 are two, and the ledger tells nobody who was looked at.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft import chain, secret
from autopeft.files import lock

NAME = "test_ledger.jsonl"
_WIDTH = 6  # bytes of a mark: two sets of 30,000 share one by chance once in 300,000 times

Marks = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Look:
    """A look at test patients, as the ledger has it.

    Attributes:
        number: 1 for the first run that looks at these patients.
        patients: how many there are.
        seen: of these, whom an earlier run has looked at.
        unknown: earlier looks that were entered with another key, so that nobody can tell.
        note: what is to be known of the key; empty where all is well.
        entry: what the run's line is found by.
        line: its number in the ledger.
    """

    number: int = 0
    patients: int = 0
    seen: int = 0
    unknown: int = 0
    note: str = ""
    entry: str = ""
    line: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For ``result.json``."""
        return {k: v for k, v in asdict(self).items() if k not in ("entry", "line")}

    @property
    def words(self) -> str:
        """What a user has to know of it in one line; empty for a plain first look."""
        said = []
        if self.number > 1:
            share = f"{self.seen:,} of the {self.patients:,} test patients"
            runs = "1 earlier run" if self.number == 2 else f"{self.number - 1} earlier runs"
            said.append(f"look {self.number}: {share} were looked at by {runs} before")
        if self.unknown:
            said.append(
                f"{self.unknown} earlier look(s) in {NAME} were entered with another key (another "
                "user or machine, or the key was lost): whether they were at these patients "
                "cannot be told"
            )
        if self.note:
            said.append(f"{self.note}: later runs will not know this look again")
        return "; ".join(said)


def enter(
    runs_dir: Path,
    patients: Sequence[Any],
    paths: Sequence[Any],
    run: str,
    entry: str,
    source: str = "",
    whose: str = "",
) -> Look:
    """Enters a look at test patients, once for each entry.

    Args:
        runs_dir: folder of all runs; the ledger lies in it.
        patients: patient ids [N] of the test images.
        paths: their paths [N]; only the file names are used.
        run: the run's name, to be read by people.
        entry: made once for each journal: the same run looks once, however often it is resumed,
            and a deleted run that is started again looks again.
        source: where ids are not those of patients: what made them up.
        whose: the data set whose ids they are, where its name says so; such a patient is known
            by the id alone, whatever the images.
    """
    key = secret.key()
    marks, unit = _marks(key, patients, paths, source, whose)
    own = np.unique(marks)
    path = Path(runs_dir) / NAME
    with lock(path.with_name(".test_ledger.lock"), wait=True):
        lines = chain.read(path)
        place = next((i for i, e in enumerate(lines) if e.get("entry") == entry), len(lines))
        if place < len(lines) and (known := _again(lines[:place], lines[place], key)):
            return known
        touched, others, unknown = _compared(lines[:place], key.name, own)
        seen = np.isin(marks, np.concatenate([np.empty(0, np.uint64), *others.values()])).any(0)
        look = Look(
            1 + touched, len(np.unique(unit)), len(np.unique(unit[seen])), unknown, key.note,
            entry, lines[place].get("seq", 0) if place < len(lines) else 0,
        )  # fmt: skip
        if place == len(lines):
            chain.append(path, _line(key.name, own, others, look, run))
            look = Look(**{**asdict(look), "line": chain.read(path)[-1]["seq"]})
    return look


def _again(
    earlier: Sequence[Mapping[str, Any]], mine: Mapping[str, Any], key: secret.Key
) -> Look | None:
    """The look as its line has it, whatever the key is now; None where the line is damaged."""
    told = [mine.get(name) for name in ("look", "patients", "seen", "seq")]
    if not all(isinstance(value, int) for value in told):
        return None
    number, patients, seen, line = (int(value or 0) for value in told)
    unknown = _compared(earlier, str(mine.get("key")), np.empty(0, np.uint64))[2]
    lost = "" if mine.get("key") == key.name else "it was entered with a key that is not here now"
    entry = str(mine.get("entry"))
    return Look(number, patients, seen, unknown, key.note or lost, entry, line)


def knows(
    runs_dir: Path,
    patients: Sequence[Any],
    paths: Sequence[Any],
    source: str = "",
    whose: str = "",
) -> bool:
    """Whether any run in the folder has looked at one of these as a test image or patient.

    Args:
        runs_dir: as in ``enter``, and so are the other arguments.
        patients: patient ids [N].
        paths: their paths [N].
        source: where ids are not those of patients: what made them up.
        whose: the data set whose ids they are, where its name says so.
    """
    if not (path := Path(runs_dir) / NAME).exists():
        return False
    key = secret.key()
    sets = _sets([e for e in chain.read(path) if e.get("key") == key.name])
    own, _ = _marks(key, patients, paths, source, whose)
    return any(bool(np.isin(marks, own).any()) for marks in sets.values())


def number_of(runs_dir: Path, entry: str) -> tuple[int, int] | None:
    """The look and the unknown looks that the ledger gives for an entry; it needs no key.

    Returns:
        None where the ledger has no such entry, or not its marks any more.
    """
    lines = chain.read(Path(runs_dir) / NAME)
    place = next((i for i, e in enumerate(lines) if e.get("entry") == entry), None)
    if place is None:
        return None
    mine = lines[place]
    own = _sets(lines).get(str(mine.get("set")))
    if own is None:
        return None
    touched, _, unknown = _compared(lines[:place], str(mine.get("key")), own)
    return 1 + touched, unknown


def _compared(
    earlier: Sequence[Mapping[str, Any]], key: str, own: Marks
) -> tuple[int, dict[str, Marks], int]:
    """Earlier lines against some marks.

    Returns:
        How many runs have one of the marks; the sets of marks by name; and how many runs' marks
        cannot be compared: another key, or somebody has damaged the ledger.
    """
    sets = _sets(e for e in earlier if e.get("key") == key)
    known = [e for e in earlier if e.get("key") == key and e.get("set") in sets]
    hit = {name for name, marks in sets.items() if np.isin(marks, own).any()}
    touched = {e.get("entry") for e in known if e["set"] in hit}
    told = {e.get("entry") for e in known}
    return len(touched), sets, len({e.get("entry") for e in earlier} - told)


def _line(
    key: str, marks: Marks, sets: Mapping[str, Marks], look: Look, run: str
) -> dict[str, Any]:
    """What is written: the marks themselves only where no earlier line has the same."""
    packed = _packed(marks)
    name = _name(packed)
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run,
        "entry": look.entry,
        "look": look.number,
        "patients": look.patients,
        "seen": look.seen,
        "key": key,
        "set": name,
    }
    if name not in sets:
        line["marks"] = base64.b64encode(packed).decode()
    return line


def _marks(
    key: secret.Key, patients: Sequence[Any], paths: Sequence[Any], source: str, whose: str
) -> tuple[Marks, npt.NDArray[np.intp]]:
    """Marks [1 or 2, N] of each image and, where ``whose`` names them, of its patient; and the
    number [N] of that patient."""
    ids = [str(p) for p in patients]
    names = [str(p).replace("\\", "/").rpartition("/")[2] for p in paths]
    each = [[key.mark(source, i, n) for i, n in zip(ids, names, strict=True)]]
    if whose:
        each.append([key.mark("patient of", whose, i) for i in ids])
    _, unit = np.unique(np.array(ids, np.str_), return_inverse=True)
    return np.stack([_unpacked(b"".join(marks)) for marks in each]), unit


def _sets(lines: Iterable[Mapping[str, Any]]) -> dict[str, Marks]:
    """Name of a set -> its marks, as far as they are what their name says."""
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            packed = base64.b64decode(line.get("marks") or "", validate=True)
            if packed and _name(packed) == line.get("set"):
                found[_name(packed)] = _unpacked(packed)
    return found


def _name(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()[:32]


def _packed(marks: Marks) -> bytes:
    return marks.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :_WIDTH].tobytes()


def _unpacked(raw: bytes) -> Marks:
    wide = np.zeros((len(raw) // _WIDTH, 8), np.uint8)
    wide[:, :_WIDTH] = np.frombuffer(raw, np.uint8).reshape(-1, _WIDTH)
    return wide.reshape(-1).view("<u8").astype(np.uint64)
