"""How wrong is each number of a search, and how often the verdict? Simulated, with known truth.

    python benchmarks/protocol.py FOLDER [--minutes 15] [--only verdict]
    python benchmarks/protocol.py FOLDER --report      # the tables of docs/protocol.md

Four studies, one CSV each: a ``search`` among 200 candidates with the tool's own rules, from the
search value to the verdict; the ``verdict`` on one declared contrast; the verdict on the ``worst``
group; the interval of a ``recipe`` over seeds. Nothing is trained: scores come from
`protocol_truth`. A run goes on where it stopped; a line's number is its seed.
"""

from __future__ import annotations

import argparse
import csv
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import protocol_truth as truth
from protocol_report import REPORTS
from scipy.special import stdtrit

from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.metrics.classification import auroc
from autopeft.metrics.fairness import group_aurocs
from autopeft.metrics.intervals import (
    bootstrap,
    non_inferior,
    paired,
    recipe_interval,
    verdict,
)
from autopeft.metrics.worst import worst_group_floor, worst_group_word
from autopeft.objective import load_objective
from autopeft.replay import replay
from autopeft.selection import choose_winner, finalists

CANDIDATES, FINALISTS, SEEDS, REPLAYS = 200, 3, (1, 2, 3), 200
MARGIN = 0.01
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One setting of a study.

    Attributes:
        values: what it is, by name, as in the CSV.
        repeats: how often it is drawn.
    """

    values: dict[str, Any]
    repeats: int

    @property
    def name(self) -> str:
        """How its lines are found again."""
        return " ".join(str(v) for v in self.values.values())


# A whole search ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hall:
    """What `choose_winner` asks of an audience: no groups, no thresholds."""

    counted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labels: None = None

    def evaluation(self, predictions: Predictions, cost: Cost) -> Evaluation:
        """With nothing but the predictions."""
        return Evaluation(predictions, cost)


def one_search(patients: int, candidates: str, number: int) -> Row:
    """200 candidates and a baseline, from search to verdict, by the tool's own rules."""
    rng = np.random.default_rng([1, number])
    sd = 0.015 if candidates == "differ" else 0.0
    recipes = truth.differing(rng, CANDIDATES, 0.85, sd)
    world = truth.World(np.append(recipes, [[0.85]], axis=0), number, seed_sd=sd / 3)
    sizes = _sizes(patients)
    search, confirm, test = (world.patients(s, n) for s, n in sizes.items())
    cost = [Cost(int(p), int(p)) for p in 10 ** rng.uniform(3, 6, CANDIDATES + 1)]
    found = [Evaluation(search.scored(k), cost[k]) for k in range(CANDIDATES)]
    objective = load_objective("auroc")
    (pick, *rest), _, _ = finalists(list(enumerate(found)), objective, FINALISTS)

    scored = {(str(k), s): confirm.scored(k, s) for k in (pick, *rest) for s in SEEDS}
    models = [SimpleNamespace(name=str(k)) for k in (pick, *rest)]
    costs = {m.name: cost[int(m.name)] for m in models}
    chosen = choose_winner(models, costs, scored, SEEDS, "auroc", Hall())  # type: ignore[arg-type]
    winner = int(chosen.name)

    recipe, best, base = recipes[pick, 0], recipes.max(), CANDIDATES
    value = auroc(found[pick].search)
    naive = bootstrap(found[pick].search, n=1000)
    again = replay(found, objective, n=REPLAYS, seed=number)
    final, rival = test.scored(winner), test.scored(base)
    reported, contrast = bootstrap(final, n=1000), paired(final, rival)
    saved = world.truth(winner, 0)
    return {
        "search": value - recipe,
        "reseeded": np.mean([auroc(search.scored(pick, s)) for s in SEEDS]) - recipe,
        "replay": again.corrected["auroc"].value - recipe,
        "confirm": np.mean([auroc(scored[(str(pick), s)]) for s in SEEDS]) - recipe,
        "confirm_winner": np.mean([auroc(scored[(str(winner), s)]) for s in SEEDS])
        - recipes[winner, 0],
        "test": auroc(final) - saved,
        "search_covers": naive.low <= recipe <= naive.high,
        "test_covers": reported.low <= saved <= reported.high,
        "regret_pick": best - recipe,
        "regret_winner": best - recipes[winner, 0],
        "naive_word": verdict(paired(found[pick].search, search.scored(base), n=1000), MARGIN),
        "word": verdict(contrast, MARGIN),
        "gain": saved - world.truth(base, 0),
    }


