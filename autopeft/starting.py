"""What ``--init-adapter`` means for a run as a whole: which space is searched, what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.candidate import Candidate
from autopeft.errors import UserError
from autopeft.methods.registry import METHODS
from autopeft.ranges import Field, read_field
from autopeft.sections import TRAIN, Shape
from autopeft.seen import check_seen
from autopeft.space import Space

if TYPE_CHECKING:
    import optuna

    from autopeft.data.task import Task
    from autopeft.init_adapter import Start


@dataclass(frozen=True)
class Continued(Space):
    """A space with only the training fields left: every candidate is one adapter, trained on.

    Attributes:
        strata: the adapter's, as plain data.
        at: its readout, as plain data.
    """

    strata: Sequence[Mapping[str, Any]] = ()
    at: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, trial: optuna.trial.BaseTrial, facts: Shape) -> dict[str, Any]:
        """As ``Space.draw``; everything but the training is the adapter's."""
        found = super().draw(trial, facts)
        return {**found, "strata": list(self.strata), "readout": dict(self.at)}


def continued(space: Space, candidate: Candidate, head: bool) -> Continued:
    """The space of a run that goes on with an earlier adapter.

    What is left of ``space`` is its section ``train`` and the training fields that it has for the
    adapter's methods. A learning rate that it lacks has the range of these methods. The
    adapter's own training is tried first, where it lies inside.

    Args:
        space: what the user asked for.
        candidate: the earlier adapter.
        head: whether its head is taken over, so that there is no other to start from.
    """
    methods = list(dict.fromkeys(s.method for s in candidate.strata))
    train = {f.key: f for f in space.train if not (head and f.key == "head_init")}
    for _, method, section in space.sections:
        if method in methods:
            train |= {f.key: f for f in section if f.key in TRAIN}
    if "lr" not in train:
        train["lr"] = _rate(methods, candidate.train.optimizer, space.where)
    was = {f.name: getattr(candidate.train, f.key) for f in train.values()}
    first = {f.name: was[f.name] for f in train.values() if f.contains(was[f.name])}
    plain = candidate.to_dict()
    return Continued(
        space.name,
        space.where,
        space.sha256,
        {},
        (),
        tuple(train.values()),
        (first,) if first else (),
        space.plugins,
        post=space.post,
        strata=plain["strata"],
        at=plain["readout"],
    )


def _rate(methods: Sequence[str], optimizer: str, where: str) -> Field:
    rates = [METHODS[m].rates for m in methods]
    found = [r[optimizer] for r in rates if optimizer in r] or [r["adamw"] for r in rates]
    low, high = min(r.low for r in found), max(r.high for r in found)
    spec = {"type": "float", "low": low, "high": high, "log": True}
    return read_field("train.lr", spec, f"{where}, train.lr")


def space_of(start: Start, space: Space) -> Space:
    """The space that a run with an init adapter searches."""
    if start.mode != "naive":
        return space
    assert start.candidate is not None
    return continued(space, start.candidate, start.head)


def check_bound(start: Start, space: Space) -> str:
    """Says which methods ``orthogonal`` does not bind; empty where it binds all.

    Raises:
        UserError: it would bind none.
    """
    from autopeft.init_adapter import BOUND

    if start.mode != "orthogonal":
        return ""
    used = dict.fromkeys(method for _, method, _ in space.sections)
    free = [m for m in used if m not in BOUND]
    if len(free) == len(used):
        what = f"{space.name} has no method that could be kept orthogonal"
        raise UserError(what, "--init-mode orthogonal", f"They are: {', '.join(BOUND)}.")
    return f"not kept orthogonal, as they train no A: {', '.join(free)}" if free else ""


def notes(start: Start, task: Task, folder: str, folds: bool = False) -> tuple[str, ...]:
    """What readers must know of the earlier adapter: what it is, and whom it was trained on.

    Args:
        start: the earlier adapter.
        task: of this run.
        folder: of the earlier adapter.
        folds: whether train patients judge too.

    Raises:
        UserError: on patients whom this run means to keep unseen.
    """
    return tuple(filter(None, (note(start), check_seen(Path(folder), task, folds))))


def note(start: Start) -> str:
    """What a reader of the report must know: no path, as reports are shown to others."""
    what = f"{title(start)} (sha256 {start.sha256[:12]})"
    if start.mode == "naive":
        head = "its head included" if start.head else "with a fresh head"
        return (
            f"every trial went on from an earlier adapter, {what}, {head}; baselines started "
            "afresh on the backbone as it is, unless they are that same adapter"
        )
    kept = ""
    if start.mode == "orthogonal":
        kept = "; LoRA and its relatives were kept orthogonal to it, the baseline too"
    return f"every model, baselines too, is trained on a backbone that has {what} folded in{kept}"


def title(start: Start) -> str:
    """The earlier adapter for people."""
    assert start.candidate is not None
    return start.candidate.title


def declared(start: Start) -> dict[str, str]:
    """What ``protocol.yaml`` says of it."""
    return {"mode": start.mode, "sha256": start.sha256, "is": title(start)}


def placed(start: Start) -> dict[str, Any]:
    """The fields of a ``Setup``."""
    return {
        "init_adapter": str(start.folder.resolve()),
        "init_mode": start.mode,
        "init_sha256": start.sha256,
    }


def opened(folder: str | None, mode: str, network: Any) -> Start | None:
    """The start that the settings name; None without one.

    Raises:
        UserError: see ``init_adapter.open_start``.
    """
    if folder is None:
        return None
    from autopeft.init_adapter import open_start

    return open_start(Path(folder), mode, network)
