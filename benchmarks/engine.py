"""What the engine itself costs: driver processor time a trial, memory of driver and workers.

    python benchmarks/engine.py --out docs

Every trial is simulated (``autopeft.simulated``: nothing is trained, nobody sleeps), so that what
is left is the engine: proposals, promotion, the journal. Three rungs (1, 3, 9 epochs).

``random``, ``tpe``   64 workers on a virtual clock inside the driver's process; the time of the
                      simulated function is taken off.
``ray``               the real runner with as many actors as asked for; Ray's own threads count.

Each run is a process of its own. Writes the pictures ``engine_time.svg`` and
``engine_memory.svg`` into OUT, and prints the table of ``engine.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from autopeft import simulated
from autopeft.drawing import WIDTH, axis, figure, grid, line, text
from autopeft.engine import drive
from autopeft.job import Job, Outcome
from autopeft.runners import Runner, open_runner
from autopeft.schedule import epoch_ladder

PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLES = 40  # points of a curve
WORLD = {"noise": 0.01, "nan": 0.01, "oom": 0.01, "error": 0.01}
GOAL = 50.0  # milliseconds a trial at the end, for random
PATIENCE = 400.0  # seconds until all actors are there; then with as many as there are


@dataclass(frozen=True)
class Sample:
    """The state of one run after so many trials.

    Attributes:
        trials: proposed so far.
        jobs: recorded so far.
        cpu: seconds of driver processor time, without the simulated workers.
        wall: seconds.
        driver: resident bytes of the driver.
        workers: pid -> resident bytes, of each worker.
    """

    trials: int
    jobs: int
    cpu: float
    wall: float
    driver: int
    workers: Mapping[int, int] = field(default_factory=dict)


def resident(pid: int | str = "self") -> int:
    """Resident bytes of a process, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


class Meter:
    """A runner around a runner: counts, and keeps its time apart from the engine's."""

    def __init__(self, runner: Runner, apart: bool) -> None:
        self.runner, self._apart = runner, apart
        self.spent, self.trials, self.jobs = 0.0, 0, 0

    @property
    def slots(self) -> int:
        """As the runner says."""
        return self.runner.slots

    def submit(self, job: Job, name: str = "") -> None:
        """Counts trials by the name of the job."""
        self.trials = max(self.trials, int(name.split("-")[0]) + 1)
        start = time.process_time()
        self.runner.submit(job, name)
        self.spent += (time.process_time() - start) * self._apart

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Counts jobs."""
        start = time.process_time()
        done = self.runner.wait()
        self.spent += (time.process_time() - start) * self._apart
        self.jobs += len(done)
        return done

    def report(self, name: str, tag: str, values: Mapping[str, float]) -> None:
        """Passes on."""
        self.runner.report(name, tag, values)

    def close(self) -> None:
        """Passes on."""
        self.runner.close()


# ---- one run, in a process of its own ----------------------------------------------------------


def measure(kind: str, trials: int, slots: int, seed: int) -> dict[str, Any]:
    """Runs one simulated search and samples it on its way."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        setup = simulated.make_setup(folder, seed=seed, **WORLD)
        if kind == "ray":
            settings = SimpleNamespace(
                runner="ray", workers=slots, gpus_per_worker=0.0, address="", quiet=True
            )
            started = time.monotonic()
            meter = Meter(open_runner(settings, setup, "autopeft.simulated:run"), apart=False)
            while meter.slots < slots and time.monotonic() - started < PATIENCE:
                meter.wait()  # workers join one by one
            opening, slots = time.monotonic() - started, meter.slots
        else:
            meter, opening = Meter(simulated.VirtualRunner(setup, slots), apart=True), 0.0
        sampler = "random" if kind == "ray" else kind
        engine = simulated.make_engine(folder, epoch_ladder(9), trials, sampler, seed)
        start = (time.process_time(), time.monotonic())
        samples: list[Sample] = []

        def sample() -> Sample:
            cpu = time.process_time() - start[0] - meter.spent
            wall = time.monotonic() - start[1]
            workers = {p: resident(p) for p in actors()} if kind == "ray" else {}
            return Sample(meter.trials, meter.jobs, cpu, wall, resident(), workers)

        def moment() -> None:
            if meter.trials >= len(samples) * trials / SAMPLES and (
                not samples or meter.trials > samples[-1].trials
            ):
                samples.append(sample())

        drive(engine, meter, simulated.evaluate, moment=moment)
        end = sample()
        meter.close()
        size = (folder / "study.journal").stat().st_size
        begun = time.process_time()
        simulated.make_engine(folder, epoch_ladder(9), trials, sampler, seed)
        resume = time.process_time() - begun
    states = [entry.state for entry in engine.study.entries]
    return {
        "kind": kind, "slots": slots, "seed": seed, "opening": opening, "resume": resume,
        "journal": size, "samples": [asdict(s) for s in samples], "end": asdict(end),
        "states": {s: states.count(s) for s in sorted(set(states))},
    }  # fmt: skip


def actors() -> list[int]:
    """Processes of Ray workers that were started for this driver."""
    names = {pid: command(pid) for pid in offspring(os.getpid())}
    return [p for p, n in names.items() if n.startswith("ray::") and "Agent" not in n]


def offspring(pid: int) -> list[int]:
    """All processes below one, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


# ---- figures -----------------------------------------------------------------------------------


def each(run: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Trials and milliseconds of processor time a trial, between samples."""
    points = run["samples"]
    pairs = list(zip(points, points[1:], strict=False))
    ms = [1e3 * (b["cpu"] - a["cpu"]) / (b["trials"] - a["trials"]) for a, b in pairs]
    return [b["trials"] for _, b in pairs], ms


