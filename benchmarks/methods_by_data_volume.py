"""Which methods pay, with how many labels? One table over methods x data volumes.

    python benchmarks/methods_by_data_volume.py train DIR --out FOLDER     # goes on where it was
    python benchmarks/methods_by_data_volume.py report --out FOLDER --docs docs

DIR holds ``labels.csv`` (path, patient, pneumonia) beside ``images/``: 1000 films of the NIH set,
half of them with pneumonia. Every training goes through autopeft's worker function: all blocks,
timm's own readout, the head from the fitted probe, AdamW, warm-up, cosine. Patients of ``train``
are used whole or, nested, one in ten of them. Core methods train at three learning rates (their
prior, a third and a tenth of it; the probe at three penalties) on seed 0; the rate that is best on
the search patients then trains two seeds more. All other methods train once, at a third of their
prior: that is screening, and no interval makes it more. What is told is measured on the other
patients (confirm and test), which chose nothing.

FOLDER keeps ``table.csv``, one line a training without patient, label or path, and the scores.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autopeft import trial
from autopeft.backbones.weights import load_backbone
from autopeft.data import load_task
from autopeft.drawing import WIDTH, axis, figure, line, text
from autopeft.errors import UserError
from autopeft.evaluation import Predictions
from autopeft.job import Job, Rows, Setup
from autopeft.methods import METHODS, canonical
from autopeft.methods.registry import BUILT_IN
from autopeft.metrics.classification import auroc
from autopeft.metrics.intervals import Interval, paired
from autopeft.settings import Settings
from autopeft.training.images import build_store

CORE = (
    "linear_probe", "full", "bitfit", "ln_tuning", "ssf", "ia3", "lora", "lora_qv",
    "adapter_pfeiffer", "adapter_parallel", "adapter_convpass", "vpt_deep", "gps", "sct", "unipt",
)  # fmt: skip
# Share of the training patients -> epochs: fewer films, more rounds.
VOLUMES = {1.0: 6, 0.1: 20}
FACTORS = (1.0, 0.32, 0.1)
PENALTIES = (0.01, 0.1, 1.0)
SEEDS = (1, 2)
COLUMNS = (
    "method", "volume", "rate", "seed", "status", "params", "search_auroc", "held_auroc",
    "seconds", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training of the table."""

    method: str
    volume: float
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """Its name in the table and among the scores."""
        return f"{self.method}-{self.volume:g}-{self.rate:.3g}-{self.seed}"


# ---- train --------------------------------------------------------------------------------------


def rates(method: str) -> tuple[float, ...]:
    """What a core method is tried with on seed 0."""
    if method == "linear_probe":
        return PENALTIES
    prior = METHODS[method].rates["adamw"].prior
    return tuple(float(f"{prior * factor:.3g}") for factor in FACTORS)


def planned(
    done: Mapping[str, Mapping[str, str]], volumes: Sequence[float], screening: bool
) -> Iterator[Run]:
    """What is to be trained, core methods first; seeds once all rates of a method are known."""
    for volume in volumes:
        for method in CORE:
            yield from (Run(method, volume, rate, 0) for rate in rates(method))
    for volume in volumes:
        for method in CORE:
            best = best_rate(done, method, volume)
            if best is not None:
                yield from (Run(method, volume, best, seed) for seed in SEEDS)
    for volume in volumes if screening else ():
        for method in METHODS:
            if method not in CORE and method in BUILT_IN:
                yield Run(method, volume, rates(method)[1], 0)


def best_rate(done: Mapping[str, Mapping[str, str]], method: str, volume: float) -> float | None:
    """The rate with the best AUROC on the search patients, once all are tried."""
    keys = {rate: Run(method, volume, rate, 0).key for rate in rates(method)}
    if any(key not in done for key in keys.values()):
        return None
    good = {rate: done[key] for rate, key in keys.items() if done[key]["status"] == "ok"}
    return max(good, key=lambda r: float(good[r]["search_auroc"])) if good else None


def raw(run: Run, facts: Any) -> dict[str, Any]:
    """The candidate as a person would write it."""
    given: dict[str, Any] = {
        "method": run.method, "readout_block": facts.depth, "readout_pool": facts.own_pool,
    }  # fmt: skip
    if run.method == "linear_probe":
        return given | {"weight_decay": run.rate}
    return given | {"blocks": "all", "lr": run.rate, "weight_decay": 0.01}


