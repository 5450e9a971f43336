"""Does what a search holds in memory grow with the table? Does a warm memory map disturb Ray?

    python benchmarks/memory.py                   # tables of 22,400 and of 224,000 rows
    python benchmarks/memory.py --map-gb 6        # a warm map beside Ray's memory monitor

A table's images are hard links to 300 small JPEGs. Each table has a fresh process that opens it,
makes the workers' setup, decodes 3,000 images and trains LoRA on the last two blocks for an epoch
over them, with a prefix store that may hold one of the two views, and prints its resident memory
after each step: its own (anonymous), and mapped files (libraries, images, frozen states).

The second part sets the limit of Ray's memory monitor 3 GB above what is used. One worker maps a
sparse file, larger than that, and reads it: it must live. Another one takes as much memory of its
own: it must be killed, or the monitor was asleep.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

GB = 10**9
PATIENT_ROWS = 3
PICTURES, SIDE = 300, 160
TRAIN, SEARCH = 2400, 600


def status(name: str) -> float:
    """A line of this process's status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def say(step: str) -> None:
    """One row of the table: own memory, mapped files, peak."""
    own, files, peak = (status(name) for name in ("RssAnon", "RssFile", "VmHWM"))
    print(f"| {step} | {own:.0f} | {files:.0f} | {peak:.0f} |", flush=True)