def _sizes(patients: int) -> dict[str, int]:
    """Patients of each split when search has so many: 15/10/15%, from 5,000 in all 10/5/15%."""
    search, confirm, test = (0.15, 0.10, 0.15) if patients < 0.10 * 5000 else (0.10, 0.05, 0.15)
    return {
        "search": patients,
        "confirm": round(patients * confirm / search),
        "test": round(patients * test / search),
    }


# The verdict -------------------------------------------------------------------------------------


def one_contrast(patients: int, images: int, difference: float, number: int) -> Row:
    """Winner and baseline on test patients; the winner is truly so much better."""
    world = truth.World(np.array([[0.85 + difference], [0.85]]), number, images=images)
    test = world.patients("test", patients)
    found = paired(test.scored(0), test.scored(1))
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "word": verdict(found, MARGIN),
        "kept": non_inferior(found, MARGIN),
    }


WORST = {
    "equal, no group differs": ((0.85,) * 4, (0.85,) * 4),
    "equal, one worst group": ((0.80, 0.85, 0.85, 0.85), (0.80, 0.85, 0.85, 0.85)),
    "equal, only the winner's groups differ": ((0.80, 0.85, 0.85, 0.85), (0.80,) * 4),
    "equal, only the opponent's groups differ": ((0.80,) * 4, (0.80, 0.85, 0.85, 0.85)),
    "winner .005 worse, its groups differ": ((0.795, 0.85, 0.85, 0.85), (0.80,) * 4),
    "winner .03 better": ((0.83, 0.85, 0.85, 0.85), (0.80, 0.85, 0.85, 0.85)),
    "winner .05 better": ((0.85,) * 4, (0.80, 0.85, 0.85, 0.85)),
}


def one_worst(patients: int, images: int, groups: str, number: int) -> Row:
    """Four groups; the winner's lowest AUROC against the opponent's, by both rules."""
    world = truth.World(np.array(WORST[groups]), number, images=images)
    test, confirm = (world.patients(split, patients) for split in ("test", "confirm"))
    names = tuple(f"group={g}" for g in range(4))
    counted = {"group": names}
    named = group_aurocs(confirm.scored(1), "group", names)
    against = min(names, key=lambda g: named[g] or 1.0)
    both = test.scored(0), test.scored(1)
    plain = verdict(paired(*both, "worst_group_auroc", n=1000, counted=counted), MARGIN)
    floor = worst_group_floor(*both, against, counted, n=1000)
    return {"plain": plain, "word": worst_group_word(plain, floor, MARGIN)}


# The recipe --------------------------------------------------------------------------------------


def one_recipe(patients: int, seeds: int, seed_sd: float, number: int) -> Row:
    """Two recipes, .01 apart, each trained with so many seeds: does the interval hold .01?"""
    world = truth.World(np.array([[0.86], [0.85]]), number, seed_sd=seed_sd)
    test = world.patients("test", patients)
    a, b = ([test.scored(k, s) for s in range(seeds)] for k in (0, 1))
    found, alone = recipe_interval(a, b, n=1000), paired(a, b, n=1000)
    each = np.array([auroc(x) - auroc(y) for x, y in zip(a, b, strict=True)])
    # Satterthwaite's degrees of freedom: only the variance over seeds is estimated from S numbers.
    share = each.var(ddof=1) / seeds / found.se**2
    df = 1 / (share**2 / (seeds - 1) + (1 - share) ** 2 / (patients - 1))
    half = float(stdtrit(df, 0.975)) * found.se
    miss = abs(found.value - 0.01)
    return {
        "covered": found.low <= 0.01 <= found.high,
        "width": found.high - found.low,
        "satterthwaite": miss <= half,
        "satterthwaite_width": 2 * half,
        "patients_alone": alone.low <= 0.01 <= alone.high,
        "patients_alone_width": alone.high - alone.low,
        "seed_share": share,
    }