def open_data(args: argparse.Namespace) -> tuple[Setup, Any, int]:
    """Setup with all training rows; its search rows are search, then confirm and test."""
    settings = Settings(
        dataset=str(args.data / "labels.csv"), label=("pneumonia",), image_size=args.image_size
    )
    cache = args.out / "cache"
    task = load_task(settings, cache)
    network = load_backbone(args.backbone, args.weights, args.image_size, offline=True)
    store = build_store(task.root, task.paths.tolist(), args.image_size, "pad", cache, threads=1)
    search, confirm = task.rows("search"), task.rows("confirm")
    scored = join(join(search, confirm), task.open_test())
    setup = Setup(
        kind=task.kind, classes=task.classes, backbone=args.backbone, weights=args.weights,
        weights_sha256=network.facts.sha256, image_size=args.image_size, fit="pad",
        images=str(store.folder.resolve()), cache=str(cache.resolve()),
        run_dir=str((args.out / f"run-{args.volume or 0:g}").resolve()),
        rows={"train": task.rows("train"), "search": scored}, epochs=1, batch_size=32, views=4,
        precision="bf16", threads=args.threads, seed=0, offline=True, cache_bytes=10**10,
    )  # fmt: skip
    return setup, network.facts, len(search)


def join(first: Rows, second: Rows) -> Rows:
    """The rows of both."""
    return Rows(
        *(
            np.concatenate([getattr(first, k), getattr(second, k)])
            for k in ("path", "index", "patient", "label")
        ),
        {},
    )


def part_of(setup: Setup, volume: float) -> Setup:
    """The setup with so many of its training patients; a smaller share lies in a larger one."""
    rows = setup.rows["train"]
    chance = {
        p: int(hashlib.sha256(f"volume {p}".encode()).hexdigest()[:8], 16) / 2**32
        for p in set(rows.patient.tolist())
    }
    kept = np.array([chance[p] < volume for p in rows.patient.tolist()])
    epochs = VOLUMES[volume]
    return replace(setup, rows={**setup.rows, "train": rows.take(kept)}, epochs=epochs)


def train(args: argparse.Namespace) -> None:
    """Trains what is not in the table yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    whole, facts, search = open_data(args)
    setups = {volume: part_of(whole, volume) for volume in VOLUMES}
    label, patient = np.asarray(whole.rows["search"].label), whole.rows["search"].patient
    np.savez(args.out / "held.npz", label=label[search:], patient=patient[search:].astype(str))
    volumes = [args.volume] if args.volume else list(VOLUMES)
    while True:
        done = read(args.out)
        due = next((r for r in planned(done, volumes, args.screening) if r.key not in done), None)
        if due is None:
            return
        row = one(due, setups[due.volume], facts, search, args.out)
        write(args.out, {"method": due.method, "volume": due.volume, "rate": due.rate} | row)
        print(due.key, row["status"], row.get("held_auroc", row.get("reason")), flush=True)


def one(run: Run, setup: Setup, facts: Any, search: int, out: Path) -> dict[str, Any]:
    """Trains and scores one candidate."""
    try:
        candidate = canonical(raw(run, facts), facts)
    except UserError as error:
        return {"seed": run.seed, "status": "refused", "reason": str(error)}
    job = Job("rung", setup.digest(), candidate, repeat=run.seed, stop=setup.epochs)
    began = time.perf_counter()
    try:
        outcome = trial.run(setup, job)
    except RuntimeError as error:  # a bug of a method is a line of the table, not its end
        return {"seed": run.seed, "status": "error", "reason": " ".join(str(error).split())[:200]}
    if outcome.status != "ok" or outcome.cost is None:
        return {"seed": run.seed, "status": outcome.status, "reason": outcome.reason}
    with np.load(Path(setup.run_dir) / "predictions" / str(outcome.predictions)) as stored:
        score = stored["score"][:, 0].astype(np.float64)
    shutil.rmtree(Path(setup.run_dir) / "states")
    (out / "scores").mkdir(exist_ok=True)
    np.save(out / "scores" / f"{run.key}.npy", score[search:].astype(np.float16))
    rows = setup.rows["search"]
    parts = slice(search), slice(search, None)
    values = [
        auroc(predictions(score[p], np.asarray(rows.label)[p, 0], rows.patient[p])) for p in parts
    ]
    return {
        "seed": run.seed, "status": "ok", "reason": "",
        "params": outcome.cost.trainable_params, "search_auroc": round(values[0] or 0, 5),
        "held_auroc": round(values[1] or 0, 5), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def predictions(score: Any, label: Any, patient: Any, repeat: int = 0) -> Predictions:
    """Scores as metrics want them."""
    return Predictions(
        score=np.asarray(score, np.float64)[:, None], target=np.asarray(label)[:, None],
        patient=patient, part=np.zeros(len(score), np.int64), groups={}, classes=("pneumonia",),
        kind="binary", split="search", repeat=repeat,
    )  # fmt: skip


def read(out: Path) -> dict[str, dict[str, str]]:
    """The table by key; a torn last line does not count."""
    file = out / "table.csv"
    if not file.exists():
        return {}
    with file.open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r.get("reason") is not None]
    return {
        Run(r["method"], float(r["volume"]), float(r["rate"]), int(r["seed"])).key: r for r in rows
    }


def write(out: Path, row: Mapping[str, Any]) -> None:
    """Appends one line, whole."""
    file = out / "table.csv"
    fresh = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
        stream.flush()
        os.fsync(stream.fileno())


# ---- report -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One method at one volume."""

    method: str
    seeds: int
    params: int
    rate: float
    auroc: float
    to_lora: Interval | None
    to_probe: Interval | None


