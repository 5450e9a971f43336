"""A driver of jobs on a cluster, as the engine is one. For ``test_cluster.py``.

    python cluster_driver.py ADDRESS FOLDER GPUS

It keeps every slot busy with rungs 0-1, 1-3, 3-9 of one candidate after the other until
FOLDER/stop exists, and writes a line of JSON for everything that happens.
"""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from fake_worker import make_candidate, make_setup

from autopeft.files import write_bytes
from autopeft.job import Job
from autopeft.runners import open_runner

NEXT = {0: 1, 1: 3, 3: 9}


def prepare(folder):
    """What a run has on the driver's disk."""
    images = folder / "cache" / "images-0123"
    images.mkdir(parents=True)
    np.save(images / "images.npy", np.full((50, 8, 8, 1), 3, np.uint8))
    (images / "store.json").write_text('{"channels": 1, "white": 0}')
    write_bytes(folder / "weights" / "w.safetensors", b"\x01\x02")
    (folder / "run").mkdir()
    return make_setup(
        images=str(images), weights=str(folder / "weights" / "w.safetensors"),
        cache=str(folder / "cache"), run_dir=str(folder / "run"), simulated={"seconds": 0.3},
    )  # fmt: skip


def main(address, folder, gpus):
    setup = prepare(folder)
    settings = SimpleNamespace(
        runner="ray", workers=0, gpus_per_worker=gpus, address=address, quiet=False
    )
    runner = open_runner(settings, setup, "file_worker:run")
    fresh = (Job("rung", "s", make_candidate(r=i), stop=1) for i in itertools.count(1))
    due, out, done, slots = [], 0, {}, -1
    while True:
        stopping = (folder / "stop").exists()
        while out < runner.slots and not stopping:
            job = due.pop(0) if due else next(fresh)
            runner.submit(job, f"{job.candidate.strata[0].options['r']:05d}-lora-e{job.stop}")
            out += 1
        if stopping and not out:
            break
        if runner.slots != slots:
            slots = runner.slots
            print(json.dumps({"slots": slots}), flush=True)
        for job, outcome in runner.wait():
            out -= 1
            print(json.dumps({"job": job.name, **outcome.to_dict()}), flush=True)
            if outcome.status != "ok":
                due.insert(0, job)
                continue
            done[job.name] = outcome
            state = folder / "run" / "states" / outcome.state / "state.txt"
            before = {1: "0-1 ", 3: "0-1 1-3 ", 9: "0-1 1-3 3-9 "}
            assert state.read_text() == before[job.stop]
            scores = folder / "run" / "predictions" / outcome.predictions
            assert (scores.read_bytes(), scores.stat().st_mode & 0o777) == (b"scores", 0o600)
            if job.stop in NEXT:
                due.append(replace(job, start=job.stop, stop=NEXT[job.stop], state=job.name))
            runner.report("trials", "state", {"complete": len(done)})
    runner.close()
    print(json.dumps({"done": len(done)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
