"""A driver that is killed again and again, for ``test_engine.py``. No torch.

    python fake_driver.py FOLDER SEED KILLS SAMPLER

It drives a study of 24 trials in child processes, of which the first KILLS end by ``os._exit`` at
random moments: before or after a job is given out, before or after it is recorded, inside an
append to the journal. ``log.txt`` says what was trained and what was recorded.
"""

import os
import random
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "runners"))

import fake_worker
from optuna.storages.journal import JournalFileBackend

from autopeft.candidate import Candidate, Readout, Stratum, Train
from autopeft.engine import Engine
from autopeft.engine import drive as drive_engine
from autopeft.job import Outcome
from autopeft.runners.serial import SerialRunner
from autopeft.sampler import Proposer
from autopeft.schedule import epoch_ladder
from autopeft.study import Study

TRIALS = 24
LADDER = epoch_ladder(9)


def suggest(trial):
    lr = trial.suggest_float("lora.lr", 1e-5, 1e-1, log=True)
    r = trial.suggest_categorical("lora.r", (2, 4, 8, 16))
    return Candidate((Stratum((0, 5), (), "lora", {"r": r}),), Train(lr=lr), Readout(6, "avg"))


class Objective:
    """Two terms and a constraint, of the worker's value."""

    promoting = ()

    def values(self, evaluation):
        return (evaluation, 1 - evaluation / 2)

    def violations(self, evaluation):
        return {"floor": 0.6 - evaluation}


def evaluate(outcomes):
    return outcomes[-1].extra["value"], outcomes[-1].extra["value"]


def worker(setup, job):
    """Sometimes out of memory, sometimes NaN, by the candidate alone."""
    kind = int(job.candidate.fingerprint[:4], 16) % 12
    if kind == 0:
        return Outcome("nan", "loss is nan", job.start)
    if kind == 1 and not job.micro_batch:
        return Outcome("oom", "no memory", job.start)
    if kind == 2 and job.stop == 3:
        return Outcome("error", "worker died: again", job.start)
    return fake_worker.run(setup, job)


def make_engine(folder, sampler="random", trials=TRIALS, seed=0, ladder=LADDER, **changes):
    study = Study(folder, ("maximize", "minimize"))
    proposer = Proposer(study, suggest, (), ladder, sampler, seed, trials)
    return Engine(study, proposer.ask, Objective(), ladder, trials, "setup", **changes)


def drive(engine, runner, say=lambda text: None, moment=lambda: None):
    """The search loop, with words and dangerous moments around what matters."""
    submit, record = runner.submit, engine.record

    def loud_submit(job, name):
        moment()
        submit(job, name)
        moment()

    def loud_record(job, outcome, evaluate):
        say(f"trained {job.name} {outcome.status}")
        moment()
        entry = record(job, outcome, evaluate)
        say(f"recorded {job.name} {outcome.status}")
        moment()
        return entry

    runner.submit, engine.record = loud_submit, loud_record
    drive_engine(engine, runner, evaluate)


class Bomb:
    """Kills the process after so many moments."""

    def __init__(self, left):
        self.left = left

    def moment(self):
        self.left -= 1
        if self.left < 0:
            os._exit(9)

    def append(self, backend, logs, whole=JournalFileBackend.append_logs):
        self.left -= 1
        if self.left < 0:  # half a line and a lock, as kill -9 inside an append leaves them
            path = Path(backend._file_path)
            with path.open("ab") as stream:
                stream.write(b'{"op_code":8,"worker_id":"')
            path.with_name(f"{path.name}.lock").symlink_to(path)
            os._exit(9)
        whole(backend, logs)


def child(folder, bomb, sampler):
    """One life of the driver: to the end, or until the bomb goes off."""

    def say(text):
        with (folder / "log.txt").open("a") as stream:
            stream.write(text + "\n")

    JournalFileBackend.append_logs = lambda backend, logs: bomb.append(backend, logs)
    fake_worker.chaotic = worker
    runner = SerialRunner(fake_worker.make_setup(), "fake_worker:chaotic")
    drive(make_engine(folder, sampler), runner, say, bomb.moment)


def main(folder, seed, kills, sampler):
    for attempt in range(kills + 1):
        left = random.Random(f"{seed}:{attempt}").randrange(5, 60) if attempt < kills else 10**9
        process = os.fork()
        if not process:
            code = 1
            try:
                child(folder, Bomb(left), sampler)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code != 9:
            return code
    return 9


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
