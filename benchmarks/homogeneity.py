"""Do the test and the interval of the gap between groups hold? Tables with known truth.

    python benchmarks/homogeneity.py gaps.csv            # 500 null tables, 200 with a gap; resumes
    python benchmarks/homogeneity.py gaps.csv --print    # the tables of docs/fairness.md
    python benchmarks/homogeneity.py gaps.csv --known-errors    # its table of normal draws

Two to four groups, patients with one to four images that share a patient effect, scores normal,
AUROC .85 in the groups without a loss. A scenario is (patients in each group, true gap, who
loses, labels). Each simulated table is one line of the CSV, with its own seed.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autopeft.evaluation import Predictions
from autopeft.metrics.fairness import gap_statistic
from autopeft.metrics.gap_interval import RangeTest, detectable, range_interval, wald
from autopeft.metrics.gap_null import null_gap
from autopeft.metrics.gaps import group_covariance
from autopeft.metrics.groups import Scored, patient_index

GROUPS = tuple(f"g={k}" for k in range(4))
BASE = 0.85
SIZES = {
    "10+/30-": [(10, 30)] * 4,
    "25+/75-": [(25, 75)] * 4,
    "50+/150-": [(50, 150)] * 4,
    "100+/300-": [(100, 300)] * 4,
    "250+/750-": [(250, 750)] * 4,
    "50+/150- to 400+/1200-": [(50, 150), (100, 300), (200, 600), (400, 1200)],
    "50+/150-, two groups": [(50, 150)] * 2,
    "50+/150-, three groups": [(50, 150)] * 3,
}
MAIN = ("50+/150-", "100+/300-", "250+/750-", "50+/150- to 400+/1200-")
GAPS = (0.02, 0.05, 0.08, 0.1)
FIELDS = (
    "size", "gap", "shape", "labels", "table", "value", "p", "p_rows", "covered", "low", "high",
    "detectable", "expected", "percentile_low", "percentile_high",
)  # fmt: skip


Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Scenario:
    """What is simulated: ``one`` group loses the gap, or the losses are spread ``even``ly."""

    size: str
    gap: float
    shape: str = "one"
    labels: int = 1

    @property
    def aurocs(self) -> np.ndarray:
        """The true AUROC of each group; the smallest group loses most."""
        groups = len(SIZES[self.size])
        even = np.linspace(1, 0, groups)
        return BASE - self.gap * (np.floor(even) if self.shape == "one" else even)


def scenarios() -> list[Scenario]:
    """The most wanted first."""
    found = [Scenario(size, 0.0) for size in SIZES]
    found.append(Scenario("50+/150-", 0.0, labels=3))
    for size in MAIN:
        found += [Scenario(size, gap) for gap in GAPS]
    for size in ("50+/150-", "100+/300-", "50+/150-, three groups"):
        found += [Scenario(size, gap, "even") for gap in GAPS]
    for size in ("50+/150-, two groups", "50+/150-, three groups"):
        found += [Scenario(size, gap) for gap in GAPS]
    return found


def simulate(scenario: Scenario, rng: np.random.Generator) -> Predictions:
    """One table: half of a score's variance is the patient's, half the image's."""
    from scipy.special import ndtri

    group, patient, target = [], [], []
    for g, (positive, negative) in enumerate(SIZES[scenario.size]):
        for k in range(positive + negative):
            images = int(rng.integers(1, 5))
            group += [g] * images
            patient += [f"{g}/{k}"] * images
            target += [float(k < positive)] * images
    g = np.array(group)
    _, unit = np.unique(patient, return_inverse=True)
    first = np.array(target)
    y = np.column_stack([first] + [_other(first, unit, rng) for _ in range(scenario.labels - 1)])
    shift = np.sqrt(2) * ndtri(scenario.aurocs)[g]
    shared = rng.normal(size=unit.max() + 1)[unit]
    noise = (shared[:, None] + rng.normal(size=y.shape)) / np.sqrt(2)
    return Predictions(
        score=noise + shift[:, None] * y,
        target=y,
        patient=np.array(patient),
        part=np.zeros(len(g), dtype=int),
        groups={"group": np.array(GROUPS, dtype=object)[g]},
        classes=tuple(f"label {k}" for k in range(scenario.labels)),
        kind="multilabel",
        split="test",
    )


