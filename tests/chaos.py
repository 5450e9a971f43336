"""One life of a driver of simulated trials on Ray, for ``test_chaos.py``; it may be killed.

    python chaos.py FOLDER TRIALS LIFE FUSE

``log.txt`` says what workers began and what the driver recorded, in order. With FUSE > 0 the
driver kills itself inside that append to the journal and leaves half a line and a lock.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

from optuna.storages.journal import JournalFileBackend

from autopeft import simulated
from autopeft.engine import drive
from autopeft.runners import open_runner
from autopeft.schedule import epoch_ladder

WORLD = {
    "noise": 0.02,
    "seconds": 0.02,
    "nan": 0.04,
    "oom": 0.06,
    "error": 0.03,
    "death": 0.06,
    "doom": 0.01,
}


def say(folder, *words):
    """One line of the log, whole even when several processes write."""
    handle = os.open(Path(folder) / "log.txt", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(handle, (" ".join(map(str, words)) + "\n").encode())
    os.close(handle)


def run(setup, job):
    """The simulated worker, which tells what it begins; the life is in ``setup.cache``."""
    say(setup.run_dir, "begun", job.name, setup.cache)
    return simulated.run(setup, job)


def make_setup(folder):
    return simulated.make_setup(folder, seed=3, **WORLD)


def make_engine(folder, trials):
    return simulated.make_engine(folder / "run", epoch_ladder(9), trials, seed=3)


def blow(backend):
    """Half a line and a lock, as kill -9 inside an append leaves them."""
    path = Path(backend._file_path)
    with path.open("ab") as stream:
        stream.write(b'{"op_code":8,"worker_id":"')
    path.with_name(f"{path.name}.lock").symlink_to(path)
    os.kill(os.getpid(), signal.SIGKILL)


def live(folder, trials, life, fuse):
    """To the end of the search, or until something kills this process."""
    left, append = fuse, JournalFileBackend.append_logs

    def counted(backend, logs):
        nonlocal left
        left -= 1
        if left == 0:
            blow(backend)
        append(backend, logs)

    JournalFileBackend.append_logs = counted
    setup = replace(make_setup(folder), cache=str(life))
    settings = SimpleNamespace(
        runner="ray", workers=2, gpus_per_worker=0.0, address="", quiet=True
    )
    workers = open_runner(settings, setup, "chaos:run")
    engine = make_engine(folder, trials)
    record = engine.record

    def recorded(job, outcome, evaluate):
        entry = record(job, outcome, evaluate)
        say(folder, "recorded" if outcome.status == "ok" else outcome.status, job.name, life)
        return entry

    engine.record = recorded
    drive(engine, workers, simulated.evaluate)
    workers.close()


if __name__ == "__main__":
    where, count, number, limit = sys.argv[1:]
    live(Path(where), int(count), int(number), int(limit))
