"""Films of `phantom`, what the frozen backbone makes of them, and scores: for planted.py.

Everything is made once under the folder given by ``--out`` and goes on where it was stopped.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from autopeft.backbones.network import Network
from autopeft.backbones.weights import load_backbone
from autopeft.candidate import Readout
from autopeft.data.film import draw
from autopeft.data.phantom import Phantom, describe
from autopeft.evaluation import Cost, Evaluation, Floats, Predictions
from autopeft.files import write_bytes, write_json, write_text
from autopeft.job import Rows, Setup
from autopeft.methods.adapted import Adapted
from autopeft.metrics.classification import auroc
from autopeft.metrics.fairness import group_aurocs
from autopeft.training.fast import Casts, quick_frozen
from autopeft.training.images import ImageStore, Rule, normalize, open_store
from autopeft.training.precision import autocast

BACKBONE = "autopeft_vit_nano"
PRECISION = "bf16"
COUNTED = {"sex": ("sex=F", "sex=M"), "age:60": ("age<60", "age>=60")}
GROUPS = tuple(g for groups in COUNTED.values() for g in groups)
CHUNK = 256
FRESH_SEED, POPULATION_SEED = 1_000_001, 1_000_002  # no seed of a pool is near them
BOUNDARIES = (3, 4, 5)


@dataclass(frozen=True)
class Size:
    """How large everything is, how many are women, and how visible lesions are."""

    image: int = 56
    train: int = 800
    search: int = 2000
    fresh: int = 20_000
    population: int = 20_000
    epochs: int = 4
    batch: int = 32
    contrast: float = 1.0
    women: float = 0.5


SIZE = Size()
MEN = "sex=M"


@dataclass(frozen=True)
class Films:
    """A set of synthetic patients, one film each.

    Attributes:
        store: their films, an image store like any other.
        people: one line a patient: labels, groups, mark, truth.
    """

    store: ImageStore
    people: pd.DataFrame

    def rows(self, which: npt.NDArray[Any] | slice = slice(None)) -> Rows:
        """Some patients as rows of a task with the groups sex and age:60."""
        chosen = self.people.iloc[which]
        age = np.where(chosen["age"] >= 60, "age>=60", "age<60")
        return Rows(
            path=chosen["path"].to_numpy().astype(np.str_),
            index=chosen.index.to_numpy(np.int64),
            patient=chosen["patient_id"].to_numpy().astype(np.str_),
            label=chosen[["lesion"]].to_numpy(np.float32),
            groups={"sex": ("sex=" + chosen["sex"]).to_numpy().astype(np.str_), "age:60": age},
        )


def films(out: Path, *phantoms: Phantom) -> Films:
    """Draws what is not drawn yet, straight into one image store; later patients follow.

    Args:
        out: the folder of everything.
        *phantoms: sets of one film size; their patients get ids of their own.
    """
    folder = out / ("films-" + "-".join(p.digest for p in phantoms))
    size, count = phantoms[0].size, sum(p.patients for p in phantoms)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "store.json").exists():
        _draw(folder, phantoms, size, count)
        write_json(folder / "store.json", asdict(Rule()))  # last: it says that all are there
    people = pd.read_csv(folder / "people.csv", keep_default_na=False)
    return Films(open_store(folder), people)


def _draw(folder: Path, phantoms: Sequence[Phantom], size: int, count: int) -> None:
    array, made = _map(folder / "images.npy", (count, size, size, 1), np.uint8), _Made(folder)
    records: list[dict[str, Any]] = []
    for number, phantom in enumerate(phantoms):
        for patient in range(phantom.patients):
            film, record = describe(phantom, patient, 0)
            place = len(records)
            records.append(record | {"set": number, "patient_id": f"p{number}-{patient:06d}"})
            if place >= made.count:
                array[place, :, :, 0] = draw(film, size)
            if (place + 1) % CHUNK == 0 and place >= made.count:
                array.flush()
                made.set(place + 1)
    array.flush()
    write_text(folder / "people.csv", pd.DataFrame(records).to_csv(index=False))


class _Made:
    """How much of a file is filled, on disk."""

    def __init__(self, folder: Path, name: str = "made.json") -> None:
        self.file = folder / name
        self.count = json.loads(self.file.read_text()) if self.file.exists() else 0

    def set(self, count: int) -> None:
        self.count = count
        write_json(self.file, count)


def _map(file: Path, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """A memory map for writing, the old one where there is one."""
    if file.exists():
        found: npt.NDArray[Any] = np.lib.format.open_memmap(file, mode="r+")
        return found
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)  # type: ignore


# ---- the frozen backbone ------------------------------------------------------------------------


@lru_cache(maxsize=2)
def network(size: int) -> Network:
    """The package's own backbone."""
    return load_backbone(BACKBONE, None, size, offline=True)


