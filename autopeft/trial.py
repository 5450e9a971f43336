"""What a worker does with a job: build, train from epoch a to b, predict, write, answer.

``run(setup, job)`` is the worker function of both runners. The backbone, the decoded images and
the frozen features stay resident between jobs. A worker never sees confirm or test labels.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autopeft.adapter import load_adapter
from autopeft.adapter import save as save_adapter
from autopeft.backbones.network import Network
from autopeft.backbones.weights import load_backbone
from autopeft.candidate import Candidate, Pool, Readout
from autopeft.errors import RunError, UserError
from autopeft.evaluation import Cost
from autopeft.files import new_folder
from autopeft.init_adapter import Start, of_setup
from autopeft.job import Job, Outcome, Rows, Setup
from autopeft.methods import build
from autopeft.methods.adapted import Adapted
from autopeft.methods.own import receive
from autopeft.methods.registry import method_named
from autopeft.methods.scored import has_scored, look
from autopeft.parts import is_part, part_rows, scored_rows
from autopeft.posthoc.interpolation import between, first_values
from autopeft.readouts import null, readouts
from autopeft.simple import simple
from autopeft.states import State, meta, save_arrays, saved_state, trained_twin, write_state
from autopeft.training import augment
from autopeft.training.allocator import keep_memory
from autopeft.training.fast import Casts, quick_frozen, speed_up
from autopeft.training.features import frozen_features, identity
from autopeft.training.images import ImageStore, open_store
from autopeft.training.loop import NotFiniteError, Plan, Source, pixels, train_epochs
from autopeft.training.precision import Precision, autocast
from autopeft.training.prefix import PrefixStore
from autopeft.training.probe import best_strength, fit_probe
from autopeft.training.sampling import cell_weights, label_weights
from autopeft.training.scoring import TrainScoring

EVAL_BATCH = 64


@dataclass
class Resident:
    """What stays in a worker's memory between jobs of one setup."""

    setup: Setup
    digest: str
    network: Network
    frozen: Network  # the same, as fast as a sped-up adapter's lower blocks
    store: ImageStore
    prefix: PrefixStore
    casts: Casts
    start: Start  # what trainings start from
    features: dict[tuple[str, int, Pool], npt.NDArray[np.float32]] = field(default_factory=dict)
    strengths: dict[tuple[str, int, Pool], float] = field(default_factory=dict)
    parts: dict[str, Rows] = field(default_factory=dict)  # what each part trains on
    looked: dict[str, Any] = field(default_factory=dict)  # what methods found, see TrainScoring


_RESIDENT: dict[int, Resident] = {}


def run(setup: Setup, job: Job) -> Outcome:
    """Executes one job; NaN and memory are outcomes, everything else is the runner's to catch.

    Args:
        setup: sent once per worker.
        job: what to do; refused when it belongs to another setup.

    Returns:
        The outcome; files are named before it is returned.
    """
    try:
        if setup.simulated is not None:
            raise RunError("this setup is for a simulated worker: nothing can be trained with it")
        resident = _resident(setup)
        if job.setup != resident.digest:
            return Outcome("error", f"job of setup {job.setup}, this is {resident.digest}")
        if not is_part(job.part):
            return Outcome("error", f"there is no part {job.part!r}")
        frozen = {"readouts": readouts, "null": null, "simple": simple}
        work = {"rung": run_rung, **frozen}.get(job.kind, _predict)
        return work(resident, job)
    except (UserError, RunError):
        raise  # not the candidate's fault: it stops the run, in one line
    except NotFiniteError as error:
        return Outcome("nan", str(error), epoch=job.start)
    except (MemoryError, torch.OutOfMemoryError) as error:
        return Outcome("oom", _one_line(error), epoch=job.start)
    except RuntimeError as error:
        if "memory" in str(error).lower() and "alloc" in str(error).lower():
            return Outcome("oom", _one_line(error), epoch=job.start)
        raise  # a bug: the runner makes an outcome of it


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _resident(setup: Setup) -> Resident:
    """The worker's warm state; a changed setup starts afresh."""
    if id(setup) not in _RESIDENT:
        _RESIDENT.clear()
        keep_memory()
        torch.set_num_threads(max(1, setup.threads))
        receive(setup.plugins)  # before anything that may name one of the user's methods
        network = load_backbone(setup.backbone, setup.weights, setup.image_size, setup.offline)
        start = of_setup(setup, network)
        if start.network.facts.sha256 != setup.weights_sha256:
            raise RuntimeError("the worker loaded other backbone weights than the driver")
        _RESIDENT[id(setup)] = _load(setup, start)
    return _RESIDENT[id(setup)]