def last_tenth(run: Mapping[str, Any]) -> float:
    """Milliseconds a trial over the last tenth of the trials."""
    end = run["samples"][-1]
    start = min(run["samples"][:-1], key=lambda s: abs(s["trials"] - 0.9 * end["trials"]))
    return float(1e3 * (end["cpu"] - start["cpu"]) / (end["trials"] - start["trials"]))


def growth(run: Mapping[str, Any]) -> tuple[float, float]:
    """Bytes of driver memory a trial: over the first and the second half of a run."""
    points = run["samples"][1:]
    half = len(points) // 2
    slopes = []
    for part in (points[:half], points[half:]):
        x, y = [p["trials"] for p in part], [p["driver"] for p in part]
        slopes.append(float(np.polyfit(x, y, 1)[0]))
    return slopes[0], slopes[1]


def worker_memory(run: Mapping[str, Any]) -> list[str]:
    """Megabytes of the same workers after a tenth of the trials and at the end, all and most."""
    early, late = run["samples"][SAMPLES // 10]["workers"], run["end"]["workers"]
    both = early.keys() & late.keys()
    return [spread([w[pid] / 1e6 for pid in both], 0) for w in (early, late)]


def curves(
    title: str,
    runs: Mapping[str, tuple[list[float], list[float]]],
    beside: str,
    told: str,
    goal: float | None = None,
) -> str:
    """A picture of one or two curves over trials, a name at the end of each."""
    xs = [x for points in runs.values() for x in points[0]]
    ys = [y for points in runs.values() for y in points[1]]
    width, height = (64.0, WIDTH - 24.0), (250.0, 34.0)
    x, y = axis([0, *xs], *width), axis([0, *ys], *height)
    parts = [text(12, 20, title), *grid(x, y, width, height, "trials", beside)]
    if goal is not None:
        parts.append(line(width[0], y.at(goal), width[1], y.at(goal), "re"))
        parts.append(text(width[1], y.at(goal) - 6, "goal", "e mu"))
    for kind, (name, (at, values)) in zip(("l1", "l2"), runs.items(), strict=False):
        points = [(x.at(a), y.at(v)) for a, v in zip(at, values, strict=True)]
        parts += [line(*a, *b, kind) for a, b in zip(points, points[1:], strict=False)]
        parts.append(text(points[-1][0], points[-1][1] - 8, name, "e"))
    return figure(title, told, height[0] + 54, parts, "engine").svg


def table(runs: list[dict[str, Any]]) -> str:
    rows = [
        "| run | trials | workers | processor ms a trial: first tenth | last tenth | "
        "driver memory kB a trial: first half | second half | "
        "memory of a worker MB: after a tenth | at the end | resuming s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(run["kind"] for run in runs):
        same = [run for run in runs if run["kind"] == kind]
        first = [statistics.fmean(each(r)[1][: SAMPLES // 10]) for r in same]
        last = [last_tenth(r) for r in same]
        memory = [[g / 1e3 for g in growth(r)] for r in same]
        workers = ["", ""]
        if same[0]["end"]["workers"]:
            workers = worker_memory(same[0])
        cells = [
            f"{kind}, {len(same)} x", f"{same[0]['end']['trials']:,}", str(same[0]["slots"]),
            spread(first), spread(last), spread([m[0] for m in memory]),
            spread([m[1] for m in memory]), *workers, spread([r["resume"] for r in same]),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def spread(values: list[float], digits: int = 1) -> str:
    """``median (lowest to highest)``."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def pictures(runs: list[dict[str, Any]], out: Path) -> None:
    picked = {r["kind"]: r for r in reversed(runs)}
    main = {k: picked[k] for k in ("random", "tpe") if k in picked}
    told = "; ".join(f"{k}: {last_tenth(r):.1f} ms at the end" for k, r in main.items())
    title = "Driver processor time a trial, ms"
    svg = curves(title, {k: each(r) for k, r in main.items()}, "ms", told, GOAL)
    (out / "engine_time.svg").write_text(svg + "\n")
    memory = {
        k: ([s["trials"] for s in r["samples"]], [s["driver"] / 1e6 for s in r["samples"]])
        for k, r in main.items()
    }
    told = "; ".join(f"{k}: {v[1][0]:.0f} to {v[1][-1]:.0f} MB" for k, v in memory.items())
    svg = curves("Driver memory, MB", memory, "MB", told)
    (out / "engine_memory.svg").write_text(svg + "\n")


def one(kind: str, trials: int, slots: int, seed: int) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    asked = ["--one", kind, "--trials", str(trials), "--slots", str(slots), "--seed", str(seed)]
    done = subprocess.run(
        [sys.executable, __file__, *asked], stdout=subprocess.PIPE, text=True, check=True
    )
    run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{kind}: {run['end']['trials']} trials in {run['end']['wall']:.0f} s, "
        f"{last_tenth(run):.1f} ms a trial at the end",
        file=sys.stderr,
    )
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--tpe", type=int, default=3_000, help="trials of the run with TPE")
    parser.add_argument("--ray", type=int, default=2_000, help="trials of the run on Ray")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--actors", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", choices=("random", "tpe", "ray"), help="print one run as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.trials, given.slots, given.seed)))
        return
    runs = [one("random", given.trials, given.slots, seed) for seed in range(given.runs)]
    if given.tpe:
        runs += [one("tpe", given.tpe, given.slots, seed) for seed in range(given.runs)]
    if given.ray:
        runs.append(one("ray", given.ray, given.actors, 0))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"{datetime.now(UTC):%Y-%m-%d}\n\n{table(runs)}"
    )
    if given.out is not None:
        pictures(runs, given.out)


if __name__ == "__main__":
    main()
