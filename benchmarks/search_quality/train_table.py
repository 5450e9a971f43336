"""Trains every candidate of `space.yaml` once and writes what each epoch was worth.

    python benchmarks/search_quality/train_table.py DIR --out FOLDER

DIR holds `labels.csv` (path, patient, pneumonia, sex) beside `images/`: 1000 films of the NIH
set, half of them with pneumonia. Training goes through autopeft's own inner loop, one job an
epoch, each from the saved state of the one before. FOLDER keeps the predictions of every epoch on
the search patients and on the held-out ones (those of `test`), and `table.csv`, one line an epoch,
which holds no patient, no label and no path. Killed, it goes on with the next candidate.

Seconds are processor seconds of one thread, so that other work on the machine does not count; of
scoring only the search patients' share is counted. `replay.py` reads the table.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import timm
import torch
from curves import key

from autopeft import trial
from autopeft.backbones.weights import load_backbone
from autopeft.candidate import Candidate
from autopeft.data import load_task
from autopeft.job import Job, Rows, Setup
from autopeft.methods import canonical
from autopeft.metrics.classification import auroc_binary
from autopeft.settings import Settings
from autopeft.space import Space, load_space
from autopeft.training.images import build_store

SPACE = Path(__file__).with_name("space.yaml")
BACKBONE = "autopeft_vit_nano"
EPOCHS = 9
SIZE = 56  # px: 16 patches, so that the whole table takes less than an hour of one core
COLUMNS = (
    "params", "epoch", "status", "search_auroc", "search_worst_group",
    "heldout_auroc", "heldout_worst_group", "seconds", "trainable_params",
)  # fmt: skip

Params = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What every training needs.

    Attributes:
        setup: its ``search`` rows are the search patients, then the held-out ones.
        search: how many of them are search rows.
        facts: the backbone.
    """

    setup: Setup
    search: int
    facts: Any

    @property
    def scored(self) -> Rows:
        """Search rows, then held-out rows."""
        return self.setup.rows["search"]


def grid(space: Space) -> Iterator[Params]:
    """Yields the parameters of every candidate, by the names that they have in a study."""
    for method, section in space.methods.items():
        fields = [field for field in section if field.distribution is not None]
        for values in itertools.product(*(field.extremes for field in fields)):
            names = (field.name for field in fields)
            yield {"method": method, **dict(zip(names, values, strict=True))}


def candidate_of(space: Space, params: Params, facts: Any) -> Candidate:
    return canonical(space.ask(optuna.trial.FixedTrial(params), facts), facts)


# ---- setup -----------------------------------------------------------------------------------


def prepare(data: Path, out: Path, epochs: int = EPOCHS) -> Bench:
    """Opens data, backbone and images. Two in five training patients are enough here."""
    torch.set_num_threads(1)
    settings = Settings(
        dataset=str(data / "labels.csv"), label=("pneumonia",), group=("sex",), image_size=SIZE
    )
    cache = out / "cache"
    task = load_task(settings, cache)
    network = load_backbone(BACKBONE, None, SIZE, offline=True)
    store = build_store(task.root, task.paths.tolist(), SIZE, "pad", cache, threads=1)
    train, search = task.rows("train"), task.rows("search")
    person = np.unique(train.patient, return_inverse=True)[1]
    heldout = task.open_test()
    setup = Setup(
        kind=task.kind,
        classes=task.classes,
        backbone=BACKBONE,
        weights=None,
        weights_sha256=network.facts.sha256,
        image_size=SIZE,
        fit="pad",
        images=str(store.folder.resolve()),
        cache=str(cache.resolve()),
        run_dir=str((out / "run").resolve()),
        rows={"train": train.take(person % 5 < 2), "search": join(search, heldout)},
        epochs=epochs,
        batch_size=32,
        views=2,
        precision="bf16",
        threads=1,
        seed=0,
        offline=True,
    )
    return Bench(setup, len(search), network.facts)


def join(first: Rows, second: Rows) -> Rows:
    """The rows of both, in this order."""
    assert first.label is not None
    assert second.label is not None
    return Rows(
        np.concatenate([first.path, second.path]),
        np.concatenate([first.index, second.index]),
        np.concatenate([first.patient, second.patient]),
        np.concatenate([first.label, second.label]),
        {k: np.concatenate([v, second.groups[k]]) for k, v in first.groups.items()},
    )


# ---- training --------------------------------------------------------------------------------


