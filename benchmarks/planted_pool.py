"""The pool of planted.py: candidates of one seed, what each rule picks, and the truth of it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import planted_data as data
from planted_data import SIZE, Size

from autopeft import trial
from autopeft.adapter import load_adapter
from autopeft.candidate import Candidate
from autopeft.job import Job, Rows
from autopeft.methods import canonical
from autopeft.objective import load_objective
from autopeft.rules import overall, worst_group
from autopeft.training.fast import speed_up


def _lora(first: int, r: int = 8, **train: Any) -> dict[str, Any]:
    place = {"method": "lora", "blocks": [first, 5], "r": r, "lora_alpha": 2 * r}
    return place | {"lr": 2e-3} | train


def _probe(block: int, pool: str, **train: Any) -> dict[str, Any]:
    place = {"readout_block": block, "readout_pool": pool}
    return {"method": "linear_probe", **place, "weight_decay": 0.1} | train


DRO = {"sampling": "label_x_group", "group_dro": True}
BOTH = {"readout_block": 6, "readout_pool": "token+avg"}
# What the start of a search meets, methods and depths of all kinds: a quarter weighs groups.
MIXED: dict[str, dict[str, Any]] = {
    "probe 6 token": _probe(6, "token"),
    "probe 6 both": _probe(6, "token+avg"),
    "probe 5 both": _probe(5, "token+avg"),
    "probe 4 both": _probe(4, "token+avg"),
    "probe 4 avg": _probe(4, "avg"),
    "probe 3 both": _probe(3, "token+avg"),
    "probe 6 both, label x group": _probe(6, "token+avg", sampling="label_x_group"),
    "lora r=8 blocks 3-5": _lora(3),
    "lora r=8 blocks 4-5": _lora(4),
    "lora r=2 block 5": _lora(5, 2),
    "lora r=32 blocks 4-5": _lora(4, 32),
    "lora r=8 blocks 4-5, lr 5e-4": _lora(4, lr=5e-4),
    "lora r=8 blocks 4-5, both": _lora(4) | BOTH,
    "bitfit blocks 4-5": {"method": "bitfit", "blocks": [4, 5], "lr": 5e-3},
    "ssf blocks 4-5": {"method": "ssf", "blocks": [4, 5], "lr": 5e-3},
    "lora r=8 blocks 4-5, group": _lora(4, sampling="group"),
    "lora r=8 blocks 4-5, label x group": _lora(4, sampling="label_x_group"),
    "lora r=8 blocks 4-5, weighted": _lora(4, loss="weighted"),
    "lora r=8 blocks 3-5, DRO": _lora(3, **DRO),
    "lora r=8 blocks 4-5, DRO": _lora(4, **DRO),
    "lora r=8 blocks 4-5, both, DRO": _lora(4, **DRO) | BOTH,
    "lora r=2 block 5, DRO": _lora(5, 2, **DRO),
    "bitfit blocks 4-5, DRO": {"method": "bitfit", "blocks": [4, 5], "lr": 5e-3} | DRO,
    "ssf blocks 4-5, DRO": {"method": "ssf", "blocks": [4, 5], "lr": 5e-3} | DRO,
}
# What is left late in a search, only good places: half of it weighs groups.
LATE = {
    f"lora r={r} blocks {first}-5, lr {lr:g}{', DRO' if dro else ''}": _lora(first, r, lr=lr)
    | BOTH
    | (DRO if dro else {})
    for first in (3, 4)
    for r in (8, 32)
    for lr in (2e-3, 4e-3)
    for dro in (False, True)
}


@dataclass(frozen=True)
class Design:
    """What is planted, and who may be picked.

    Attributes:
        pool: name -> candidate as given.
        floor: the plain references of `fairness`: its floor is the best of them, minus .01.
        size: how large everything is.
        shortcut: how strongly the mark goes with the lesion in men.
    """

    pool: dict[str, dict[str, Any]]
    floor: tuple[str, ...]
    size: Size = SIZE
    shortcut: float = 0.9


_PLAIN = ("probe 6 both", "lora r=8 blocks 3-5")
DESIGNS = {
    "mixed": Design(MIXED, _PLAIN),
    "late": Design(LATE, ("lora r=8 blocks 3-5, lr 0.002",)),
    "few-women": Design(MIXED, _PLAIN, replace(SIZE, women=0.2, train=2000)),
}


def candidates(design: Design) -> dict[str, Candidate]:
    """Name -> candidate of a pool."""
    facts = data.network(design.size.image).facts
    return {name: canonical(raw, facts) for name, raw in design.pool.items()}


def pool(out: Path, kind: str, seed: int) -> None:
    """Trains, picks and reads the truth for one seed; what is there is not done again."""
    design = DESIGNS[kind]
    size, shortcut = design.size, design.shortcut
    folder = out / kind / f"{seed:02d}"
    made = {name: folder / f"{_file(name)}.npz" for name in design.pool}
    if (folder / "done").exists():
        return
    net, everyone = data.network(size.image), candidates(design)
    found = data.films(out, data.phantom(seed, size.train + size.search, shortcut, size))
    rows = {"train": found.rows(slice(size.train)), "search": found.rows(slice(size.train, None))}
    setup = data.setup_of(found, rows, folder, size.epochs, size)
    jobs = {name: Job("rung", setup.digest(), c, stop=size.epochs) for name, c in everyone.items()}
    for name, job in jobs.items():
        if not made[name].exists():
            began = time.process_time()
            outcome = trial.run(setup, job)
            if outcome.status != "ok" or outcome.cost is None:
                raise SystemExit(f"seed {seed}, {name}: {outcome.status} {outcome.reason}")
            with np.load(Path(setup.run_dir) / "predictions" / str(outcome.predictions)) as file:
                score = file["score"][:, 0]
            spent = time.process_time() - began
            params = outcome.cost.trainable_params
            data.save(made[name], score=score, params=params, seconds=spent)
            print(f"{kind} {seed} {name}: {spent:.1f} s", flush=True)
    _, states = data.fresh(out, shortcut, size)
    for name in sorted(set(picks(folder, design, rows["search"]).values())):
        file = folder / f"fresh-{_file(name)}.npz"
        if not file.exists():
            began = time.process_time()
            model = load_adapter(Path(setup.run_dir) / "states" / jobs[name].name, network=net)
            speed_up(model.adapted, "bf16", data.casts(size.image))
            data.save(file, score=data.scores(model.adapted, states).astype(np.float32))
            print(f"{kind} {seed} fresh {name}: {time.process_time() - began:.1f} s", flush=True)
    np.save(folder / "mark.npy", found.people["mark"].to_numpy()[size.train :])
    shutil.rmtree(folder / "cache", ignore_errors=True)
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "done").touch()


def _file(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def scored(folder: Path, design: Design, rows: Rows) -> dict[str, tuple[data.Predictions, int]]:
    """Candidate -> predictions on search, trained numbers."""
    found = {}
    for name in design.pool:
        with np.load(folder / f"{_file(name)}.npz") as file:
            found[name] = data.predictions(file["score"], rows), int(file["params"])
    return found


def picks(folder: Path, design: Design, rows: Rows) -> dict[str, str]:
    """Rule -> the candidate that it picks of a seed's pool, by the search patients."""
    known = scored(folder, design, rows)
    floor = max(data.values(known[name][0]).auroc for name in design.floor)
    names = list(known)
    every = [data.evaluation(p, params, floor) for p, params in known.values()]
    fairness = load_objective("fairness")
    front = list(fairness.front(every))
    return {
        "auroc": names[overall(every)],
        "worst_group": names[worst_group(every)],
        "fairness": names[front[fairness.choose([every[i] for i in front])]],
    }


def fresh_scores(folder: Path, name: str) -> Any:
    """Scores [N] of a pick on the fresh patients."""
    with np.load(folder / f"fresh-{_file(name)}.npz") as file:
        return file["score"]