def _load(setup: Setup, start: Start) -> Resident:
    network = start.network
    store, casts = open_store(setup.images), Casts(network.model, setup.device)
    # All that the bits of a state depend on, the code that makes views included.
    views = inspect.getsource(augment)
    key = f"{identity(network.facts)} {store.folder.name} {setup.precision} {setup.threads} "
    key += f"{torch.__version__} {views}"
    rows = np.concatenate([split.index for split in setup.rows.values()])
    prefix = PrefixStore(Path(setup.cache), setup.cache_bytes, key, rows)
    frozen = quick_frozen(network, setup.precision, casts)
    return Resident(setup, setup.digest(), network, frozen, store, prefix, casts, start)


# ---- rung ---------------------------------------------------------------------------------------


def run_rung(resident: Resident, job: Job) -> Outcome:
    """Trains ``job.candidate`` from ``job.start`` to ``job.stop`` and predicts what judges it."""
    assert job.candidate is not None
    setup = resident.setup
    hits, asks, spent = resident.prefix.hits, resident.prefix.asks, resident.prefix.seconds
    adapted, state = _trained(resident, job)
    asked = scored_rows(setup.rows, job.part, setup.seed)
    scores = {name: score_rows(resident, adapted, rows) for name, rows in asked.items()}
    if not all(np.isfinite(score).all() for score in scores.values()):
        raise NotFiniteError(f"scores are not finite after epoch {job.stop}")
    cost = Cost(
        trainable_params=adapted.trainable_params,
        adapter_bytes=adapted.adapter_bytes,
        train_seconds=round(state.seconds * (job.stop - job.start), 3),
        images=len(_train_rows(resident, job.part)) * (job.stop - job.start),
    )
    kept = None if job.part.startswith("fold:") else job.name  # a fold is only to be measured
    if kept:
        with new_folder(Path(setup.run_dir) / "states" / kept) as folder:
            about = dict(meta(setup, asdict(resident.store.rule)))
            about |= resident.start.record(job.candidate)
            save_adapter(adapted, folder, about, whole=False)
            write_state(folder, state, job, setup.epochs)
    name = f"{job.name}.npz"
    save_arrays(setup, name, {k: score.astype(np.float16) for k, score in scores.items()})
    hits, asks = resident.prefix.hits - hits, resident.prefix.asks - asks
    spent = round(resident.prefix.seconds - spent, 3)
    extra: dict[str, Any] = {"prefix": [hits, asks], "prefix_seconds": spent} if asks else {}
    extra |= {"trained_as": state.source} if state.source else {}
    return Outcome("ok", "", job.stop, name, cost, kept, state.loss, extra, job.part)


def _trained(resident: Resident, job: Job) -> tuple[Adapted, State]:
    """The adapter to be scored at ``job.stop``, and the training behind it."""
    candidate, setup = job.candidate, resident.setup
    assert candidate is not None
    started = time.perf_counter()
    twin = trained_twin(setup, job, resident.network)
    before = twin or saved_state(setup, job)
    fixed = dict(before.weights or resident.start.fixed(candidate))
    if not fixed and has_scored(candidate):
        fixed = look(candidate, _scoring(resident, job))
    outputs = len(setup.classes)
    try:
        adapted = build(resident.network, candidate, outputs, setup.seed, job.repeat, fixed)
    except UserError as error:  # this candidate's fault: the others go on
        raise RuntimeError(f"cannot be built: {error}") from error
    speed_up(adapted, number_format(setup, candidate), resident.casts)
    resident.start.bind(adapted)
    first = first_values(adapted) if candidate.post else {}
    if twin:
        adapted.load_tensors(twin.weights)
        after = twin
    else:
        if candidate.train.optimizer == "lbfgs":
            loss, optimizer = _fit_head(resident, adapted, job), dict[str, torch.Tensor]()
        else:
            loss, optimizer = _train(resident, adapted, job, before)
        seconds = (time.perf_counter() - started) / (job.stop - job.start)
        after = State(adapted.tensors(), optimizer, loss, seconds)
    if candidate.post:
        after = replace(after, weights={k: v.clone() for k, v in after.weights.items()})
        head = _probe_at(resident, job)
        adapted.load_tensors(between(adapted, first, candidate.post.alpha, head))
    return adapted, after


