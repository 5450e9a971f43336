"""Search quality at equal cost: autopeft's engine and its peers replayed on one table.

    python benchmarks/search_quality/replay.py TABLE --seeds 20 --out docs

TABLE is what `train_table.py` wrote (`table.csv` beside this file). Every contestant has the same
candidates, workers and seconds; a race costs no training, only decisions. The budget is the wall
time in which the workers train 32 average candidates to the end. Prints Markdown; figures go to
OUT.

    python benchmarks/search_quality/replay.py TABLE --live autopeft --data DIR --out FOLDER

runs one contestant really, with training, and compares it with the table (see `live.py`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from contestants import (
    AUROC,
    FAIR,
    SMALL,
    Aim,
    History,
    Race,
    autopeft,
    optuna_tpe,
    random_search,
    tune,
)
from curves import Table, read_table
from measures import Floats, hypervolumes, incumbents, mean_interval

from autopeft.backbones.weights import load_backbone
from autopeft.drawing import WIDTH, axis, figure, grid, text
from autopeft.space import Space, load_space

SPACE = Path(__file__).with_name("space.yaml")
FULL = 32  # average candidates that the budget trains to the end: the default of `--trials`
STEPS = 10
LAST = ", best last result"  # a half-trained candidate may be the answer, too
Play = Callable[[Race, int], History]

# Whom autopeft is compared with, and variants that show where a difference comes from.
PEERS: dict[str, Play] = {
    "Optuna TPE": optuna_tpe,
    "Tune: OptunaSearch + ASHA": tune,
    "random": random_search,
}
FREE: dict[str, Play] = {
    "Optuna TPE, repeats free": partial(optuna_tpe, free=True),
    "Tune, repeats free": partial(tune, free=True),
    "random, repeats free": partial(random_search, free=True),
}
PARTS: dict[str, Play] = {
    "autopeft, random proposals": partial(autopeft, sampler="random"),
    "autopeft, no pruning": partial(autopeft, pruning=False),
    "autopeft, neither": partial(autopeft, sampler="random", pruning=False),
}


def open_race(table: Table, space: Space, facts: object, workers: int, full: float) -> Race:
    """A race whose budget trains ``full`` average candidates to the end."""
    return Race(table, space, facts, AUROC, workers, full * table.average / workers)


def races(race: Race, players: Mapping[str, Play], seeds: int) -> dict[str, list[History]]:
    """Every player with every seed."""
    found = {}
    for name, play in players.items():
        started = time.perf_counter()
        found[name] = [play(race, seed) for seed in range(seeds)]
        passed = time.perf_counter() - started
        print(f"<!-- {race.aim.name}, {name}: {passed:.0f} s -->", flush=True)
    return found


# ---- numbers ---------------------------------------------------------------------------------


def instants(race: Race, steps: int = STEPS) -> list[float]:
    """Equal shares of the budget, the last one all of it."""
    return [race.seconds * (i + 1) / steps for i in range(steps)]


def measured(
    race: Race, histories: Mapping[str, Sequence[History]], steps: int = STEPS
) -> dict[str, dict[str, Floats]]:
    """Measure -> player -> values [seeds, steps]."""
    times = instants(race, steps)
    if race.aim is not AUROC:
        name = f"hypervolume, {race.aim.name}"
        return {
            name: {
                player: np.array([hypervolumes(h, race.table, race.aim, times) for h in every])
                for player, every in histories.items()
            }
        }
    found: dict[str, dict[str, Floats]] = {"search AUROC": {}, "held-out AUROC": {}}
    for player, every in histories.items():
        pauses = player == "autopeft" or player.startswith("Tune")
        for trained in (True, False) if pauses else (True,):
            name = player if trained else f"{player}{LAST}"
            answers = np.array([incumbents(h, race.table, times, trained) for h in every])
            found["search AUROC"][name] = answers[:, :, 0]
            found["held-out AUROC"][name] = answers[:, :, 1]
    return found


def value_rows(values: Mapping[str, Floats]) -> list[str]:
    """Means over the seeds, one row a share of the budget."""
    rows = [f"| budget | {' | '.join(values)} |", "|---" * (len(values) + 1) + "|"]
    for i in range(STEPS):
        cells = [f"{table[:, i].mean():.4f}" for table in values.values()]
        rows.append(f"| {100 * (i + 1) // STEPS}% | {' | '.join(cells)} |")
    return rows


def difference_rows(values: Mapping[str, Floats], ours: str = "autopeft") -> list[str]:
    """One player minus each other one in thousandths, paired by seed, with 95% intervals."""
    others = [name for name in values if name != ours]
    rows = [f"| {ours} minus | {' | '.join(others)} |", "|---" * (len(others) + 1) + "|"]
    for i in range(STEPS):
        cells = []
        for name in others:
            mean, low, high = mean_interval(1000 * (values[ours][:, i] - values[name][:, i]))
            mark = "**" if low > 0 else "_" if high < 0 else ""
            cells.append(f"{mark}{mean:+.1f}{mark} ({low:+.1f}, {high:+.1f})")
        rows.append(f"| {100 * (i + 1) // STEPS}% | {' | '.join(cells)} |")
    return rows


def work_rows(race: Race, histories: Mapping[str, Sequence[History]]) -> list[str]:
    """What the budget was spent on."""
    rows = [
        "| | trials started | repeats | fully trained | candidates seen | seconds to the table's "
        "best within .002 (seeds that got there) |",
        "|---|---|---|---|---|---|",
    ]
    goal = race.table.best("search_auroc") - 0.002
    for name, every in histories.items():
        inside = [[s for s in h.seen if s.time <= race.seconds] for h in every]
        full = [len({s.trial for s in seen if s.epoch == race.table.epochs}) for seen in inside]
        known = [len({s.curve.key for s in seen}) for seen in inside]
        first = [
            min((s.time for s in seen if s.epoch == race.table.epochs
                 and s.curve.value("search_auroc", s.epoch) >= goal), default=np.inf)
            for seen in inside
        ]  # fmt: skip
        got = [t for t in first if np.isfinite(t)]
        median = f"{np.median(got):.0f}" if got else "-"
        rows.append(
            f"| {name} | {np.mean([len(h.asked) for h in every]):.0f} | "
            f"{100 * np.mean([h.repeats for h in every]):.0f}% | {np.mean(full):.0f} | "
            f"{np.mean(known):.0f} | {median} ({len(got)} of {len(first)}) |"
        )
    return rows


# ---- figures ---------------------------------------------------------------------------------

KINDS = {"autopeft": ("#0b62c4", 3.0), "Optuna TPE": ("#b3541e", 1.8),
         "Tune: OptunaSearch + ASHA": ("#2f7d4f", 1.8), "random": ("#8a8f98", 1.8)}  # fmt: skip


def picture(race: Race, title: str, beside: str, values: Mapping[str, Floats]) -> str:
    """Means over the seeds with their 95% intervals, over the budget."""
    shown = {name: values[name] for name in KINDS if name in values}
    steps = next(iter(shown.values())).shape[1]
    shares = [100 * (i + 1) / steps for i in range(steps)]
    kept = [i for i, share in enumerate(shares) if share >= 10]
    bands = {name: [mean_interval(table[:, i]) for i in kept] for name, table in shown.items()}
    width, height = (74.0, WIDTH - 24.0), (290.0, 34.0)
    edges = [v for band in bands.values() for triple in band for v in triple]
    x, y = axis([0, 100], *width), axis(edges, *height)
    parts = [text(12, 20, title), *grid(x, y, width, height, "% of the budget", beside)]
    for name, band in bands.items():
        color, thick = KINDS[name]
        at = [x.at(shares[i]) for i in kept]
        low = [f"{a:.1f} {y.at(b[1]):.1f}" for a, b in zip(at, band, strict=True)]
        high = [f"{a:.1f} {y.at(b[2]):.1f}" for a, b in zip(at, band, strict=True)]
        middle = [f"{a:.1f} {y.at(b[0]):.1f}" for a, b in zip(at, band, strict=True)]
        shape = f"M{'L'.join(low)}L{'L'.join(reversed(high))}Z"
        parts.append(f'<path fill="{color}" fill-opacity="0.13" d="{shape}"/>')
        stroke = f'stroke="{color}" stroke-width="{thick}" fill="none"'
        parts.append(f'<path {stroke} d="M{"L".join(middle)}"/>')
    for i, name in enumerate(bands):
        color, thick = KINDS[name]
        left, top = width[1] - 210, height[0] - 14 - 18 * (len(bands) - 1 - i)
        stroke = f'stroke="{color}" stroke-width="{thick}"'
        parts.append(f'<path {stroke} d="M{left} {top - 4}L{left + 22} {top - 4}"/>')
        parts.append(text(left + 30, top, name))
    told = "; ".join(f"{n} ends at {b[-1][0]:.4f}" for n, b in bands.items())
    return figure(title, told, height[0] + 54, parts, "quality").svg


# ---- the report ------------------------------------------------------------------------------


def report(race: Race, seeds: int, extra: bool, out: Path | None) -> None:
    players = {"autopeft": autopeft, **PEERS, **({**PARTS, **FREE} if extra else {})}
    histories = races(race, players, seeds)
    print("\n### What the budget was spent on\n")
    print("\n".join(work_rows(race, histories)), flush=True)
    for name, values in measured(race, histories).items():
        print(f"\n### {name} of the answer, mean of {seeds} seeds; differences in thousandths\n")
        peers = {n: v for n, v in values.items() if n.removesuffix(LAST) in PEERS}
        ours, last = {"autopeft": values["autopeft"]}, f"autopeft{LAST}"
        print("\n".join([*value_rows({**ours, **peers}), "", *difference_rows({**ours, **peers})]))
        for others in (PARTS, FREE):
            found = {n: v for n, v in values.items() if n in others}
            print("\n".join(["", *difference_rows({**ours, **found})] if found else []))
        loose = {n: v for n, v in values.items() if n.endswith(LAST)}
        print("\n".join(["", *difference_rows(loose, last)]), flush=True)
    if out is not None:
        fine = measured(race, histories, 100)["search AUROC"]
        title = f"AUROC of the best fully trained candidate, {seeds} seeds"
        svg = picture(race, title, "AUROC on search patients", fine)
        (out / "search_quality_auroc.svg").write_text(svg + "\n")


def report_front(race: Race, aim: Aim, seeds: int, out: Path | None) -> None:
    race = replace(race, aim=aim)
    histories = races(race, {"autopeft": autopeft, **PEERS}, seeds)
    for name, values in measured(race, histories).items():
        print(f"\n### {name} ({' and '.join(aim.terms)}), share of the table's\n")
        print("\n".join([*value_rows(values), "", *difference_rows(values)]), flush=True)
    if out is not None:
        (fine,) = measured(race, histories, 100).values()
        title = f"Hypervolume of the fully trained candidates, {seeds} seeds"
        svg = picture(race, title, "share of the table's", fine)
        (out / f"search_quality_{aim.name}.svg").write_text(svg + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay searches on a table of trainings.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--full", type=float, default=FULL, help="budget in average trainings")
    parser.add_argument("--only", choices=["auroc", "fair", "small"])
    parser.add_argument("--plain", action="store_true", help="autopeft and its peers only")
    parser.add_argument("--out", type=Path, help="folder for figures and live results")
    parser.add_argument("--live", choices=["autopeft", "optuna", "tune", "random"])
    parser.add_argument("--seconds", type=float, default=150, help="of a live run")
    parser.add_argument("--data", type=Path, help="as train_table.py takes it, for --live")
    options = parser.parse_args()

    if options.live:
        from live import main as live

        live(options.live, read_table(options.table), options.data, options.out, options.seconds)
        return
    table, space = read_table(options.table), load_space(str(SPACE))
    facts = load_backbone("autopeft_vit_nano", None, 56, offline=True).facts
    race = open_race(table, space, facts, options.workers, options.full)
    for comment in table.about:
        print(comment)
    spread = np.percentile([c.value("search_auroc", table.epochs) for c in table.full], [0, 50])
    print(
        f"{len(table.curves)} candidates, {len(table.curves) - len(table.full)} diverge; search "
        f"AUROC {spread[0]:.3f} (worst), {spread[1]:.3f} (median), "
        f"{table.best('search_auroc'):.4f} (best); a full training takes {table.average:.1f} s on "
        f"average; budget {race.seconds:.0f} s with {race.workers} workers"
    )
    if options.only in (None, "auroc"):
        report(race, options.seeds, not options.plain, options.out)
    for aim in (FAIR, SMALL):
        if options.only in (None, aim.name):
            report_front(race, aim, options.seeds, options.out)


if __name__ == "__main__":
    main()
