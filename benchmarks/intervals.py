"""How long do intervals take? 2,000 resamples of 20,000 images and 14 findings, by metric.

python benchmarks/intervals.py [--rows 20000] [--labels 14] [--resamples 2000]

One thread. Processor time is what counts on a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from autopeft.evaluation import Predictions
from autopeft.metrics.bands import bands
from autopeft.metrics.intervals import Interval, bootstrap, delong_interval, paired
from autopeft.metrics.operating import operating_interval


def table(rng: np.random.Generator, rows: int, labels: int, first: int = 0) -> Predictions:
    """Random findings, 2.5 images a patient, scores as the search keeps them (fp16)."""
    y = (rng.random((rows, labels)) < 0.1).astype(np.float32)
    patient = first + rng.integers(0, int(rows / 2.5), rows)
    score = (rng.normal(size=y.shape) + 1.5 * y - 2).astype(np.float16)
    sex = np.where(patient % 2 == 0, "F", "M")
    names = tuple(f"finding {c}" for c in range(labels))
    return Predictions(
        score, y, patient, np.zeros(rows, dtype=int), {"sex": sex}, names, "multilabel", "test"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--labels", type=int, default=14)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--only", default="", help="names that hold this word")
    args = parser.parse_args()
    rng, n = np.random.default_rng(0), args.resamples
    p, q = (table(rng, args.rows, args.labels) for _ in "ab")
    search = table(rng, args.rows // 3, args.labels, first=10**6)
    q = Predictions(
        q.score, p.target, p.patient, p.part, p.groups, p.classes, "multilabel", "test"
    )
    every = [f"auroc:{name}" for name in p.classes]
    work: dict[str, Callable[[], Interval | dict[str, Interval | None] | None]] = {
        "auroc": lambda: bootstrap(p, n=n),
        "auroc, difference": lambda: paired(p, q, n=n),
        "auroc of each label, max-t": lambda: bands(p, every, n=n),
        "auroc by DeLong (no resamples)": lambda: delong_interval(p),
        "worst_group_auroc": lambda: bootstrap(
            p, "worst_group_auroc", n=n, counted={"sex": ("F", "M")}
        ),
        "average_precision": lambda: bootstrap(p, "average_precision", n=n),
        "brier": lambda: bootstrap(p, "brier", n=n),
        "tpr_at_specificity": lambda: bootstrap(p, "tpr_at_specificity", n=n),
        "sensitivity, threshold refitted": lambda: operating_interval(p, search, n=n),
        "calibration_slope of one label": lambda: bootstrap(
            p, f"calibration_slope:{p.classes[0]}", n=n
        ),
    }
    print(f"{n} resamples of {args.rows} x {args.labels}")
    print("|metric|processor s|wall s|\n|--|--:|--:|")
    for name, call in work.items():
        if args.only in name:
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            print(f"|{name}|{cpu:.1f}|{wall:.1f}|", flush=True)


if __name__ == "__main__":
    main()
