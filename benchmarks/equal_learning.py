"""Does the fast path learn the same as the reference path?

    python benchmarks/equal_learning.py LABELS.csv --label pneumonia
    ... --backbone vit_small_patch14_dinov2 --weights FILE --image-size 112

One candidate (LoRA r=8 on all blocks or the last few), several repeats, two ways. ``fast`` is
what a worker does: bf16, frozen linear and LoRA as one function, states from the prefix store.
``reference`` is timm's forward pass and peft's own layers in fp32, from pixels, with the same
data order, views, schedule and initial values. Both are scored on the search and confirm patients;
the difference is paired by repeat and beside it stands what the repeats themselves differ by.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import torch

from autopeft import settings as settings_file
from autopeft import trial
from autopeft.backbones.weights import load_backbone
from autopeft.evaluation import Predictions
from autopeft.job import Rows
from autopeft.methods import build, canonical
from autopeft.metrics.classification import auroc
from autopeft.metrics.intervals import paired
from autopeft.prepare import make_setup, prepare
from autopeft.progress import Screen
from autopeft.training.fast import speed_up
from autopeft.training.images import open_store
from autopeft.training.loop import Plan, Source, pixels, train_epochs
from autopeft.training.precision import autocast

PARTS = ("search", "confirm")


def main() -> None:
    """Prints a table by repeat and the paired difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels")
    parser.add_argument("--label", required=True)
    parser.add_argument("--backbone", default="autopeft_vit_nano")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--last", type=int, help="adapt so many blocks; default all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        values = {
            "dataset": args.labels, "label": (args.label,), "backbone": args.backbone,
            "weights": args.weights, "image_size": args.image_size, "epochs": args.epochs,
            "runs_dir": out, "name": "equal", "precision": "bf16", "quiet": True,
        }  # fmt: skip
        settings = settings_file.from_mapping(settings_file.complete(values), "equal_learning")
        ready = prepare(settings, Screen(True))
        setup = make_setup(settings, ready)
        rows = {p: ready.task.rows(p) for p in PARTS}
        torch.set_num_threads(setup.threads)
        raw = {
            "method": "lora", "r": 8, "modules": "all", "lr": args.lr,
            "blocks": args.last or "all",
            "readout_block": ready.network.facts.depth,
            "readout_pool": ready.network.facts.own_pool, "head_init": "random",
        }  # fmt: skip
        candidate = canonical(raw, ready.network.facts)
        found: dict[str, list[Predictions]] = {"fast": [], "reference": []}
        print(f"{args.backbone}, {args.epochs} epochs, {candidate.title}, {date.today()}, ")
        print(f"load {os.getloadavg()[0]:.1f}\n")
        print("| repeat | fast | reference | difference | fast s | reference s |")
        print("|---|---|---|---|---|---|")
        for repeat in range(args.repeats):
            seconds = {}
            for way in found:
                began = time.perf_counter()
                found[way].append(train(way, setup, candidate, repeat, rows))
                seconds[way] = time.perf_counter() - began
            fast, slow = (auroc(found[w][-1]) or 0.0 for w in found)
            print(
                f"| {repeat} | {fast:.4f} | {slow:.4f} | {fast - slow:+.4f} "
                f"| {seconds['fast']:.0f} | {seconds['reference']:.0f} |",
                flush=True,
            )
        tell(found)


def train(way: str, setup: Any, candidate: Any, repeat: int, rows: dict[str, Rows]) -> Predictions:
    """One training, scored on the rows of both parts."""
    fast = way == "fast"
    precision = "bf16" if fast else "fp32"
    if fast:
        resident = trial._resident(setup)
        network, store = resident.network, resident.store
    else:
        network = load_backbone(setup.backbone, setup.weights, setup.image_size, True)
        store = open_store(setup.images)
    adapted = build(network, candidate, len(setup.classes), setup.seed, repeat)
    source = Source(0, lambda index, view: pixels(store, network.facts, index, view))
    if fast:
        speed_up(adapted, "bf16", resident.casts)
        source = trial._source(resident, adapted)
    plan = Plan(
        rows=setup.rows["train"], source=source, kind=setup.kind, train=candidate.train,
        epochs=setup.epochs, batch_size=setup.batch_size, micro_batch=0, views=setup.views,
        seed=setup.seed, repeat=repeat, precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    train_epochs(adapted, plan, 0, setup.epochs)
    scores, adapted_rows = [], list(rows.values())
    with torch.no_grad(), autocast(precision):  # type: ignore[arg-type]
        for part in adapted_rows:
            for start in range(0, len(part), 64):
                index = part.index[start : start + 64]
                x = pixels(store, network.facts, index, np.zeros(len(index), np.int64))
                scores.append(adapted.logits(x).float().numpy())
    return Predictions(
        score=np.concatenate(scores).astype(np.float64),
        target=np.concatenate([np.asarray(r.label) for r in adapted_rows]),
        patient=np.concatenate([r.patient for r in adapted_rows]),
        part=np.concatenate([np.full(len(r), i) for i, r in enumerate(adapted_rows)]),
        groups={}, classes=setup.classes, kind=setup.kind, split="search", repeat=repeat,
    )  # fmt: skip


def tell(found: dict[str, list[Predictions]]) -> None:
    """The paired difference, and the noise between repeats."""
    values = {w: np.array([auroc(p) or 0.0 for p in f]) for w, f in found.items()}
    apart = values["fast"] - values["reference"]
    n = len(apart)
    print(f"\nmean: fast {values['fast'].mean():.4f} (sd {values['fast'].std(ddof=1):.4f}), ")
    print(f"reference {values['reference'].mean():.4f} (sd {values['reference'].std(ddof=1):.4f})")
    print(f"paired by repeat: {apart.mean():+.4f}, sd {apart.std(ddof=1):.4f}, ")
    print(f"standard error {apart.std(ddof=1) / np.sqrt(n):.4f}")
    one = [replace(p, part=np.zeros_like(p.part)) for p in found["fast"]]
    two = [replace(p, part=np.zeros_like(p.part)) for p in found["reference"]]
    i = paired(one, two)
    if i is not None:
        print(
            f"over patients: {i.value:+.4f} ({i.low:+.4f} to {i.high:+.4f}), {i.patients} patients"
        )


if __name__ == "__main__":
    main()
