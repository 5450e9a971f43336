"""Drivers and workers are killed again and again: nothing is lost, nothing is done twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import chaos
import pytest
from tiny_run import flags, tiny

from autopeft import simulated

ROOT = Path(__file__).parents[1]
PLAIN = """
import json, sys
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
study = optuna.load_study(
    study_name="search", storage=JournalStorage(JournalFileBackend(sys.argv[1]))
)
assert "autopeft" not in sys.modules
print(json.dumps([
    [t.state.name, t.values, sorted(t.constraints), t.user_attrs.get("reason", "")]
    for t in study.trials
]))
"""


def offspring(pid):
    """All processes below one, with the time they were started: a pid may be used again."""
    parents, started = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
            started[int(entry.name)] = fields[19]
    found, left = {}, [pid]
    while left:
        children = parents.get(left.pop(), [])
        found |= {child: started[child] for child in children}
        left += children
    return found


def alive(family):
    """Those of the processes that still run."""
    found = {}
    for pid, start in family.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == start and fields[0] != "Z":
            found[pid] = start
    return found


def clean_up(family):
    """Ends what a killed driver leaves: gives how many processes it were.

    Ray's own processes end with their driver (the kernel tells them), the workers with them. Only
    its two agents stay for a minute or more, until they give up reporting the death.
    """
    deadline = time.monotonic() + 1
    while (left := alive(family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def journal(path):
    """Names of the jobs whose rungs are in the journal, as often as they are there."""
    names, found = [], []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            op = json.loads(line)
        except ValueError:
            continue  # a torn tail
        if op["op_code"] == 4:
            names.append(op["user_attrs"].get("fingerprint", ""))
        found += [
            f"{names[op['trial_id']]}-0-all-{key[5:]}"
            for key in op.get("user_attr", {})
            if "trial_id" in op and key.startswith("rung/")
        ]
    return Counter(found)


class Chaos:
    """Starts drivers and kills them, and notes what was recorded at each death."""

    def __init__(self, folder, trials, seed=0):
        self.folder, self.trials = folder, trials
        self.journal = folder / "run" / "study.journal"
        self.rng, self.known, self.life = random.Random(seed), [set()], 0
        self.kills, self.orphans = Counter(), 0

    def lines(self):
        log = self.folder / "log.txt"
        return log.read_text().splitlines() if log.exists() else []

    def start(self, fuse=0):
        self.life += 1
        words = [self.folder, self.trials, self.life, fuse]
        return subprocess.Popen(
            [sys.executable, chaos.__file__, *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "stderr.txt").open("ab"),
        )

    def wait(self, process, until, limit=120.0):
        """Until something is so, or the driver ended; gives the processes below it."""
        family, deadline = {}, time.monotonic() + limit
        while process.poll() is None and not until():
            assert time.monotonic() < deadline, "the driver makes no progress"
            family |= offspring(process.pid)
            time.sleep(0.1)
        return family | offspring(process.pid)

    def kill(self, how):
        """One life that ends by SIGKILL, or earlier by itself."""
        fuse = self.rng.randrange(20, 110) if how == "append" else 0
        process = self.start(fuse)
        begun, age = time.monotonic(), self.rng.uniform(0, 6)
        more = len(self.lines()) + self.rng.randrange(10, 50)
        until = {
            "append": lambda: False,
            "progress": lambda: len(self.lines()) >= more,
            "age": lambda: time.monotonic() - begun > age,
        }[how]
        family = self.wait(process, until)
        if how != "append":
            time.sleep(self.rng.uniform(0, 0.2))
            process.kill()
        code = process.wait()
        self.orphans += clean_up(family)
        self.known.append(set(journal(self.journal)))
        self.kills[code] += 1

    def finish(self):
        """The last life: to the end."""
        process = self.start()
        family = self.wait(process, lambda: False, limit=240)
        self.orphans += clean_up(family)
        self.known.append(set(journal(self.journal)))
        return process.returncode


def check(world):
    """What must be so after the last start."""
    recorded = set()
    for line in world.lines():
        what, job, life = line.split()
        if what == "begun":
            assert job not in world.known[int(life) - 1], f"{job} was trained again in life {life}"
            assert (job, life) not in recorded, f"{job} was trained again"
        if what == "recorded":
            recorded.add((job, life))
    trials = opened_plainly(world.journal)
    states = Counter(state for state, *_ in trials)
    assert len(trials) == world.trials
    assert states.keys() == {"COMPLETE", "PRUNED", "FAIL"}
    assert all(c == (["floor"] if s == "COMPLETE" else []) for s, _, c, _ in trials)
    reasons = Counter(reason.split(":")[0] for *_, reason in trials if reason)
    assert {"nan", "error"} <= reasons.keys()
    same_as_undisturbed(world)
    return states


def opened_plainly(path):
    """State, values, constraints and reason of every trial as Optuna alone reads them."""
    assert set(journal(path).values()) == {1}
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN, path], capture_output=True, text=True, check=True
    )
    trials = json.loads(plain.stdout)
    for state, values, _, reason in trials:
        assert state in ("COMPLETE", "PRUNED", "FAIL")
        assert (values is not None) == (state == "COMPLETE")
        assert bool(reason) == (state != "COMPLETE")
    return trials


def same_as_undisturbed(world):
    """Candidates and values are those of a run in which no driver was killed."""
    ours = chaos.make_engine(world.folder, world.trials).study.entries
    setup = chaos.make_setup(world.folder)
    quiet = simulated.search(
        world.folder / "quiet", simulated.VirtualRunner(setup, 2), world.trials, seed=3
    ).entries
    assert [e.candidate for e in ours] == [e.candidate for e in quiet]
    for a, b in zip(ours, quiet, strict=True):
        assert all(a.rungs[r] == b.rungs[r] for r in a.rungs.keys() & b.rungs.keys())


@pytest.mark.slow
@pytest.mark.ray
def test_two_hundred_trials_on_ray_survive_ten_kills_of_the_driver(tmp_path):
    world = Chaos(tmp_path, 200)
    begun = time.monotonic()
    for how in ("append", "progress", "age", "append", "progress") * 2:
        world.kill(how)
    code = world.finish()
    assert code == 0, (tmp_path / "stderr.txt").read_text()
    assert world.kills == {-9: 10}, (tmp_path / "stderr.txt").read_text()
    states = check(world)
    deaths = len(list((tmp_path / "deaths").iterdir()))
    torn = len(list((tmp_path / "run").glob("*.torn-*")))
    assert deaths >= 5
    assert torn >= 4
    print(
        f"{dict(states)}; {deaths} workers died, {torn} torn journals, {world.orphans} orphans "
        f"ended by hand, {time.monotonic() - begun:.0f} s"
    )


# ---- once for real ------------------------------------------------------------------------------


class Run:
    """``autopeft search`` in a process of its own."""

    def __init__(self, folder):
        options = {"trials": 12, "epochs": 3, "runner": "ray", "workers": 2, "name": "chaos"}
        self.words = flags(tiny(folder, **options))
        self.folder = folder / "chaos"
        self.journal = self.folder / "study.journal"
        self.output = folder / "output.txt"
        self.family = {}

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autopeft.cli", "search", *self.words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=self.output.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def wait(self, until, limit=280.0):
        deadline = time.monotonic() + limit
        while not until():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, "no progress"
            self.family |= offspring(self.process.pid)
            time.sleep(0.1)

    def rungs(self):
        return sum(journal(self.journal).values())

    def busy_actor(self):
        """The process id of an actor that trains a trial now."""
        for pid in offspring(self.process.pid):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_text()
                if title.startswith("ray::0"):  # Ray shows the name of the job: 00003-lora-r8-e1
                    return pid
        return None

    def predictions(self):
        """When the predictions of every recorded rung were written."""
        files = {
            name: self.folder / "predictions" / f"{name}.npz" for name in journal(self.journal)
        }
        return {name: f.stat().st_mtime_ns for name, f in files.items() if f.exists()}


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_search_survives_a_killed_worker_and_a_killed_driver(tmp_path):
    run = Run(tmp_path)
    run.start()
    run.wait(lambda: run.rungs() >= 2)
    run.wait(lambda: run.busy_actor() is not None)
    os.kill(run.busy_actor(), signal.SIGKILL)
    run.wait(lambda: "worker died" in run.journal.read_text())
    run.wait(lambda: run.rungs() >= 6)
    run.process.kill()
    run.process.wait()
    clean_up(run.family)
    before, lines = run.predictions(), run.journal.read_bytes()
    assert len(journal(run.journal)) < 12
    run.start()
    assert run.process.wait(timeout=280) == 0, run.output.read_text()
    after = run.journal.read_bytes()
    assert after.startswith(lines[: lines.rindex(b"\n") + 1])
    assert len(opened_plainly(run.journal)) == 12
    now = run.predictions()
    assert before
    assert all(now.get(name, when) == when for name, when in before.items())
    assert (run.folder / "result.json").exists()