# All of them -------------------------------------------------------------------------------------


def _cases(repeats: Callable[..., int], **values: Sequence[Any]) -> Iterator[Case]:
    """Every combination."""
    grid = np.stack(np.meshgrid(*(np.arange(len(v)) for v in values.values()), indexing="ij"), -1)
    for place in grid.reshape(-1, len(values)):
        chosen = {k: v[i] for (k, v), i in zip(values.items(), place, strict=True)}
        yield Case(chosen, repeats(**chosen))


STUDIES: dict[str, tuple[Callable[..., Row], list[Case]]] = {
    "search": (
        one_search,
        [
            Case({"patients": n, "candidates": kind}, repeats)
            for n, repeats in ((100, 200), (234, 200), (1000, 200), (5000, 60))
            for kind in ("differ", "equal")
        ],
    ),
    "verdict": (
        one_contrast,
        list(
            _cases(
                lambda difference, **_: 500 if difference in (0.0, -MARGIN) else 100,
                difference=(0.0, -MARGIN, 0.01, 0.02, 0.03, 0.05),
                patients=(100, 234, 1000, 2500),
                images=(3,),
            )
        ),
    ),
    "worst": (
        one_worst,
        list(_cases(lambda **_: 200, patients=(300,), images=(2,), groups=tuple(WORST))),
    ),
    "recipe": (
        one_recipe,
        list(
            _cases(
                lambda **_: 200, seeds=(3, 5), seed_sd=(0.0, 0.01, 0.03), patients=(234, 1000)
            )
        ),
    ),
}  # fmt: skip


def simulate(folder: Path, names: Sequence[str], minutes: float) -> None:
    """Adds the lines that are missing, in turns of 10 repeats a case, until the time is over."""
    end = time.monotonic() + 60 * minutes
    every = [(name, case) for name in names for case in STUDIES[name][1]]
    done = {(n, r["case"], int(r["number"])) for n in names for r in read(folder / f"{n}.csv")}
    for upto in range(10, max(case.repeats for _, case in every) + 10, 10):
        for name, case in every:
            for number in range(upto - 10, min(upto, case.repeats)):
                if time.monotonic() > end:
                    return
                if (name, case.name, number) in done:
                    continue
                start = time.process_time()
                seed = zlib.crc32(f"{name} {case.name} {number}".encode())
                found = STUDIES[name][0](**case.values, number=seed)
                row = {"case": case.name, "number": number, **found}
                append(folder / f"{name}.csv", row | {"seconds": time.process_time() - start})


def append(path: Path, row: Row) -> None:
    """One line more."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read(path: Path) -> list[dict[str, str]]:
    """Whole lines of a CSV."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def report(folder: Path) -> None:
    """The Markdown tables of what there is."""
    for name, (_, cases) in STUDIES.items():
        rows = read(folder / f"{name}.csv")
        found = [(c.values, [r for r in rows if r["case"] == c.name]) for c in cases]
        found = [(values, mine) for values, mine in found if mine]
        if found:
            print("\n".join(REPORTS[name](found)), end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=15, help="at most")
    parser.add_argument("--only", choices=[*STUDIES], help="one study")
    parser.add_argument("--report", action="store_true", help="print what there is")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not args.report:
        simulate(args.folder, [args.only] if args.only else list(STUDIES), args.minutes)
    report(args.folder)


if __name__ == "__main__":
    main()