def train(bench: Bench, candidate: Candidate, params: Params) -> list[dict[str, Any]]:
    """One row an epoch, the failed one included. A fitted probe is the same at every epoch."""
    rows: list[dict[str, Any]] = []
    seconds, state, setup = 0.0, None, bench.setup
    fitted = candidate.train.optimizer == "lbfgs"
    for epoch in range(setup.epochs):
        if fitted and rows:
            rows.append({**rows[0], "epoch": epoch + 1})
            continue
        job = Job("rung", setup.digest(), candidate, start=epoch, stop=epoch + 1, state=state)
        wall, processor = time.perf_counter(), time.process_time()
        outcome = trial.run(setup, job)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        trained = outcome.cost.train_seconds if outcome.cost else wall
        scored = (wall - trained) * bench.search / len(bench.scored)
        seconds += processor * (trained + scored) / wall
        row = {"params": key(params), "epoch": epoch + 1, "status": outcome.status}
        rows.append(row | {"seconds": round(seconds, 3)})
        if outcome.status != "ok":
            print(f"  {outcome.status}: {outcome.reason}", flush=True)
            break
        assert outcome.cost is not None
        rows[-1] |= worth(bench, str(outcome.predictions))
        rows[-1]["trainable_params"] = outcome.cost.trainable_params
        if state is not None:
            shutil.rmtree(Path(setup.run_dir) / "states" / state)
        state = outcome.state
    if state is not None:
        shutil.rmtree(Path(setup.run_dir) / "states" / state)
    return rows


def worth(bench: Bench, predictions: str) -> dict[str, float]:
    """AUROC over all films and in the worse served sex, on both sets of patients."""
    with np.load(Path(bench.setup.run_dir) / "predictions" / predictions) as stored:
        score = stored["score"][:, 0].astype(np.float64)
    rows = bench.scored
    assert rows.label is not None
    label, sex = rows.label[:, 0], rows.groups["sex"]
    found = {}
    for name, part in (("search", slice(bench.search)), ("heldout", slice(bench.search, None))):
        members = [sex[part] == group for group in ("sex=F", "sex=M")]
        every = [auroc_binary(score[part][m], label[part][m]) for m in members]
        assert None not in every
        found[f"{name}_auroc"] = auroc_binary(score[part], label[part])
        found[f"{name}_worst_group"] = min(every)  # type: ignore[type-var]
    return {k: round(float(v), 5) for k, v in found.items() if v is not None}


# ---- the table -------------------------------------------------------------------------------


def read_keys(table: Path) -> set[str]:
    """Candidates that are done; a torn last line is cut off."""
    if not table.exists():
        return set()
    data = table.read_bytes()
    os.truncate(table, data.rfind(b"\n") + 1)
    lines = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    return {row["params"] for row in rows if row["epoch"] == str(EPOCHS) or row["status"] != "ok"}


def append(table: Path, rows: Iterable[dict[str, Any]], comments: Iterable[str]) -> None:
    """Adds a candidate's lines at once and flushes them to disk."""
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            file.writelines(f"# {line}\n" for line in comments)
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def about(bench: Bench) -> list[str]:
    """What the table is and where it was trained."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    setup = bench.setup
    films = f"{len(setup.rows['train'])} train, {bench.search} search"
    return [
        f"{BACKBONE} at {SIZE} px, {setup.epochs} epochs, {setup.views} views, {setup.precision}",
        f"NIH pneumonia: {films}, {len(bench.scored) - bench.search} held-out films",
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu}, 1 thread; seconds are processor seconds",
        f"python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train every candidate of space.yaml once.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    bench, space = prepare(options.data, options.out), load_space(str(SPACE))
    points = list(grid(space))
    candidates = [candidate_of(space, params, bench.facts) for params in points]
    assert len({c.fingerprint for c in candidates}) == len(points), "two points, one candidate"
    table = options.out / "table.csv"
    done = read_keys(table)
    # Shallow adapters first: the table is complete for them before the slow ones begin.
    shuffled = np.random.default_rng(0).permutation(len(points)).tolist()
    order = sorted(shuffled, key=lambda i: 6 in points[i].values())
    due = [i for i in order if key(points[i]) not in done]
    warm_up(bench, candidates)
    for count, i in enumerate(due):
        started = time.perf_counter()
        rows = train(bench, candidates[i], points[i])
        append(table, rows, about(bench))
        last = rows[-1].get("search_auroc", "failed")
        passed = time.perf_counter() - started
        print(f"{count + 1}/{len(due)} {passed:.1f} s {last} {candidates[i].title}", flush=True)


def warm_up(bench: Bench, candidates: Iterable[Candidate]) -> None:
    """Loads the backbone and caches the frozen features, which no candidate should pay for."""
    first = next(c for c in candidates if c.strata and c.train.head_init == "probe")
    trial.run(bench.setup, Job("rung", bench.setup.digest(), first, stop=1))


if __name__ == "__main__":
    main()
