"""A worker function that reads and writes the files a real one does. No torch. For tests."""

import os
import time
from pathlib import Path

import numpy as np
import ray

from autopeft.evaluation import Cost
from autopeft.files import new_folder, write_bytes
from autopeft.job import Job, Outcome, Setup


def run(setup: Setup, job: Job) -> Outcome:
    """``setup.simulated["seconds"]`` is how long it takes."""
    images = np.load(Path(setup.images) / "images.npy", mmap_mode="r")
    state = ""
    if job.state is not None:
        state = (Path(setup.run_dir) / "states" / job.state / "state.txt").read_text()
    time.sleep((setup.simulated or {}).get("seconds", 0.0))
    write_bytes(Path(setup.run_dir) / "predictions" / f"{job.name}.npz", b"scores", 0o600)
    with new_folder(Path(setup.run_dir) / "states" / job.name) as folder:
        (folder / "state.txt").write_text(f"{state}{job.start}-{job.stop} ")
    Path(setup.cache).mkdir(exist_ok=True)
    extra = {
        "node": ray.get_runtime_context().get_node_id(),
        "pid": os.getpid(),
        "images": setup.images,
        "sum": int(images.sum()),
        "weights": Path(setup.weights).read_bytes().hex(),
        "run_dir": setup.run_dir,
        "prefix": [1, 4],
    }
    cost = Cost(1, 1, 0.5, 100)
    return Outcome("ok", "", job.stop, f"{job.name}.npz", cost, job.name, 0.1, extra)