@lru_cache(maxsize=2)
def casts(size: int) -> Casts:
    """Its weights in the search's number format."""
    return Casts(network(size).model)


@dataclass(frozen=True)
class Frozen:
    """States and pooled features of a set of films, fp16 [N, ...] on disk.

    Attributes:
        states: boundary -> states there.
        pooled: (block, ``token`` or ``avg``) -> features.
    """

    states: Mapping[int, npt.NDArray[Any]]
    pooled: Mapping[tuple[int, str], npt.NDArray[Any]]

    def features(
        self, at: Readout, which: npt.NDArray[Any] | slice = slice(None)
    ) -> npt.NDArray[np.float32]:
        """What a linear head reads, float32 [n, d]."""
        parts = [self.pooled[at.block, pool][which] for pool in at.pool.split("+")]
        return np.concatenate(parts, axis=1).astype(np.float32)


def frozen(found: Films, size: int, boundaries: Sequence[int] = ()) -> Frozen:
    """One pass of the frozen backbone over all films of a set; nothing done is done twice.

    Args:
        found: the films.
        size: their side.
        boundaries: where whole states are kept (13 kB a film at 56 px).
    """
    net, folder = network(size), found.store.folder
    facts, count = net.facts, len(found.people)
    tokens = (size // (facts.patch or 14)) ** 2 + 1
    width = facts.width(facts.depth, "token")
    states = {
        b: _map(folder / f"states-{b}.npy", (count, tokens, width), np.float16) for b in boundaries
    }
    places = [(b, pool) for b in range(1, facts.depth + 1) for pool in ("token", "avg")]
    pooled = {
        (b, pool): _map(folder / f"pooled-{b}-{pool}.npy", (count, width), np.float16)
        for b, pool in places
    }
    made = _Made(folder, "frozen-" + "-".join(map(str, boundaries)) + ".json")
    quick = quick_frozen(net, PRECISION, casts(size))
    for start in range(made.count, count, CHUNK):
        rows = np.arange(start, min(start + CHUNK, count))
        _pass(quick, found.store, rows, states, pooled)
        for array in (*states.values(), *pooled.values()):
            array.flush()  # type: ignore[attr-defined]
        made.set(int(rows[-1]) + 1)
    return Frozen(states, pooled)


def _pass(
    net: Network,
    store: ImageStore,
    rows: npt.NDArray[Any],
    states: Mapping[int, npt.NDArray[Any]],
    pooled: Mapping[tuple[int, str], npt.NDArray[Any]],
) -> None:
    facts = net.facts
    with torch.inference_mode(), autocast(PRECISION, "cpu"):
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            state = net.stem(normalize(store.batch(part), facts.mean, facts.std))
            for block in range(1, facts.depth + 1):
                state = net.run(state, block - 1, block)
                if block in states:
                    states[block][part] = state.to(torch.float16).numpy()
                for pool in ("token", "avg"):
                    value = net.pooled(state, block, pool)  # type: ignore[arg-type]
                    pooled[block, pool][part] = value.to(torch.float16).numpy()


def scores(adapted: Adapted, on: Frozen, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
    """Logits [N] of an adapter, from the frozen states below it, in the search's number format."""
    candidate = adapted.candidate
    if not candidate.strata:
        x = torch.from_numpy(on.features(candidate.readout, rows))
        with torch.inference_mode():
            return adapted.head(x)[:, 0].float().numpy()  # type: ignore[no-any-return]
    source, parts = on.states[adapted.first_block][rows], []
    adapted.set_train(False)
    with torch.inference_mode(), autocast(PRECISION, "cpu"):
        for start in range(0, len(source), 64):
            x = torch.from_numpy(source[start : start + 64].astype(np.float32))
            parts.append(adapted.logits(x, adapted.first_block)[:, 0].float().numpy())
    return np.concatenate(parts)


def phantom(seed: int, patients: int, shortcut: float, size: Size = SIZE) -> Phantom:
    """The planted task: one film a patient, a mark that means something in men only."""
    return Phantom(
        patients=patients,
        images_per_patient=1,
        size=size.image,
        contrast=size.contrast,
        women=size.women,
        shortcut=shortcut,
        shortcut_in=MEN,
        seed=seed,
    )


def fresh(out: Path, shortcut: float, size: Size = SIZE) -> tuple[Films, Frozen]:
    """The patients on whom the truth is read, with whole states at the boundaries."""
    found = films(out, phantom(FRESH_SEED, size.fresh, shortcut, size))
    return found, frozen(found, size.image, BOUNDARIES)


def population(out: Path, shortcut: float, size: Size = SIZE) -> tuple[Films, Frozen]:
    """Patients from whom cheap runs draw theirs: none of the fresh ones."""
    found = films(out, phantom(POPULATION_SEED, size.population, shortcut, size))
    return found, frozen(found, size.image)


def setup_of(
    found: Films, rows: Mapping[str, Rows], folder: Path, epochs: int, size: Size = SIZE
) -> Setup:
    """What autopeft's worker gets: plain views only, frozen states cached."""
    return Setup(
        kind="binary", classes=("lesion",), backbone=BACKBONE, weights=None,
        weights_sha256=network(size.image).facts.sha256, image_size=size.image, fit="pad",
        images=str(found.store.folder.resolve()), cache=str((folder / "cache").resolve()),
        run_dir=str((folder / "run").resolve()), rows=dict(rows), epochs=epochs,
        batch_size=size.batch, views=1, precision=PRECISION, threads=1, seed=0,
        offline=True, cache_bytes=4 * 10**9,
    )  # fmt: skip


def save(file: Path, **arrays: Any) -> None:
    """Writes an npz whole or not at all."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    write_bytes(file, stream.getvalue())


# ---- what is said about scores ------------------------------------------------------------------


def predictions(score: Any, rows: Rows, split: str = "search", repeat: int = 0) -> Predictions:
    """Scores [N] of some rows as metrics want them."""
    assert rows.label is not None
    n = len(rows)
    return Predictions(
        np.asarray(score, np.float32).reshape(n, 1), rows.label, rows.patient,
        np.zeros(n, np.int64), rows.groups, ("lesion",), "binary", split, repeat,
    )  # fmt: skip


def evaluation(p: Predictions, params: int = 0, reference: float = 0.0) -> Evaluation:
    """What an objective sees."""
    return Evaluation(
        search=p, cost=Cost(params, 4 * params), counted=COUNTED, reference={"auroc": reference}
    )


@dataclass(frozen=True)
class Values:
    """AUROC over everyone and inside each group."""

    auroc: float
    groups: Mapping[str, float]

    @property
    def worst(self) -> float:
        """Of the worst group."""
        return min(self.groups.values())

    @property
    def worst_name(self) -> str:
        """Which group that is."""
        return min(self.groups, key=lambda g: self.groups[g])


def values(p: Predictions) -> Values:
    """Of everyone, and of each group of sex and age."""
    groups: dict[str, float] = {}
    for attribute, names in COUNTED.items():
        groups |= {g: _known(v) for g, v in group_aurocs(p, attribute, names).items()}
    return Values(_known(auroc(p)), groups)


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def follows(score: Floats, mark: npt.NDArray[Any], label: npt.NDArray[Any]) -> float:
    """How far the scores of films without a lesion follow the mark: AUROC, .5 = not at all."""
    rows = np.flatnonzero(label == 0)
    order = np.argsort(np.argsort(score[rows])) + 1.0
    hit = mark[rows] == 1
    m, k = hit.sum(), (~hit).sum()
    return float((order[hit].sum() - m * (m + 1) / 2) / (m * k)) if m and k else float("nan")
