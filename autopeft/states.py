"""What a job leaves in the run's folders, and what a later rung starts from."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from autopeft.adapter import load_adapter
from autopeft.backbones.network import Network
from autopeft.errors import UserError
from autopeft.files import write_bytes
from autopeft.job import Job, Setup

STATE = "state.safetensors"
TRAINED = "trained.json"


@dataclass(frozen=True)
class State:
    """A training at the end of an epoch.

    Attributes:
        weights: ``Adapted.tensors()`` as they were trained, whatever step came after.
        optimizer: its state; empty behind the last epoch.
        loss: mean training loss of the last epoch.
        seconds: training time of one epoch.
        source: name of the folder it was read from.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    loss: float = 0.0
    seconds: float = 0.0
    source: str = ""


def saved_state(setup: Setup, job: Job) -> State:
    """The state that a stretch continues from; nothing at the start."""
    if job.start == 0:
        return State({}, {})
    assert job.state is not None
    return _read(Path(setup.run_dir) / "states" / job.state / STATE)


def write_state(folder: Path, state: State, job: Job, epochs: int) -> None:
    """Adds to an adapter's folder what a later rung, or another alpha, goes on from.

    A plain candidate's last folder needs no weights but the adapter's.
    """
    assert job.candidate is not None
    if job.stop < epochs or job.candidate.post:
        tensors = {f"weight|{k}": v.detach().contiguous() for k, v in state.weights.items()}
        tensors |= {f"optimizer|{k}": v for k, v in state.optimizer.items()}
        save_file(tensors, folder / STATE)
    trained = {**_identity(job), "loss": state.loss, "seconds": state.seconds}
    (folder / TRAINED).write_text(json.dumps(trained) + "\n")


def trained_twin(setup: Setup, job: Job, network: Network) -> State | None:
    """The state of ``job`` where this run has trained it already, under another post-hoc step.

    Training is deterministic and a step after it changes none of it, so the plain twin and every
    other alpha have the same bits at ``job.stop``. None: there is none (any more), or the job has
    no step: then it is the plain twin, which is trained.
    """
    assert job.candidate is not None
    if job.candidate.post is None:
        return None
    states = Path(setup.run_dir) / "states"
    tail = job.name.removeprefix(job.candidate.fingerprint)
    plain = states / f"{job.candidate.twin.fingerprint}{tail}"
    for folder in (plain, *sorted(states.glob(f"[!.]*{tail}"))):
        found = _twin_in(folder, setup, job, network)
        if found is not None:
            return found
    return None


def _twin_in(folder: Path, setup: Setup, job: Job, network: Network) -> State | None:
    """The state in a folder, if it is the twin's; folders may go while they are read."""
    try:
        trained = json.loads((folder / TRAINED).read_text())
        if {k: trained.get(k) for k in _identity(job)} != _identity(job):
            return None
        if (folder / STATE).exists():
            state = _read(folder / STATE)
        elif job.stop < setup.epochs:
            return None
        else:
            state = State(load_adapter(folder, network=network).adapted.tensors(), {})
    except (OSError, ValueError, SafetensorError, UserError):
        return None
    return State(state.weights, state.optimizer, trained["loss"], trained["seconds"], folder.name)


def _identity(job: Job) -> dict[str, Any]:
    """All that decides the bits of a training, beside the names of the folder."""
    assert job.candidate is not None
    return {
        "setup": job.setup,
        "twin": job.candidate.twin.fingerprint,
        "micro_batch": job.micro_batch,
    }


def _read(path: Path) -> State:
    tensors = load_file(path)
    return State(_strip(tensors, "weight|"), _strip(tensors, "optimizer|"))


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def meta(setup: Setup, rule: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ``load_adapter`` needs to score new images as a setup's were scored.

    Args:
        setup: of the worker.
        rule: how pixels were read (``images.Rule`` as plain data).
    """
    return {
        "classes": list(setup.classes),
        "kind": setup.kind,
        "fit": setup.fit,
        "pixels": dict(rule),
        "weights": Path(setup.weights).name if setup.weights else None,
    }


def save_arrays(setup: Setup, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes a file of predictions, for the owner's eyes only."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(Path(setup.run_dir) / "predictions" / name, stream.getvalue(), 0o600)