def lines(out: Path, volume: float) -> list[Line]:
    """All methods with at least one whole training, best first."""
    done, found = read(out), {}
    with np.load(out / "held.npz") as held:
        label, patient = held["label"][:, 0], held["patient"]

    def scored(method: str, rate: float) -> list[Predictions]:
        every = [Run(method, volume, rate, seed) for seed in (0, *SEEDS)]
        return [
            predictions(np.load(out / "scores" / f"{r.key}.npy"), label, patient, r.seed)
            for r in every
            if done.get(r.key, {}).get("status") == "ok"
        ]

    for method in METHODS:
        rate = best_rate(done, method, volume) if method in CORE else rates(method)[1]
        if rate is not None and (several := scored(method, rate)):
            found[method] = (rate, several)
    told = []
    for method, (rate, several) in found.items():
        first = done[Run(method, volume, rate, 0).key]
        differences: list[Interval | None] = []
        for other in ("lora", "linear_probe"):
            against = found.get(other, (0.0, []))[1][: len(several)]
            alike = other == method or len(against) < len(several)
            differences.append(None if alike else paired(several, against))
        mean = float(np.mean([auroc(p) or 0.0 for p in several]))
        told.append(Line(method, len(several), int(first["params"]), rate, mean, *differences))
    return sorted(told, key=lambda r: -r.auroc)


def shown(interval: Interval | None) -> str:
    """``+.012 (-.004 to +.028)``."""
    if interval is None:
        return ""
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def table(found: Sequence[Line]) -> str:
    """Markdown."""
    rows = [
        "| method | seeds | trained numbers | rate | AUROC | minus LoRA r=8 | minus probe |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found:
        seeds = str(r.seeds) if r.method in CORE else "1, screening"
        rows.append(
            f"| {r.method} | {seeds} | {r.params:,} | {r.rate:g} | {r.auroc:.3f} "
            f"| {shown(r.to_lora)} | {shown(r.to_probe)} |"
        )
    return "\n".join(rows)


def picture(found: Sequence[Line], title: str, told: str) -> str:
    """Difference to the probe with its interval, one line a core method."""
    core = [r for r in found if r.method in CORE and r.to_probe is not None]
    top, step, left = 44.0, 22.0, 150.0
    ends = [v for r in core if r.to_probe for v in (r.to_probe.low, r.to_probe.high)]
    x = axis([0.0, *ends], left, WIDTH - 20.0)
    bottom = top + step * len(core)
    parts = [text(12, 22, title)]
    for tick in x.ticks:
        parts.append(line(x.at(tick), top - 8, x.at(tick), bottom, "re" if tick == 0 else "gr"))
        parts.append(text(x.at(tick), bottom + 18, x.form(tick), "c mu"))
    for number, r in enumerate(core):
        assert r.to_probe is not None
        y = top + step * (number + 0.5)
        parts.append(text(left - 8, y + 4, r.method, "e"))
        parts.append(line(x.at(r.to_probe.low), y, x.at(r.to_probe.high), y, "l1"))
        at = x.at(r.to_probe.value)
        parts.append(f'<circle class="p1" cx="{at:.1f}" cy="{y:.1f}" r="4"/>')
    parts.append(text((left + WIDTH) / 2, bottom + 40, "AUROC minus the linear probe's", "c"))
    return figure(title, told, bottom + 54, parts, "methods").svg


def report(args: argparse.Namespace) -> None:
    """Prints both tables and draws both pictures."""
    for volume in VOLUMES:
        found = lines(args.out, volume)
        title = f"{volume:.0%} of the training patients"
        print(f"\n## {title}, {date.today()}\n\n{table(found)}")
        if args.docs:
            svg = picture(found, title, "Core methods, 95 % intervals over patients, paired")
            (args.docs / f"methods_{volume * 100:.0f}.svg").write_text(svg + "\n")
    failed = {r["method"]: r["reason"] for r in read(args.out).values() if r["status"] != "ok"}
    for method, reason in failed.items():
        print(f"\nnot trained: {method}: {reason}")


def main() -> None:
    """Trains or reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--backbone", default="autopeft_vit_nano")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--volume",
        type=float,
        choices=tuple(VOLUMES),
        help="only this one: two processes may share one FOLDER",
    )
    parser.add_argument("--screening", action="store_true", help="all other methods too, once")
    args = parser.parse_args()
    if args.what == "report":
        report(args)
        return
    if args.data is None or not (args.data / "labels.csv").exists():
        raise SystemExit("give the folder that holds labels.csv and images/")
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