def write_table(folder: Path, rows: int) -> Path:
    """A CSV in the shape of CheXpert's and its images, 1,000 to a folder."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for i in range(PICTURES):
        film = rng.integers(0, 256, (SIDE // 8, SIDE // 8), dtype=np.uint8)
        film = np.kron(film, np.ones((8, 8), np.uint8))
        Image.fromarray(film).save(pictures / f"{i}.jpg", quality=90)
    lines = ["path,patient,sex,age,effusion,edema"]
    for i in range(rows):
        patient = i // PATIENT_ROWS
        path = (
            f"train/{i // 1000:03}/patient{patient:06}/study1/view{i % PATIENT_ROWS}_frontal.jpg"
        )
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(pictures / f"{i % PICTURES}.jpg", folder / path)
        sex, age = "FM"[patient % 2], 20 + patient % 70
        lines.append(f"{path},{patient:06},{sex},{age},{patient % 2},{patient // 2 % 2}")
    csv = folder / "labels.csv"
    csv.write_text("\n".join(lines) + "\n")
    return csv


def one(csv: Path, cache_gb: float) -> None:
    """What one process holds, step by step."""
    from autopeft.training.allocator import keep_memory

    keep_memory()
    import torch

    from autopeft import trial
    from autopeft.backbones.weights import load_backbone
    from autopeft.data import load_task
    from autopeft.job import Job, Rows, Setup
    from autopeft.methods import canonical
    from autopeft.settings import Settings
    from autopeft.training.images import build_store

    torch.set_num_threads(1)
    print("| step | own MB | mapped files MB | peak MB |\n|---|---|---|---|")
    network = load_backbone("autopeft_vit_nano", None, None, True)
    say("backbone loaded")
    settings = Settings(
        dataset=str(csv), label=("effusion", "edema"), group=("sex", "age:60"),
        patient_column="patient", runs_dir=str(csv.parent / "runs"),
    )  # fmt: skip
    cache = csv.parent / "cache"
    task = load_task(settings, cache)
    say("table opened")
    every = {split: task.rows(split) for split in ("train", "search")}
    say("rows of the setup")
    sent = len(pickle.dumps(every))
    say("setup written for a worker")
    some = [every["train"].take(np.arange(TRAIN)), every["search"].take(np.arange(SEARCH))]
    paths = [str(path) for rows in some for path in rows.path]
    size = network.facts.image_size
    store = build_store(task.root, paths, size, "pad", cache)
    say(f"{len(paths)} images decoded")

    def placed(rows: Rows, first: int) -> Rows:
        return replace(rows, index=np.arange(first, first + len(rows)))

    run = csv.parent / "run"
    setup = Setup(
        kind=task.kind, classes=task.classes, backbone="autopeft_vit_nano", weights=None,
        weights_sha256=network.facts.sha256, image_size=size, fit="pad",
        images=str(store.folder), cache=str(cache), run_dir=str(run),
        rows={"train": placed(some[0], 0), "search": placed(some[1], TRAIN)},
        epochs=2, batch_size=32, views=2, precision="bf16", threads=1, seed=0, offline=True,
        cache_bytes=int(cache_gb * GB),
    )  # fmt: skip
    raw = {"method": "lora", "r": 8, "blocks": 2, "lr": 1e-3, "head_init": "random"}
    candidate = canonical(raw, network.facts)
    state = None
    for epoch in range(2):
        job = Job(
            "rung", setup.digest(), candidate, start=epoch, stop=epoch + 1, state=state
        )  # fmt: skip
        outcome = trial.run(setup, job)
        assert outcome.status == "ok", outcome.reason
        state = outcome.state
        say(f"epoch {epoch + 1} trained (states there already, asked: {outcome.extra['prefix']})")
    held = sum(f.stat().st_size for p in cache.glob("prefix-*-*-*") for f in p.iterdir())
    print(
        f"\n{len(task.paths)} rows; prefix store {held / 1e6:.0f} MB of {1000 * cache_gb:.0f}; "
        f"setup for a worker {sent / 1e6:.1f} MB, {sent / len(task.paths):.0f} bytes a row\n"
    )


def tables(rows: list[int], cache_gb: float, where: str | None) -> None:
    """Each table in a fresh process."""
    for count in rows:
        with tempfile.TemporaryDirectory(dir=where) as folder:
            began = time.perf_counter()
            csv = write_table(Path(folder), count)
            print(f"\n{count} rows (written in {time.perf_counter() - began:.0f} s)\n", flush=True)
            here = [sys.executable, __file__, "--one", str(csv), "--cache-gb", str(cache_gb)]
            subprocess.run(here, check=True)


# ---- Ray ----------------------------------------------------------------------------------------


def used() -> str:
    """Used memory as the system and as Ray's own function see it."""
    from ray._private.utils import get_used_memory

    total, free, cached = (_meminfo(name) for name in ("MemTotal", "MemAvailable", "Cached"))
    return (
        f"MemTotal - MemAvailable {(total - free) / GB:.2f} GB, page cache {cached / GB:.2f} GB, "
        f"Ray says used {get_used_memory() / GB:.2f} GB"
    )


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def warm_map(gigabytes: float, room_gb: float, where: str | None) -> None:
    """A worker with a warm map larger than the monitor's room, and one with memory of its own."""
    total = _meminfo("MemTotal")
    taken = total - _meminfo("MemAvailable")
    threshold = (taken + room_gb * GB) / total
    # Ray reads these names as they are, in small letters.
    os.environ["RAY_memory_usage_threshold"] = f"{threshold:.4f}"  # noqa: SIM112
    os.environ["RAY_memory_monitor_refresh_ms"] = "250"  # noqa: SIM112
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    print(f"limit of the monitor: {threshold * total / GB:.2f} of {total / GB:.2f} GB")
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR", object_store_memory=200 * 2**20,
    )  # fmt: skip

    @ray.remote(max_restarts=0)
    class Reader:
        def read(self, path: str) -> int:
            """Maps a file and touches every page of it."""
            self.map = np.load(path, mmap_mode="r")
            step = 2**26
            return sum(int(self.map[i : i + step].max()) for i in range(0, len(self.map), step))

        def resident(self) -> tuple[float, float]:
            return status("RssAnon"), status("RssFile")

        def take(self, size: int) -> int:
            self.own = np.ones(size, np.uint8)
            time.sleep(20)
            return int(self.own[::4096].sum())

    print("before: ", used())
    with tempfile.TemporaryDirectory(dir=where) as folder:
        path = f"{folder}/map.npy"
        np.lib.format.open_memmap(path, "w+", np.uint8, (int(gigabytes * GB),)).flush()
        reader = Reader.remote()
        ray.get(reader.read.remote(path))
        time.sleep(5)
        own, files = ray.get(reader.resident.remote())
        print("warm:   ", used())
        print(f"the worker lives, with {own:.0f} MB of its own and {files:.0f} MB of the map")
        eater = Reader.remote()
        try:
            ray.get(eater.take.remote(int((room_gb + 1) * GB)))
            print(f"a worker with {room_gb + 1:g} GB of its own lives: the monitor sleeps")
        except (ray.exceptions.OutOfMemoryError, ray.exceptions.RayActorError) as error:
            words = " ".join(str(error).split())
            print(f"a worker with {room_gb + 1:g} GB of its own: {type(error).__name__}: ...")
            print("  " + words.partition("OOM kill reason: ")[2].partition(" Object store")[0])
        try:
            print("the reader afterwards:", ray.get(reader.resident.remote()))
        except ray.exceptions.RayError as error:
            print(f"the reader afterwards: {type(error).__name__}")
        print("after:  ", used())
    ray.shutdown()


def main() -> None:
    """Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[22_400, 224_000])
    parser.add_argument("--cache-gb", type=float, default=0.15)
    parser.add_argument("--map-gb", type=float, help="instead: a warm map beside Ray")
    parser.add_argument("--room-gb", type=float, default=3.0, help="left to Ray's monitor")
    parser.add_argument("--folder", help="where tables and maps are made")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.cache_gb)
    elif args.map_gb:
        warm_map(args.map_gb, args.room_gb, args.folder)
    else:
        tables(args.rows, args.cache_gb, args.folder)


if __name__ == "__main__":
    main()