def _train(
    resident: Resident, adapted: Adapted, job: Job, before: State
) -> tuple[float, dict[str, torch.Tensor]]:
    """Gradient training of one stretch, from the probe's head or from a state."""
    assert job.candidate is not None
    optimizer = None
    if before.weights:
        adapted.load_tensors(before.weights)
        optimizer = dict(before.optimizer)
    elif not resident.start.begin(adapted) and job.candidate.train.head_init == "probe":
        adapted.set_head(*_probe_at(resident, job))
    plan = _plan(resident, job, _source(resident, adapted))
    return train_epochs(adapted, plan, job.start, job.stop, optimizer)


def _plan(resident: Resident, job: Job, source: Source) -> Plan:
    """How the job's candidate trains."""
    assert job.candidate is not None
    setup = resident.setup
    return Plan(
        _train_rows(resident, job.part),
        source,
        setup.kind,
        job.candidate.train,
        setup.epochs,
        setup.batch_size,
        job.micro_batch or setup.micro_batch,
        setup.views,
        setup.seed,
        job.repeat,
        number_format(setup, job.candidate),
        setup.device,
    )


def _scoring(resident: Resident, job: Job) -> TrainScoring:
    """What a method that looks first may look at."""
    candidate = job.candidate
    assert candidate is not None
    setup, train, readout = resident.setup, candidate.train, candidate.readout
    store, facts = resident.store, resident.network.facts
    plain = Source(0, lambda index, view: pixels(store, facts, index, view))

    return TrainScoring(
        resident.network,
        int(augment.mix(setup.seed, job.repeat, int(candidate.twin.fingerprint[:8], 16))) >> 1,
        _plan(resident, job, plain),
        store,
        resident.casts,
        lambda adapted: _source(resident, adapted),
        lambda: _probe_at(resident, job),
        resident.looked,
        f"{job.part} {job.repeat} {readout} {train.loss} {train.label_smoothing} {train.sampling}",
    )


def _fit_head(resident: Resident, adapted: Adapted, job: Job) -> float:
    """The linear probe: convex, so there is nothing to pause and no seed to draw."""
    assert job.candidate is not None
    adapted.set_head(*_probe(resident, job, job.candidate.train.weight_decay))
    return 0.0


