"""The attacks of planted.py: on recipes of rising capacity, and where nothing was memorized."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import planted_data as data
from planted_data import SIZE, Size

from autopeft import trial
from autopeft.candidate import Candidate
from autopeft.data.phantom import EVERYONE, Phantom
from autopeft.data.splits import cells, make_splits
from autopeft.evaluation import Predictions
from autopeft.job import Job, Rows, Setup
from autopeft.methods import canonical
from autopeft.metrics.memorization import ATTACKS, Attack, attack
from autopeft.parts import subsample
from autopeft.training.neighbors import knn_scores
from autopeft.training.probe import fit_probe

SMALL = replace(SIZE, epochs=12)
ORIGINALS, TIMES, STRANGERS = 60, (1, 2, 4), 300
NOISE = 0.2

# By capacity: what is trained, on all blocks.
RECIPES: dict[str, dict[str, Any]] = {
    "linear probe": {"method": "linear_probe", "weight_decay": 0.1},
    "lora r=2": {"method": "lora", "blocks": "all", "r": 2, "lora_alpha": 4, "lr": 1e-3},
    "lora r=8": {"method": "lora", "blocks": "all", "r": 8, "lora_alpha": 16, "lr": 1e-3},
    "lora r=32": {"method": "lora", "blocks": "all", "r": 32, "lora_alpha": 64, "lr": 1e-3},
    "full": {"method": "full", "blocks": "all", "lr": 5e-5},
}
# On wrong labels: one epoch remembers next to nobody, many epochs do.
FEW = {"method": "lora", "blocks": [5, 5], "r": 2, "lr": 5e-4, "head_init": "random"}
MANY = {"method": "lora", "blocks": [4, 5], "r": 32, "lr": 2e-3}
TRAINED: dict[str, tuple[dict[str, Any], int]] = {
    "lora r=2 block 5, 1 epoch": (FEW, 1),
    "lora r=32 blocks 4-5, 10 epochs": (MANY, 10),
}
MEMORY = ("seed", "recipe", "members", "attack", "auc", "null", "value", "low", "high")
ALARM = ("table", "model", "attack", "auc", "null", "value", "low", "high")


# ---- capacity and copies ------------------------------------------------------------------------


def memory(out: Path, seeds: Iterable[int], size: Size = SMALL) -> None:
    """Trains every recipe on patients who are there once, twice and four times, and attacks it."""
    file = memory_file(out, size.epochs)
    done = {(line["seed"], line["recipe"]) for line in read(file, MEMORY)}
    for seed in seeds:
        due = [name for name in RECIPES if (str(seed), name) not in done]
        if not due:
            continue
        found = data.films(out, *_sets(seed, size))
        kept, folder = data.frozen(found, size.image), out / "memory" / f"{seed:02d}"
        setup, times = _memory_setup(found, folder, size)
        for name in due:
            candidate = canonical(RECIPES[name], data.network(size.image).facts)
            lines = [
                (seed, name, *line) for line in _attacked(setup, found, kept, candidate, times)
            ]
            append(file, MEMORY, lines)
            print(f"memory, seed {seed}: {name}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)


def memory_file(out: Path, epochs: int) -> Path:
    """Where the lines of trainings of this length are."""
    return out / ("memory.csv" if epochs == SMALL.epochs else f"memory-{epochs}.csv")


def _sets(seed: int, size: Size) -> list[Phantom]:
    """Patients once, twice and four times in train; strangers; strangers for the null."""
    plain = Phantom(images_per_patient=1, size=size.image)
    sets = [
        replace(
            plain,
            patients=ORIGINALS * times,
            duplicates=float(times > 1),
            copies=max(1, times - 1),
            seed=10 * seed + k,
        )
        for k, times in enumerate(TIMES)
    ]
    return [*sets, *(replace(plain, patients=STRANGERS, seed=10 * seed + k) for k in (8, 9))]


def _memory_setup(
    found: data.Films, folder: Path, size: Size
) -> tuple[Setup, dict[str, npt.NDArray[Any]]]:
    """Train: everyone of the first sets. Scored: each patient's first film, and strangers."""
    people = found.people
    train = np.flatnonzero(people["set"] < len(TIMES))
    strangers = np.flatnonzero(people["set"] == len(TIMES))
    first = (people["duplicate_of"] == "").to_numpy()
    members = {
        f"{times} x": np.flatnonzero((people["set"] == k) & first) for k, times in enumerate(TIMES)
    }
    scored = np.concatenate([*members.values(), strangers])
    rows = {"train": found.rows(train), "search": found.rows(scored)}
    # The probe makes the worker score members of its own choice too, as in a run.
    rows["probe"] = found.rows(strangers[: len(train) // 2])
    setup = data.setup_of(found, rows, folder, size.epochs, size)
    return setup, members


def _attacked(
    setup: Setup,
    found: data.Films,
    kept: data.Frozen,
    candidate: Candidate,
    members: Mapping[str, npt.NDArray[Any]],
) -> list[tuple[Any, ...]]:
    """One training, attacked at each number of copies, and as a run would do it."""
    digest = setup.digest()
    outcome = trial.run(setup, Job("rung", digest, candidate, stop=setup.epochs))
    if outcome.status != "ok":
        raise SystemExit(f"{candidate.title}: {outcome.status} {outcome.reason}")
    with np.load(Path(setup.run_dir) / "predictions" / str(outcome.predictions)) as file:
        score, train, probe = (np.array(file[name][:, 0]) for name in ("score", "train", "probe"))
    place = dict(zip(setup.rows["search"].index.tolist(), score, strict=True))
    strangers = setup.rows["search"].index[len(score) - STRANGERS :]
    neighbors = _neighbor_scores(found, kept, candidate)
    lines = []
    for name, who in members.items():
        sides = [
            data.predictions([place[i] for i in side], found.rows(side), split)
            for side, split in ((who, "train"), (strangers, "probe"))
        ]
        null = [
            data.predictions(neighbors[side], found.rows(side), "null")
            for side in (who, strangers)
        ]
        lines += [(name, *_line(sides, null, attack_name)) for attack_name in ATTACKS]
    lines += [("as in a run", *line) for line in _as_in_a_run(setup, candidate, train, probe)]
    return lines


def _neighbor_scores(
    found: data.Films, kept: data.Frozen, candidate: Candidate
) -> npt.NDArray[np.float32]:
    """The null [N]: neighbors among patients that are neither members nor strangers."""
    base = np.flatnonzero(found.people["set"] == len(TIMES) + 1)
    x, label = kept.features(candidate.readout), found.rows(base).label
    assert label is not None
    scores: npt.NDArray[np.float32] = knn_scores(x[base], label, x)[:, 0]
    return scores


def _as_in_a_run(
    setup: Setup, candidate: Candidate, train: Any, probe: Any
) -> list[tuple[Any, ...]]:
    """Members and null as autopeft itself chooses them; it knows nothing of copies."""
    job = Job("null", setup.digest(), candidate, split="null")
    outcome = trial.run(setup, job)
    with np.load(Path(setup.run_dir) / "predictions" / str(outcome.predictions)) as file:
        null = file["train"][:, 0], file["probe"][:, 0]
    inside = setup.rows["train"].take(subsample(setup.rows, setup.seed))
    rows = inside, setup.rows["probe"]
    sides = [data.predictions(s, r) for s, r in zip((train, probe), rows, strict=True)]
    nulls = [data.predictions(s, r) for s, r in zip(null, rows, strict=True)]
    return [_line(sides, nulls, name) for name in ATTACKS]


def _line(sides: list[Predictions], null: list[Predictions], name: Any) -> tuple[Any, ...]:
    found = attack(sides[0], sides[1], (null[0], null[1]), name)
    assert found is not None
    return name, *numbers(found)


def numbers(found: Attack) -> tuple[str, ...]:
    """What a line keeps of an attack."""
    known = (found.auc, found.null, found.value, found.low, found.high)
    return tuple(f"{v:.5f}" for v in known)


# ---- nothing memorized, labels wrong ------------------------------------------------------------


def alarm(
    out: Path, tables: int, seeds: Iterable[int], shortcut: float = 0.9, size: Size = SIZE
) -> None:
    """Attacks on models that know nobody, or hardly anybody, with 20% of the labels wrong."""
    clean, kept = data.population(out, shortcut, size)
    noisy = _turned(clean, shortcut, size)
    done = {(line["table"], line["model"]) for line in read(out / "alarm.csv", ALARM)}
    for table in range(tables):
        if (str(table), "stranger") not in done:
            append(out / "alarm.csv", ALARM, list(_strangers(table, clean, noisy, kept)))
    for seed in seeds:
        for name, (raw, epochs) in TRAINED.items():
            if (str(seed), name) not in done:
                candidate = canonical(raw, data.network(size.image).facts)
                folder = out / "alarm" / f"{seed:02d}"
                rows, _ = _table(seed, noisy)
                setup = data.setup_of(noisy, rows, folder, epochs, size)
                lines = [(seed, name, *line) for line in _run_lines(setup, candidate)]
                append(out / "alarm.csv", ALARM, lines)
                print(f"alarm, seed {seed}: {name}", flush=True)
        shutil.rmtree(out / "alarm" / f"{seed:02d}", ignore_errors=True)


def _turned(clean: data.Films, shortcut: float, size: Size) -> data.Films:
    """The same films with 20% of the labels turned, as `phantom` turns them."""
    from autopeft.data.phantom import describe

    planted = data.phantom(data.POPULATION_SEED, size.population, shortcut, size)
    noisy = replace(planted, label_noise=NOISE, label_noise_in=EVERYONE)
    lesion = [describe(noisy, patient, 0)[1]["lesion"] for patient in range(noisy.patients)]
    return data.Films(clean.store, clean.people.assign(lesion=lesion))


def _table(table: int, noisy: data.Films) -> tuple[dict[str, Rows], npt.NDArray[Any]]:
    """1,200 patients cut into train and probe as a run does it, and 900 who are in neither."""
    drawn = np.random.default_rng([table, 20]).permutation(len(noisy.people))
    mine, others = np.sort(drawn[:1200]), np.sort(drawn[1200:2100])
    rows = noisy.rows(mine)
    assert rows.label is not None
    strata = cells(rows.label, list(rows.groups.values()))
    split = make_splits(rows.patient, strata, {"train": 0.75, "probe": 0.25}, table)
    train, probe = (rows.take(np.flatnonzero(split == name)) for name in ("train", "probe"))
    return {"train": train, "search": noisy.rows(others[:300]), "probe": probe}, others


def _strangers(
    table: int, clean: data.Films, noisy: data.Films, kept: data.Frozen
) -> list[tuple[Any, ...]]:
    """A probe that was trained on others; also against non-members with true labels (a trap)."""
    rows, others = _table(table, noisy)
    member = subsample(rows, table)
    at = canonical({"method": "linear_probe"}, data.network(SIZE.image).facts).readout
    label = noisy.rows(others).label
    assert label is not None
    head = fit_probe(kept.features(at, others), label, "binary", 0.1)
    inside, base = rows["train"].take(member), rows["train"].take(~member)
    x = [kept.features(at, r.index) for r in (inside, rows["probe"], base)]
    assert base.label is not None
    null = [knn_scores(x[2], base.label, x[k])[:, 0] for k in (0, 1)]
    found = []
    true = clean.rows(rows["probe"].index)
    for model, probe in (("stranger", rows["probe"]), ("stranger, true labels outside", true)):
        sides = [
            data.predictions(head.logits(x[k])[:, 0], r) for k, r in enumerate((inside, probe))
        ]
        nulls = [data.predictions(null[k], r) for k, r in enumerate((inside, probe))]
        found += [(table, model, *_line(sides, nulls, name)) for name in ATTACKS]
    return found


def _run_lines(setup: Setup, candidate: Candidate) -> list[tuple[Any, ...]]:
    """Trains on the members, then attacks as a run does."""
    outcome = trial.run(setup, Job("rung", setup.digest(), candidate, stop=setup.epochs))
    if outcome.status != "ok":
        raise SystemExit(f"{candidate.title}: {outcome.status} {outcome.reason}")
    with np.load(Path(setup.run_dir) / "predictions" / str(outcome.predictions)) as file:
        train, probe = (np.array(file[name][:, 0]) for name in ("train", "probe"))
    return _as_in_a_run(setup, candidate, train, probe)


# ---- tables -------------------------------------------------------------------------------------


def read(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The lines of a table; a torn one does not count."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        lines = [dict(line) for line in csv.DictReader(stream)]
    return [line for line in lines if all(line.get(c) is not None for c in columns)]


def append(file: Path, columns: tuple[str, ...], lines: list[tuple[Any, ...]]) -> None:
    """Adds lines, the names of the columns first where the table is new."""
    fresh = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if fresh:
            writer.writerow(columns)
        writer.writerows(lines)
