"""Where the trainings of a run start: ``--init-adapter``, see docs/init_adapter.md.

``merged``      the earlier adapter is folded into the backbone; all candidates are built there.
``naive``       candidates with its methods, places and readout go on from its trained values.
``orthogonal``  merged, and what a LoRA candidate reads stays orthogonal to what it read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autopeft.adapter import Model, folded, load_adapter
from autopeft.adapter_files import INIT, OURS, adapter_hash, copy_adapter, read_json
from autopeft.backbones.facts import Facts
from autopeft.backbones.network import Network
from autopeft.candidate import Candidate
from autopeft.errors import UserError
from autopeft.files import new_folder
from autopeft.job import Setup
from autopeft.methods.adapted import Adapted

# Weight of the penalty: what O-LoRA's published runs use most (lambda_1 of 0.5).
PENALTY = 0.5
# Methods whose trained A [r, fan in] is what they read from a layer's input.
BOUND = ("lora", "adalora", "lora_qv", "pego", "spafit")
_FACTOR = re.compile(r"(.+)\.(?:lora_A(?:\.weight)?|lora_qv_a[qv]|pego_a|spafit_a|lora_b_only_a)")
_SMALL = 1e-6  # singular values below this share of the largest count as zero


@dataclass(frozen=True)
class Start:
    """What the trainings of a run start from.

    Attributes:
        network: the backbone that candidates are built on.
        mode: ``merged``, ``naive``, ``orthogonal``; empty = nothing but the backbone.
        folder: the earlier adapter's files.
        sha256: their hash.
        info: its ``autopeft.json``.
        candidate: what it is.
        tensors: its trained values, in ``naive``.
        reads: module path -> its A [r, fan in], in ``orthogonal``.
        head: whether candidates that go on from it take over its head too.
    """

    network: Network
    mode: str = ""
    folder: Path = Path()
    sha256: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    candidate: Candidate | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    reads: Mapping[str, Tensor] = field(default_factory=dict)
    head: bool = False

    # -- for a run --------------------------------------------------------------------------------

    def for_task(self, classes: tuple[str, ...], kind: str) -> Start:
        """The same for a task: a head is taken over only where it means the same classes."""
        same = tuple(self.info.get("classes", ())) == classes and self.info.get("kind") == kind
        return replace(self, head=same and self.mode == "naive")

    def kept(self, cache: Path) -> Start:
        """The same with a copy of the files, named by their hash: the user's folder may change."""
        target = cache / f"init-{self.sha256[:16]}"
        if not target.is_dir() or adapter_hash(target) != self.sha256:
            with new_folder(target) as fresh:
                copy_adapter(self.folder, fresh, self.sha256)
        if self.network.init is not None:
            folder = target if self.mode != "naive" else target / INIT
            self.network.init = replace(self.network.init, folder=folder)
        return replace(self, folder=target)

    # -- for a training ---------------------------------------------------------------------------

    def goes_on(self, candidate: Candidate) -> bool:
        """Whether a candidate is the earlier adapter, trained on."""
        mine = self.candidate
        if self.mode != "naive" or mine is None:
            return False
        return (candidate.strata, candidate.readout) == (mine.strata, mine.readout)

    def fixed(self, candidate: Candidate) -> Mapping[str, Tensor]:
        """What ``build`` needs of a candidate that goes on: e.g. which entries a mask selects."""
        return self.tensors if self.goes_on(candidate) else {}

    def bind(self, adapted: Adapted) -> None:
        """Adds the penalty that keeps what an adapter reads orthogonal to what the earlier read.

        lambda sum over common modules of |A_earlier A^T|_F^2, with lambda = ``PENALTY``. O-LoRA,
        Wang et al. 2023, arXiv:2310.14152.
        """
        pairs = [(a, self.reads[path].to(a.device)) for path, a in self._factors(adapted)]
        if not pairs:
            return
        own = adapted.extra_loss

        def penalty() -> Tensor:
            with torch.autocast(pairs[0][1].device.type, enabled=False):
                terms = [overlap(earlier, a) for a, earlier in pairs]
            total = PENALTY * torch.stack(terms).sum()
            return total if own is None else total + own()

        adapted.extra_loss = penalty

    def begin(self, adapted: Adapted) -> bool:
        """Gives a fresh adapter its first values; whether they include the head's.

        In ``orthogonal`` each A starts without its part in the space that the earlier one read
        (orthogonal initialization, Staniszewski et al. 2024, arXiv:2410.04891), so the penalty
        starts at zero. An A that holds values of its own at the start stays: pissa, olora and
        orthogonal LoRA.
        """
        with torch.no_grad():
            for path, a in self._factors(adapted) if _starts_at_zero(adapted.candidate) else ():
                a.copy_(outside(self.reads[path].to(a.device), a))
        if not self.goes_on(adapted.candidate):
            return False
        head = f"{adapted.network.facts.classifier}."
        earlier = {k: v for k, v in self.tensors.items() if self.head or not k.startswith(head)}
        adapted.load_tensors({**adapted.tensors(), **earlier})
        return self.head

    def record(self, candidate: Candidate) -> dict[str, Any]:
        """What an adapter's folder says of its start, beside what its backbone is."""
        bound = self.reads and any(s.method in BOUND for s in candidate.strata)
        if not bound and not self.goes_on(candidate):
            return {}
        return {"started_from": {"mode": self.mode, "sha256": self.sha256}}

    def _factors(self, adapted: Adapted) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Module path and A of every trained A beside which the earlier adapter had one."""
        for name, parameter in adapted.trainable.items():
            found = _FACTOR.fullmatch(name)
            if found and found[1] in self.reads:
                yield found[1], parameter


def overlap(earlier: Tensor, a: Tensor) -> Tensor:
    """|A_earlier A^T|_F^2 [scalar] for A_earlier [r1, fan in] and A [r2, fan in, ...]."""
    found: Tensor = (earlier @ a.flatten(1).t()).square().sum()
    return found


def outside(earlier: Tensor, a: Tensor) -> Tensor:
    """A [r2, fan in, ...] without its part in the span of the rows of A_earlier [r1, fan in]."""
    rows = _span(earlier)
    flat = a.flatten(1).double()
    # Twice: once leaves a remainder of the size of rounding.
    for _ in range(2):
        flat = flat - (flat @ rows.t()) @ rows
    return flat.to(a.dtype).view(a.shape)


def _span(earlier: Tensor) -> Tensor:
    """An orthonormal basis [k, fan in] of the span of the rows, fp64."""
    _, values, rows = torch.linalg.svd(earlier.double(), full_matrices=False)
    kept: Tensor = rows[values > _SMALL * values.max().clamp(min=1e-30)]
    return kept


def _starts_at_zero(candidate: Candidate) -> bool:
    """Whether any A may change at the start without changing what the network computes."""
    inits = [s.options.get("init") for s in candidate.strata if s.method == "lora"]
    return all(init in ("default", "gaussian") for init in inits)


# ---- opening ------------------------------------------------------------------------------------


def of_setup(setup: Setup, network: Network) -> Start:
    """The start of a worker's trainings.

    Raises:
        UserError: as ``open_start``.
        RuntimeError: the files are others than the driver's.
    """
    if setup.init_adapter is None:
        return Start(network)
    start = open_start(Path(setup.init_adapter), setup.init_mode, network)
    if start.sha256 != setup.init_sha256:
        raise RuntimeError("the worker found another init adapter than the driver")
    return start.for_task(setup.classes, setup.kind)


def open_start(folder: Path, mode: str, network: Network) -> Start:
    """Loads the adapter that a run starts from, onto a plain backbone that stays as it is.

    Raises:
        UserError: no adapter folder, another backbone, weights or image size; nothing in it that
            the mode could use.
    """
    sha256 = adapter_hash(folder)
    _check_backbone(read_json(folder / OURS), network.facts, folder)
    model = load_adapter(folder, network=network)
    start = Start(model.base, mode, folder, sha256, model.info, model.candidate)
    if mode == "naive":
        if not model.candidate.strata:
            what = "is a linear probe: it has no adapter to go on from"
            raise UserError(what, str(folder), "Take --init-mode merged of another adapter.")
        return replace(start, tensors=model.adapted.tensors())
    if mode == "orthogonal":
        start = replace(start, reads=_reads(model, folder))
    return replace(start, network=folded(model, folder))


def _check_backbone(ours: Mapping[str, Any], facts: Facts, folder: Path) -> None:
    """Another model or image size in words; other weights are found by their hash."""
    saved = ours.get("backbone")
    if not isinstance(saved, Mapping):
        raise UserError("is damaged (it names no backbone)", str(folder / OURS))
    name, size = str(saved.get("name")), saved.get("image_size")
    if name.partition(".")[0] != facts.name.partition(".")[0]:
        what = f"was trained on {name}, this run is on {facts.name}"
        raise UserError(what, str(folder), f"Take --backbone {name}.")
    if size != facts.image_size:
        what = f"was trained at {size} px, this run is at {facts.image_size} px"
        raise UserError(what, str(folder), f"Take --image-size {size}.")


def _reads(model: Model, folder: Path) -> dict[str, Tensor]:
    """Module path -> A [r, fan in], one below the other where a module has several."""
    rows: dict[str, list[Tensor]] = {}
    for name, tensor in model.adapted.tensors().items():
        if found := _FACTOR.fullmatch(name):
            rows.setdefault(found[1], []).append(tensor.detach().flatten(1).float())
    fix = "Take --init-mode merged."
    if not rows:
        what = f"{model.candidate.method} has no A that another could be orthogonal to"
        raise UserError(what, str(folder), fix)
    reads = {path: torch.cat(parts) for path, parts in rows.items()}
    for path, earlier in reads.items():
        if len(_span(earlier)) == earlier.shape[1]:
            what = f"reads all {earlier.shape[1]} inputs of {path}: nothing is orthogonal to it"
            raise UserError(what, str(folder), fix)
    return reads
