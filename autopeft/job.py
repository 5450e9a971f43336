"""Job and Outcome: plain data that crosses processes. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autopeft.candidate import Candidate
from autopeft.evaluation import Cost, Kind


@dataclass(frozen=True)
class Rows:
    """Rows of one split, column by column.

    Attributes:
        path: image paths [N] relative to the task's root.
        index: row numbers [N] in the image store (the order of the whole task).
        patient: patient ids [N] (str).
        label: 0, 1 or NaN = ignore, float32 [N, C]; one-hot for multiclass. None in predict and
            test jobs: the driver adds the targets.
        groups: attribute -> group names [N] (str); ``"unknown"`` where missing.
    """

    path: npt.NDArray[Any]
    index: npt.NDArray[np.int64]
    patient: npt.NDArray[Any]
    label: npt.NDArray[np.float32] | None
    groups: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.path)

    def take(self, rows: npt.NDArray[Any]) -> Rows:
        """Some of the rows (index or boolean mask [N])."""
        label = None if self.label is None else self.label[rows]
        groups = {k: v[rows] for k, v in self.groups.items()}
        return Rows(self.path[rows], self.index[rows], self.patient[rows], label, groups)

    def blind(self) -> Rows:
        """The same rows without labels and groups, as predict and test jobs carry them."""
        return Rows(self.path, self.index, self.patient, None, {})


@dataclass(frozen=True)
class Setup:
    """All that affects a worker's values, sent once per worker. Its digest travels in each job.

    Attributes:
        kind: the task's kind.
        classes: names of the C labels.
        backbone: timm name.
        weights: path of a weights file, or None (the hub's or the wheel's own).
        weights_sha256: hash of the backbone's tensors; a worker with another one refuses.
        image_size: side in pixels.
        fit: how images became square.
        images: path of the decoded image store (``autopeft.training.images``).
        cache: folder for frozen features.
        run_dir: where states and predictions are written.
        rows: ``train`` and ``search``, with memorization also ``probe`` (never ``confirm`` or
            ``test``).
        epochs: the length of the full schedule.
        batch_size: images a step.
        views: augmented views an image (1 = plain only, 0 = new at each epoch).
        precision: number format of the frozen network, decided once by the driver.
        threads: torch threads of a worker.
        seed: the settings' ``--seed``.
        offline: never ask a hub.
        cache_bytes: what frozen states may take in ``cache``; 0 = none are kept.
        plugins: methods of the user's own, each (name, source text, sha256): nodes of a cluster
            do not see the user's files.
        simulated: parameters of a simulated worker (``autopeft.simulated``); None = real training.
        device: on which workers train, decided once by the driver.
        micro_batch: images a forward pass that memory allows; 0 = ``batch_size``. A job that ran
            out of memory asks for fewer.
        init_adapter: folder of an earlier adapter that trainings start from, or None.
        init_mode: ``merged``, ``naive`` or ``orthogonal``; empty without one.
        init_sha256: hash of its files; a worker that finds others refuses.
    """

    kind: Kind
    classes: tuple[str, ...]
    backbone: str
    weights: str | None
    weights_sha256: str
    image_size: int
    fit: str
    images: str
    cache: str
    run_dir: str
    rows: Mapping[str, Rows]
    epochs: int
    batch_size: int
    views: int
    precision: Literal["fp32", "bf16", "fp16"]
    threads: int
    seed: int
    offline: bool = False
    cache_bytes: int = 0
    plugins: tuple[tuple[str, str, str], ...] = ()
    simulated: Mapping[str, float] | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    micro_batch: int = 0
    init_adapter: str | None = None
    init_mode: str = ""
    init_sha256: str = ""

    def digest(self) -> str:
        """Hash over everything that affects values (not where files lie, or what fits where)."""
        places = ("rows", "weights", "images", "cache", "run_dir", "offline", "cache_bytes")
        left_out = (*places, "micro_batch", "init_adapter")
        plain = {k: v for k, v in vars(self).items() if k not in left_out}
        if self.device == "cpu":  # as in runs that were started before there was a choice
            del plain["device"]
        if not self.init_mode:  # likewise
            del plain["init_mode"], plain["init_sha256"]
        h = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        for split in sorted(self.rows):
            rows = self.rows[split]
            h.update(split.encode())
            h.update("\0".join(map(str, rows.path)).encode())
            h.update("\0".join(map(str, rows.patient)).encode())
            h.update(rows.label.tobytes() if rows.label is not None else b"")
            for name in sorted(rows.groups):
                h.update("\0".join([name, *map(str, rows.groups[name])]).encode())
        return h.hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """What a worker is asked.

    ``rung`` trains ``candidate`` from epoch ``start`` to ``stop`` (from ``state`` when start > 0),
    writes a state and predicts the search rows; for ``part="fold:i"`` no state, and the held-out
    fold's rows (see ``autopeft.parts.scored_rows``).
    ``readouts`` scores linear probes at every readout by cross-validation inside train, ``null``
    train and probe patients by their neighbors at the candidate's readout, ``simple`` the rows it
    carries by what needs no fine-tuning (``autopeft.simple``).
    ``predict`` and ``test`` load the saved adapter ``state`` in fp32 and score ``rows``.

    Attributes:
        kind: see above.
        setup: digest of the setup it belongs to.
        candidate: the candidate, or None for ``readouts``.
        repeat: 0 in the search, 1..S at confirmation.
        part: training patients: ``all``, ``fold:i``, ``half:i`` (see ``autopeft.parts``).
        start: epochs already trained.
        stop: epochs trained at the end.
        state: name of a folder below ``run_dir/states``.
        rows: rows without labels, for ``predict``, ``test`` and ``simple``.
        split: what the rows are called in the file name of the predictions.
        micro_batch: images a forward pass; 0 = the whole batch. Halved after out-of-memory.
    """

    kind: Literal["rung", "readouts", "null", "simple", "predict", "test"]
    setup: str
    candidate: Candidate | None = None
    repeat: int = 0
    part: str = "all"
    start: int = 0
    stop: int = 0
    state: str | None = None
    rows: Rows | None = None
    split: str = "search"
    micro_batch: int = 0

    @property
    def key(self) -> tuple[str, int, str]:
        """(fingerprint, repeat, part): one training."""
        return (self.candidate.fingerprint if self.candidate else "", self.repeat, self.part)

    @property
    def name(self) -> str:
        """Name of what the job writes below ``states`` and ``predictions``."""
        fingerprint, repeat, part = self.key
        kind = "-simple" if self.kind == "simple" else ""
        where = "" if self.kind == "rung" else f"{kind}-{self.split}"
        return f"{fingerprint or 'readouts'}-{repeat}-{part.replace(':', '')}-{self.stop}{where}"


def total_cost(outcomes: Sequence[Outcome]) -> Cost | None:
    """Cost of one training: over its stretches time and images add up, sizes do not.

    Of several folds it is the first fold's sizes and the mean time: what one of them cost.
    """
    done = [outcome for outcome in outcomes if outcome.cost is not None]
    costs = [outcome.cost for outcome in done if outcome.cost is not None]
    if not costs:
        return None
    trainings = len({outcome.part for outcome in done})
    seconds = round(sum(cost.train_seconds for cost in costs) / trainings, 3)
    images = round(sum(cost.images for cost in costs) / trainings)
    sizes = [c for o, c in zip(done, costs, strict=True) if o.part == done[0].part][-1]
    return replace(sizes, train_seconds=seconds, images=images)


@dataclass(frozen=True)
class Outcome:
    """What a worker answers.

    Attributes:
        status: ``ok``, ``nan`` (loss or scores not finite), ``oom`` or ``error``.
        reason: one line when not ok.
        epoch: epochs trained.
        predictions: file name below ``run_dir/predictions`` (npz with ``score`` [N, C], and
            ``train`` and ``probe`` where memorization is measured).
        cost: what it cost.
        state: folder name below ``run_dir/states``, loadable as an adapter.
        train_loss: mean training loss of the last epoch, or None.
        extra: plain data of ``readouts`` jobs.
        part: which patients it was trained on, as in the job.
        sha256: of the file of predictions, taken by the driver when it recorded the outcome.
    """

    status: Literal["ok", "nan", "oom", "error"]
    reason: str = ""
    epoch: int = 0
    predictions: str | None = None
    cost: Cost | None = None
    state: str | None = None
    train_loss: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    part: str = "all"
    sha256: str | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the journal."""
        return asdict(self)

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Outcome:
        """Reads back ``to_dict``."""
        cost = Cost(**value["cost"]) if value["cost"] else None
        return Outcome(**{**value, "cost": cost})
