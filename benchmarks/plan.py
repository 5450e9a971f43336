"""How well does `autopeft plan` foresee a run? Each run is planned, then done, on this machine.

    python benchmarks/plan.py
    python benchmarks/plan.py --run "--dataset LABELS.csv --label pneumonia --trials 4 --epochs 2"

Without `--run`: the synthetic task in its short settings. `--keep DIR` leaves the runs there.
Prints the table of docs/plan.md: for every part of the run what was foreseen, as a range, and what
it took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

PARTS = ("prefix", "baselines", "search", "confirm", "test")  # as the run's clock names them


def called(command: str, flags: list[str]) -> tuple[dict[str, Any], float]:
    """The JSON of a command and its wall time."""
    words = [sys.executable, "-m", "autopeft.cli", command, *flags, "--json", "--quiet"]
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), seconds


def compared(flags: list[str], runs: Path) -> list[tuple[str, float, float, float, float]]:
    """Part, value, low and high as foreseen, and seconds as they were."""
    flags = [*flags, "--runs-dir", str(runs), "--name", "planned"]
    plan, planning = called("plan", flags)
    result, wall = called("search", flags)
    foreseen, real = plan["seconds"]["parts"], result["seconds"]
    rows = [(p, *_range([foreseen[p]]), real[p]) for p in PARTS]
    others = [v for k, v in foreseen.items() if k not in PARTS]
    rows.append(("start, decoding, report", *_range(others), wall - sum(real[p] for p in PARTS)))
    rows.append(("all", *_range([plan["seconds"]["total"]]), wall))
    print(f"planned in {planning:.0f} s", file=sys.stderr)
    return rows


def _range(parts: list[dict[str, float]]) -> tuple[float, float, float]:
    value, low, high = (sum(p[key] for p in parts) for key in ("value", "low", "high"))
    return value, low, high


def main() -> None:
    """Plans and does each run, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="append", help="flags of autopeft search, in one word")
    parser.add_argument("--keep", type=Path, help="folder of the runs; else they are thrown away")
    args = parser.parse_args()
    asked = args.run or [""]
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"load {load:.1f} before, {date.today()}\n"
    )
    for number, flags in enumerate(asked):
        with tempfile.TemporaryDirectory() as folder:
            kept = args.keep / str(number) if args.keep else Path(folder)
            rows = compared(shlex.split(flags), kept)
        shown = shlex.split(flags)
        shown = [Path(w).name if "/" in w else w for w in shown]
        print(f"`autopeft search {' '.join(shown)}`\n".replace(" `", "`"))
        print("| part | foreseen, s | it took, s | taken / foreseen |\n|---|---|---|---|")
        for name, value, low, high, real in rows:
            ratio = real / value if value else float("nan")
            print(f"| {name} | {value:.0f} ({low:.0f} to {high:.0f}) | {real:.0f} | {ratio:.2f} |")
        print(f"\nload {os.getloadavg()[0]:.1f} after\n", flush=True)


if __name__ == "__main__":
    main()