def _other(first: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another label of the same patients, more frequent where the first is positive."""
    chance = np.zeros(unit.max() + 1)
    chance[unit] = np.where(first == 1, 0.5, 0.2)
    return (rng.random(len(chance)) < chance).astype(float)[unit]


def one_table(scenario: Scenario, number: int) -> dict[str, object]:
    """Simulates a table and asks everything of it."""
    from scipy.special import chdtrc

    rng = np.random.default_rng([hash_of(scenario), number])
    p = simulate(scenario, rng)
    scored = Scored("group", GROUPS[: len(SIZES[scenario.size])], tuple(range(scenario.labels)))
    value, covariance = group_covariance(p, scored)
    _, as_rows = group_covariance(replace(p, patient=np.arange(len(p.patient))), scored)
    row: dict[str, object] = {
        **vars(scenario),
        "table": number,
        "value": np.ptp(value),
        "p": chdtrc(len(value) - 1, wald(value, covariance)),
        "p_rows": chdtrc(len(value) - 1, wald(value, as_rows)),
        "covered": RangeTest.of(covariance).keeps(value, scenario.gap),
        "detectable": detectable(covariance),
    }
    if number < 40:
        row["low"], row["high"] = range_interval(value, covariance)
    if number < 25 and scenario.gap == 0:
        row["expected"] = null_gap(p, scored, 50).of_means
    if number < 50 and scenario.size == "50+/150-" and scenario.labels == 1:
        row["percentile_low"], row["percentile_high"] = percentile(p, rng)
    return {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}


def percentile(p: Predictions, rng: np.random.Generator, n: int = 300) -> tuple[float, float]:
    """The interval that is not used: percentiles of the gap over resampled patients."""
    unit, patients = patient_index(p)
    statistic = gap_statistic(p, unit, {"group": GROUPS})
    weight = rng.multinomial(patients, np.full(patients, 1 / patients), n).T.astype(float)
    low, high = np.nanquantile(statistic.values(weight), [0.025, 0.975])
    return float(low), float(high)


def hash_of(scenario: Scenario) -> int:
    """A seed that does not depend on the order of the scenarios."""
    import zlib

    return zlib.crc32(repr(scenario).encode())


def run(path: Path, tables: int, power: int) -> None:
    """Adds the lines that are missing."""
    done = {(r["size"], r["gap"], r["shape"], r["labels"], r["table"]) for r in read(path)}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        for scenario in scenarios():
            for number in range(tables if scenario.gap == 0 else power):
                key = tuple(str(v) for v in (*vars(scenario).values(), number))
                if key in done:
                    continue
                writer.writerow(one_table(scenario, number) | {"gap": str(scenario.gap)})
                file.flush()


def read(path: Path) -> Rows:
    """Whole lines of the CSV."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def numbers(rows: Rows, name: str) -> np.ndarray:
    """A column without its empty cells."""
    return np.array([float(r[name]) for r in rows if r[name] != ""])


def lines(rows: Rows) -> Iterator[str]:
    """The Markdown tables: equal groups, true gaps, and the percentile interval."""
    found = [
        (scenario, [r for r in rows if all(str(v) == r[k] for k, v in vars(scenario).items())])
        for scenario in scenarios()
    ]
    done = [(scenario, mine) for scenario, mine in found if mine]
    yield "| patients in each group | labels | tables | rejected | rejected when images count as \
patients | interval contains 0 | mean gap seen | mean expected by permutation |"
    yield "|---|---|---|---|---|---|---|---|"
    for scenario, mine in done:
        if scenario.gap == 0:
            head = f"{scenario.size} | {scenario.labels} | {len(mine)}"
            expected = numbers(mine, "expected").mean()
            seen = numbers(mine, "value").mean()
            yield f"| {head} | {rejected(mine, 'p')} | {rejected(mine, 'p_rows')} | \
{covered(mine)} | {seen:.3f} | {expected:.3f} |"
    yield ""
    yield "| patients in each group | true gap | who loses | tables | power | interval contains \
the truth | mean gap seen | mean interval | mean smallest detectable |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for scenario, mine in done:
        if scenario.gap:
            who = "one group" if scenario.shape == "one" else "spread evenly"
            head = f"{scenario.size} | {scenario.gap:g} | {who} | {len(mine)}"
            low, high, seen, enough = (
                numbers(mine, k).mean() for k in ("low", "high", "value", "detectable")
            )
            yield f"| {head} | {rejected(mine, 'p')} | {covered(mine)} | {seen:.3f} | \
{low:.3f} to {high:.3f} | {enough:.3f} |"
    yield ""
    yield "| true gap | who loses | tables | percentile interval excludes 0 | contains the truth |"
    yield "|---|---|---|---|---|"
    for scenario, mine in done:
        low, high = numbers(mine, "percentile_low"), numbers(mine, "percentile_high")
        if len(low):
            held = ((low <= scenario.gap) & (scenario.gap <= high)).mean()
            who = {0.0: "none"}.get(scenario.gap, scenario.shape)
            above = (low > 0).mean()
            yield f"| {scenario.gap:g} | {who} | {len(low)} | {above:.0%} | {held:.0%} |"


SHAPES = {
    "two": (0, 1),
    "three, two tied": (0, 1, 1),
    "four, three tied": (0, 1, 1, 1),
    "four, two and two": (0, 0, 1, 1),
    "four, evenly spread": (0, 1 / 3, 2 / 3, 1),
}


def known_errors(draws: int = 1000) -> Iterator[str]:
    """Known normal errors: critical values from around the estimates, or from tied groups."""
    yield "| groups | range in standard errors | around the estimates | groups tied (the tool) |"
    yield "|---|---|---|---|"
    for name, shape in SHAPES.items():
        tester = RangeTest.of(np.eye(len(shape)))
        for d in (1.5, 3.0, 5.0):
            rng = np.random.default_rng([len(shape), int(10 * d)])
            value = d * np.array(shape) + rng.normal(size=(draws, len(shape)))
            found, nearest = tester.distance(value, d)
            loose, tied = 0, 0
            for t, near in zip(found, nearest, strict=True):
                around, _ = tester.distance(near + tester.draws, d)
                loose += t <= np.quantile(around, 1 - tester.alpha) * tester.scale
                tied += t <= tester.critical(near, d)
            yield f"| {name} | {d:g} | {loose / draws:.1%} | {tied / draws:.1%} |"


def rejected(rows: Rows, name: str) -> str:
    """Share of p values below .05."""
    return f"{(numbers(rows, name) < 0.05).mean():.1%}"


def covered(rows: Rows) -> str:
    """Share of the intervals that contain the truth."""
    return f"{np.mean([r['covered'] == 'True' for r in rows]):.1%}"


def main() -> None:
    """Simulates, or prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("--tables", type=int, default=500, help="without a gap")
    parser.add_argument("--power", type=int, default=200, help="tables with a gap")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--known-errors", action="store_true", help="the table of normal draws")
    options = parser.parse_args()
    if options.known_errors:
        for line in known_errors():
            print(line, flush=True)
        return
    if not options.print:
        run(options.csv, options.tables, options.power)
    print("\n".join(lines(read(options.csv))))


if __name__ == "__main__":
    main()