def _probe_at(resident: Resident, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """The linear probe's head at the candidate's readout, its strength chosen inside train."""
    return _probe(resident, job, _strength(resident, job))


def _probe(resident: Resident, job: Job, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [C, d] and bias [C] of the linear probe at the candidate's readout."""
    candidate, rows = job.candidate, _train_rows(resident, job.part)
    assert candidate is not None
    assert rows.label is not None
    weight = np.ones(rows.label.shape)
    sample = cell_weights(rows, candidate.train.sampling)
    if sample is not None:
        weight *= sample[:, None]
    if candidate.train.loss == "weighted":
        weight *= np.where(rows.label == 1, label_weights(rows.label), 1)
    probe = fit_probe(
        _train_features(resident, job), rows.label, resident.setup.kind, strength, weight
    )
    return torch.from_numpy(probe.weight).float(), torch.from_numpy(probe.bias).float()


def _strength(resident: Resident, job: Job) -> float:
    """The probe's L2 strength for a head that training starts from, chosen inside train."""
    assert job.candidate is not None
    readout = job.candidate.readout
    key = (job.part, readout.block, readout.pool)
    if key not in resident.strengths:
        rows = _train_rows(resident, job.part)
        assert rows.label is not None
        features = _train_features(resident, job)
        chosen = best_strength(features, rows.label, resident.setup.kind, rows.patient)
        resident.strengths[key] = chosen
    return resident.strengths[key]


def _train_rows(resident: Resident, part: str) -> Rows:
    """What a part trains on."""
    if part not in resident.parts:
        setup = resident.setup
        resident.parts[part] = part_rows(setup.rows, part, setup.seed)[0]
    return resident.parts[part]


def _train_features(resident: Resident, job: Job) -> npt.NDArray[np.float32]:
    """Frozen features [N, d] of a part's train rows: some of those of whole splits."""
    assert job.candidate is not None
    splits = ("train", "search") if job.part.startswith("fold:") else ("train",)
    index = np.concatenate([resident.setup.rows[split].index for split in splits])
    features = np.concatenate([_features(resident, s, job.candidate.readout) for s in splits])
    order = np.argsort(index)
    wanted = _train_rows(resident, job.part).index
    return features[order[np.searchsorted(index, wanted, sorter=order)]]


def _features(resident: Resident, split: str, at: Readout) -> npt.NDArray[np.float32]:
    key = (split, at.block, at.pool)
    if key not in resident.features:
        setup, rows, place = resident.setup, resident.setup.rows[split].index, (at.block, at.pool)
        found = frozen_features(
            resident.frozen, resident.store, rows, [place], setup.precision, Path(setup.cache)
        )
        resident.features[key] = found[place]
    return resident.features[key]


# ---- predictions --------------------------------------------------------------------------------


def number_format(setup: Setup, candidate: Candidate) -> Precision:
    """The search's number format, or fp32 for methods whose effect a low one rounds away."""
    low = any(method_named(s.method).in_fp32 for s in candidate.strata)
    return "fp32" if low else setup.precision


def score_rows(resident: Resident, adapted: Adapted, rows: Rows) -> npt.NDArray[np.float32]:
    """Logits [N, C] of the plain views, in the search's precision."""
    source, parts = _source(resident, adapted), []
    adapted.set_train(False)
    precision = number_format(resident.setup, adapted.candidate)
    with torch.no_grad(), autocast(precision, resident.setup.device):
        for start in range(0, len(rows), EVAL_BATCH):
            index = rows.index[start : start + EVAL_BATCH]
            x = source.get(index, np.zeros(len(index), np.int64)).to(resident.setup.device)
            parts.append(adapted.logits(x, source.start).float().cpu().numpy())
    return np.concatenate(parts)


def _source(resident: Resident, adapted: Adapted) -> Source:
    """Pixels, or frozen states where blocks below the adapter are frozen and views come again."""
    setup, facts, store = resident.setup, resident.network.facts, resident.store
    kept = adapted.prefix_ok and setup.views
    if number_format(setup, adapted.candidate) != setup.precision:
        kept = False  # the store's states are in the search's format
    boundary = adapted.first_block if kept else 0
    get = partial(pixels, store, facts, device=setup.device)
    if not boundary:
        return Source(0, get)

    def compute(index: npt.NDArray[np.int64], view: npt.NDArray[np.int64]) -> torch.Tensor:
        with torch.no_grad(), autocast(setup.precision, setup.device):
            return resident.frozen.advance(0, get(index, view), boundary).cpu()

    return Source(boundary, lambda i, v: resident.prefix.states(boundary, i, v, compute))


def _predict(resident: Resident, job: Job) -> Outcome:
    """Scores rows with an adapter that is loaded from its folder and run in fp32."""
    assert job.rows is not None
    assert job.state is not None
    setup = resident.setup
    folder = Path(setup.run_dir) / "states" / job.state
    model = load_adapter(folder, device=setup.device, network=resident.network)
    assert job.candidate is not None
    if model.candidate.fingerprint != job.candidate.fingerprint:
        raise RunError(f"{folder} holds another candidate than it was written for")
    parts = [
        model.logits(resident.store.batch(job.rows.index[start : start + EVAL_BATCH]))
        for start in range(0, len(job.rows), EVAL_BATCH)
    ]
    name = f"{job.name}.npz"
    save_arrays(setup, name, {"score": np.concatenate(parts).astype(np.float32)})
    return Outcome("ok", "", job.stop, name, state=job.state)
