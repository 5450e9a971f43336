"""Do the intervals hold the truth as often as they say?

    python benchmarks/interval_coverage.py OUT.csv [--repeats 1000] [--minutes 30]
    python benchmarks/interval_coverage.py OUT.csv --summary

Simulated tables with known truth: patients with several images share a level, scores are normal,
so that every AUROC is known by formula. Beside the bootstrap over patients stand the bootstrap
over rows (what is often published) and DeLong's variance with and without patients (Obuchowski
1997). Appends one line an interval, so that it can be stopped and started again; a repeat's number
is its seed. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

from autopeft.evaluation import Predictions
from autopeft.metrics.bands import bands
from autopeft.metrics.classification import fit_threshold
from autopeft.metrics.intervals import Interval, bootstrap, delong_interval, paired
from autopeft.metrics.operating import operating_interval

RESAMPLES = 600
GROUPS = 4
Found = tuple[str, Interval | None, float]


@dataclass(frozen=True)
class Setting:
    """One kind of table.

    Attributes:
        patients: how many.
        positive: how many of them have the finding.
        images: mean images a patient; the number varies from patient to patient.
        auroc: the truth.
        kind: ``auroc`` (one model, and the difference of two), ``bands`` or ``operating``.
    """

    patients: int
    positive: int
    images: int = 3
    auroc: float = 0.85
    kind: str = "auroc"

    @property
    def name(self) -> str:
        """What the lines of the table are filed under."""
        return f"{self.kind} {self.patients}/{self.positive} x{self.images} {self.auroc:.2f}"


SETTINGS = [
    *(Setting(n, k) for n, k in ((200, 50), (50, 10), (50, 25), (100, 10), (100, 20), (100, 50))),
    *(Setting(n, k) for n, k in ((200, 10), (200, 20), (200, 100), (500, 50), (1000, 250))),
    Setting(200, 50, images=1),
    Setting(200, 50, images=8),
    Setting(200, 50, auroc=0.95),
    Setting(200, 20, auroc=0.95),
    Setting(400, 100, kind="bands"),
    Setting(800, 240, kind="bands"),
    Setting(200, 50, kind="operating"),
    Setting(500, 150, kind="operating"),
]


def table(rng: np.random.Generator, s: Setting, models: int = 1) -> list[Predictions]:
    """One table and so many models that read it; all have the same AUROC but the last."""
    images = 1 + rng.poisson(s.images - 1, s.patients)
    patient = np.repeat(np.arange(s.patients), images)
    first = np.concatenate([[True], np.diff(patient) > 0])
    ill = (np.arange(s.patients) < s.positive)[patient]
    y = (ill & (first | (rng.random(len(patient)) < 0.8))).astype(float)
    group = rng.integers(0, GROUPS, s.patients)[patient]
    level, noise = rng.normal(size=s.patients)[patient], rng.normal(size=len(patient))
    found = []
    for m in range(models):
        # 60% of the variance belongs to the patient, half of either is shared by the models.
        own = rng.normal(size=s.patients)[patient], rng.normal(size=len(patient))
        score = np.sqrt(0.3) * (level + own[0]) + np.sqrt(0.2) * (noise + own[1])
        score = score + np.sqrt(2) * ndtri(truth(s, m)) * y
        found.append(
            Predictions(
                score[:, None], y[:, None], patient, np.zeros(len(y), dtype=int),
                {"g": group.astype(str)}, ("finding",), "binary", "test",
            )
        )  # fmt: skip
    return found


def truth(s: Setting, model: int) -> float:
    """AUROC of a model: the second is .03 worse."""
    return s.auroc - 0.03 * model


def rows(p: Predictions) -> Predictions:
    """The same table, every image its own patient."""
    return replace(p, patient=np.arange(len(p.patient)))


def auroc_methods(rng: np.random.Generator, s: Setting) -> Iterator[Found]:
    a, b = table(rng, s, models=2)
    gain = truth(s, 0) - truth(s, 1)
    for unit, change in (("patients", lambda p: p), ("rows", rows)):
        p, q = change(a), change(b)
        yield f"bootstrap, {unit}", bootstrap(p, n=RESAMPLES), truth(s, 0)
        yield f"DeLong, {unit}", delong_interval(p), truth(s, 0)
        yield f"difference, bootstrap, {unit}", paired(p, q, n=RESAMPLES), gain
        yield f"difference, DeLong, {unit}", delong_interval(p, q), gain


def band_methods(rng: np.random.Generator, s: Setting) -> Iterator[Found]:
    """Whether all groups are covered at once: told as the group that is missed, if one is."""
    a, b = table(rng, s, models=2)
    names = [f"auroc:{g}" for g in range(GROUPS)]
    counted = {"g": tuple(str(g) for g in range(GROUPS))}
    for label, baseline, value in (("", None, truth(s, 0)), ("difference, ", b, 0.03)):
        joint = bands(a, names, baseline, n=RESAMPLES, counted=counted)
        yield f"{label}joint, max-t", _worst(list(joint.values()), value), value
        each = [
            bootstrap(a, name, n=RESAMPLES, counted=counted)
            if baseline is None
            else paired(a, baseline, name, n=RESAMPLES, counted=counted)
            for name in names
        ]
        yield f"{label}joint, each by itself", _worst(each, value), value


def _worst(found: list[Interval | None], value: float) -> Interval | None:
    known = [i for i in found if i is not None]
    missed = [i for i in known if not i.low <= value <= i.high]
    return None if len(known) < len(found) else (missed or known)[0]


def operating_methods(rng: np.random.Generator, s: Setting) -> Iterator[Found]:
    """Sensitivity at the threshold for .90; the truth is that of this very threshold."""
    (search,), (test,) = table(rng, s), table(rng, s)
    test = replace(test, patient=test.patient + s.patients)
    (limit,) = fit_threshold(search)
    assert limit is not None
    shift = np.sqrt(2) * ndtri(s.auroc)
    value = float(ndtr(shift - np.log(limit / (1 - limit))))
    yield "sensitivity, refitted", operating_interval(test, search, n=RESAMPLES), value
    frozen = bootstrap(test, lambda p: _found(p, limit), n=RESAMPLES)
    yield "sensitivity, frozen", frozen, value


def _found(p: Predictions, limit: float) -> float | None:
    positive = p.target[:, 0] == 1
    return float((p.probability[positive, 0] >= limit).mean()) if positive.any() else None


METHODS = {"auroc": auroc_methods, "bands": band_methods, "operating": operating_methods}


def simulate(out: Path, repeats: int, minutes: float, chosen: list[Setting]) -> None:
    """The settings in turns of 50 repeats, until all are done or the time is over."""
    end = time.monotonic() + 60 * minutes
    done = Counter({name: 1 + max(seeds) for name, seeds in _seeds(out).items()})
    for upto in range(50, repeats + 50, 50):
        for s in chosen:
            for seed in range(done[s.name], min(upto, repeats)):
                if time.monotonic() > end:
                    return
                rng = np.random.default_rng([seed, SETTINGS.index(s)])
                lines = [
                    (s.name, seed, method, *_bounds(i), value)
                    for method, i, value in METHODS[s.kind](rng, s)
                ]
                with out.open("a", newline="") as file:
                    csv.writer(file).writerows(lines)
                done[s.name] = seed + 1


def _bounds(i: Interval | None) -> tuple[str, str, str]:
    return ("", "", "") if i is None else (f"{i.value:.6f}", f"{i.low:.6f}", f"{i.high:.6f}")


def _lines(out: Path) -> Iterator[list[str]]:
    if out.exists():
        with out.open(newline="") as file:
            yield from (line for line in csv.reader(file) if len(line) == 7)


def _seeds(out: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for name, seed, *_ in _lines(out):
        found[name].add(int(seed))
    return found


def summary(out: Path, least: int = 0) -> None:
    """A Markdown table for each kind, of the settings with so many tables: coverage and width."""
    found: dict[str, dict[str, list[list[str]]]] = defaultdict(lambda: defaultdict(list))
    for name, _, method, *rest in _lines(out):
        found[name][method].append(rest)
    for kind in METHODS:
        enough = {name for name, lines in found.items() if len(lines[next(iter(lines))]) >= least}
        settings = [s for s in SETTINGS if s.kind == kind and s.name in enough]
        if not settings:
            continue
        methods = list(found[settings[0].name])
        print("|patients|positive|images|AUROC|tables|", "|".join(methods), "|", sep="")
        print("|" + "--:|" * (5 + len(methods)))
        for s in settings:
            cells = [_cell(found[s.name][m]) for m in methods]
            tables = len(found[s.name][methods[0]])
            head = (s.patients, s.positive, s.images, f"{s.auroc:.2f}", tables)
            print("|", "|".join(str(v) for v in (*head, *cells)), "|", sep="")
        print()


def _cell(lines: list[list[str]]) -> str:
    known = np.array([line for line in lines if line[0]], dtype=float)
    if not len(known):
        return "n/a"
    _, low, high, value = known.T
    inside = np.mean((low <= value) & (value <= high))
    mean = np.mean((low <= value.mean()) & (value.mean() <= high))
    also = f", of the mean {100 * mean:.1f}" if np.ptp(value) > 0 else ""
    missing = f", {len(lines) - len(known)} undefined" if len(known) < len(lines) else ""
    return f"{100 * inside:.1f} ({np.mean(high - low):.3f}{also}{missing})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", default="", help="settings whose name holds this, e.g. bands")
    parser.add_argument("--summary", action="store_true", help="print what there is")
    parser.add_argument("--least", type=int, default=0, help="tables that a row must have")
    args = parser.parse_args()
    if not args.summary:
        chosen = [s for s in SETTINGS if args.only in s.name]
        simulate(args.out, args.repeats, args.minutes, chosen)
    summary(args.out, args.least)


if __name__ == "__main__":
    main()
