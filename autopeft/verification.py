"""``autopeft verify``: every number of a finished run, made again from what it stored.

Each check is one line: what agrees, or where it differs, with the stored and the recomputed value.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft import chain, ledger, protocol, recount, seals
from autopeft.comparison import SHOWN, Check, recomputed, short
from autopeft.errors import UserError
from autopeft.progress import Screen
from autopeft.result import load_result
from autopeft.version import __version__
from autopeft.writing import numbers_hash


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        folder: of the run.
        checks: one a line, in order.
    """

    folder: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return all(check.word != "differs" for check in self.checks)

    @property
    def summary(self) -> str:
        """The last line, for people."""
        wrong = sum(check.word == "differs" for check in self.checks)
        if not wrong:
            return "all that can be recomputed agrees"
        return f"{wrong} {'check differs' if wrong == 1 else 'checks differ'}"


def verify(name: str | Path, runs_dir: str | Path = "runs", quiet: bool = True) -> Verification:
    """Recomputes a finished run's numbers from its stored predictions and compares.

    Nothing is trained, no image and no backbone is needed, and nothing is written into the run.

    Args:
        name: of the run, below ``runs_dir``.
        runs_dir: folder of all runs; the ledger lies in it.
        quiet: no progress on stderr.

    Raises:
        UserError: there is no such run, it is not finished, or it recorded no hashes.
    """
    folder = Path(runs_dir) / name
    result = load_result(folder).numbers
    if "log" not in result:
        raise UserError(
            "was written by a version of autopeft that recorded no hashes",
            str(folder / "result.json"),
            "Verify it with that version, or run the search again under a new --name.",
        )
    checks = [
        *_guarded(protocol.LOG, _log(folder, result)),
        *_guarded("files", _files(folder, result)),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        checks += recomputed(folder, result, Path(scratch), Screen(quiet))
    checks += _recounts(folder, result)
    checks += _guarded(ledger.NAME, _ledger(folder, result))
    checks += _guarded("result.json", _told(result))
    return Verification(folder, tuple(checks))


def _guarded(what: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Checks as far as they get: a damaged line may hold anything, and is one line here."""
    try:
        yield from checks
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        yield Check("differs", what, f"cannot be checked ({type(error).__name__}: {text})")


# ---- the log and the files' hashes --------------------------------------------------------------


def _log(folder: Path, result: Mapping[str, Any]) -> Iterator[Check]:
    """The chain of lines, its head, and the order in which things happened."""
    try:
        found = chain.check(folder / protocol.LOG)
    except OSError as error:
        yield Check("differs", protocol.LOG, f"cannot be read ({error.strerror})")
        return
    faults, named = list(found.faults), result["log"]
    if not faults and (found.lines, found.head) != (named.get("lines"), named.get("head")):
        faults.append(
            f"it has {found.lines} lines and ends with {found.head[:12]}; result.json names "
            f"{named.get('lines')} lines and {str(named.get('head'))[:12]}"
        )
    if found.unfinished:
        faults.append("it ends inside a line")
    yield from (Check("differs", protocol.LOG, fault) for fault in faults)
    told = _story(protocol.events(folder), result)
    yield from (Check("differs", protocol.LOG, fault) for fault in told)
    if not faults and not told:
        torn = f"; {found.torn} of them torn by a killed driver" if found.torn else ""
        detail = f"{found.lines} lines, each with the hash of the one before{torn}"
        yield Check("ok", protocol.LOG, detail)


def _story(events: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[str]:
    """What the log says against what the result says.

    A run that is killed before test is opened may go on with more trials and choose again: what
    counts is the last choice before test, and every one after it.
    """
    faults = []
    names = [e.get("event") for e in events]
    opened = names.index("test_opened") if "test_opened" in names else -1
    started = [e for e in events if e.get("event") == "started"]
    before, after = (
        [e for e in some if e.get("event") == "chosen"]
        for some in (events[: max(opened, 0)], events[max(opened, 0) :])
    )
    chosen = [*before[-1:], *after]
    if started and started[0].get("recorded"):
        faults.append(f"it begins with {started[0]['recorded']} trials already in the journal")
    if {e.get("protocol") for e in started} != {result["protocol"]}:
        faults.append(f"a start declared another protocol than {result['protocol']}")
    won = {"winner": result["best"]["fingerprint"], "against": result["contrast"]["baseline"]}
    if not chosen or any({k: e.get(k) for k in won} != won for e in chosen):
        faults.append(f"what was chosen is not the winner of result.json against {won['against']}")
    if not before:
        faults.append("test was opened before the winner was chosen, or never")
    return faults


def _files(folder: Path, result: Mapping[str, Any]) -> Iterator[Check]:
    """Every file against the hash that was taken when it was written."""
    ends = [e for e in protocol.events(folder) if e.get("event") == "finished"]
    if not ends:
        yield Check("differs", protocol.LOG, "it never says finished: files cannot be checked")
        return
    end, now, wrong = ends[-1], seals.written(folder), 0
    for name, sha256 in end["files"].items():
        if now.get(name) != sha256:
            wrong += 1
            fault = "changed since it was written" if name in now else "is missing"
            yield Check("differs", name, fault)
    for name in sorted(now.keys() - end["files"].keys()):
        wrong += 1
        yield Check("differs", name, "was not written by the run")
    if not wrong:
        yield Check("ok", "files", f"{len(now)} files are as they were written")
    if numbers_hash(result) != end["numbers"]:
        yield Check("differs", "result.json", f"changed since {protocol.LOG} took its hash")
    if end["verdict"] != result["verdict"]:
        yield Check("differs", "verdict", f"{protocol.LOG} says: {end['verdict']}")
    yield from _journal(folder, end["journal"])


def _journal(folder: Path, seal: dict[str, Any]) -> Iterator[Check]:
    try:
        same = seals.journal_holds(folder, seal)
        added = (folder / "study.journal").stat().st_size - seal["bytes"]
    except OSError as error:
        yield Check("differs", "study.journal", f"cannot be read ({error.strerror})")
        return
    if not same:
        yield Check("differs", "study.journal", "changed since the run ended")
    elif added:
        yield Check("told", "study.journal", f"{added} bytes were added since the run ended")
    else:
        yield Check("ok", "study.journal", "as at the run's end")


# ---- a second count, and the ledger -------------------------------------------------------------


def _recounts(folder: Path, result: Mapping[str, Any]) -> Iterator[Check]:
    """Core numbers by other code."""
    for what, count in (
        ("AUROCs by scikit-learn", recount.aurocs),
        ("thresholds by sorting", recount.thresholds),
        ("patients, images and trials by counting", recount.counts),
        ("words by the declared rule", recount.words),
    ):
        try:
            found = count(result, folder)
        except Exception as error:  # a changed table may be anything
            text = " ".join(str(error).split())[:200]
            yield Check("differs", what, f"cannot be counted ({type(error).__name__}: {text})")
            continue
        for d in found.differences[:SHOWN]:
            detail = f"{d.where}: stored {short(d.stored)}, counted {short(d.found)}"
            yield Check("differs", what, detail)
        if not found.differences:
            yield Check("ok", what, f"{found.counted} agree")


def _ledger(folder: Path, result: Mapping[str, Any]) -> Iterator[Check]:
    """The look at the test patients, as the ledger beside the run counts it."""
    looks = [e for e in protocol.events(folder) if e.get("event") == "look"]
    path = folder.parent / ledger.NAME
    if not looks:
        yield Check("differs", ledger.NAME, f"{protocol.LOG} names no look at the test patients")
        return
    if not path.exists():
        yield Check("told", ledger.NAME, "is not beside the run: its look cannot be checked")
        return
    faults = chain.check(path).faults
    yield from (Check("differs", ledger.NAME, fault) for fault in faults)
    found = ledger.number_of(folder.parent, str(looks[-1].get("entry")))
    stored = (result["look"], result["looks"]["unknown"])
    others = {
        str(e.get("split")): ledger.number_of(folder.parent, str(e.get("entry")))
        for e in protocol.events(folder)
        if e.get("event") == "external_look"
    }
    if found is None or None in others.values():
        yield Check("differs", ledger.NAME, "has no whole line of this run")
    elif found != stored:
        detail = f"result.json says look {stored[0]}, the ledger look {found[0]}"
        yield Check("differs", ledger.NAME, detail)
    elif result["external_looks"] != {name: look[0] for name, look in others.items() if look}:
        yield Check("differs", ledger.NAME, "result.json counts other looks at external checks")
    elif not faults:
        yield Check("ok", ledger.NAME, f"look {found[0]}")


def _told(result: Mapping[str, Any]) -> Iterator[Check]:
    """What no stored file can bear out."""
    yield Check("told", "not recomputed", "seconds, date and versions: nothing to make them from")
    then = result["versions"].get("autopeft")
    if then != __version__:
        detail = f"the run is of version {then}, this is {__version__}: what changed may differ"
        yield Check("told", "autopeft", detail)
