"""What confirming on other patients is worth: the best on search films, or of a few finalists.

    python benchmarks/search_quality/confirm.py TABLE DIR --trained FOLDER --seeds 20

DIR and FOLDER are what `train_table.py` was given; FOLDER still holds its predictions. At the end
of its budget each contestant names its best three fully trained candidates and its best probe; 40%
of the held-out patients choose among them, the others measure the choice, and the plain answer
(best on the search films) beside it. Means over the seeds and 100 random cuts of the patients.
Autopeft confirms with fresh trainings as well; here every candidate was trained once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from contestants import History, Race, autopeft
from curves import read_table
from replay import FULL, PEERS, open_race
from train_table import SPACE, Bench, candidate_of, grid, key, prepare

from autopeft.metrics.classification import auroc_binary
from autopeft.space import load_space

CUTS, FINALISTS, SHARE = 100, 3, 0.4

# candidate -> AUROC on the choosing and on the measuring patients [CUTS, 2]
Cuts = Mapping[str, npt.NDArray[np.float64]]


def cut(bench: Bench, race: Race) -> Cuts:
    """AUROC of every candidate on both sides of every cut."""
    rows, found = bench.scored, {}
    assert rows.label is not None
    label, patient = rows.label[bench.search :, 0], rows.patient[bench.search :]
    generator, everyone = np.random.default_rng(0), np.unique(patient)
    choosing = [
        np.isin(patient, generator.permutation(everyone)[: int(SHARE * len(everyone))])
        for _ in range(CUTS)
    ]
    for params in grid(race.space):
        name = key(params)
        fingerprint = candidate_of(race.space, params, race.facts).fingerprint
        # A probe is fitted at once: its one result is that of epoch 1.
        last = 1 if race.table.curves[name].fitted else race.table.epochs
        file = f"{fingerprint}-0-all-{last}.npz"
        with np.load(Path(bench.setup.run_dir) / "predictions" / file) as stored:
            score = stored["score"][bench.search :, 0].astype(np.float64)
        found[name] = np.array(
            [[auroc_binary(score[side], label[side]) for side in (c, ~c)] for c in choosing],
            dtype=np.float64,
        )
    return found


def answers(history: History, race: Race, cuts: Cuts) -> tuple[float, float]:
    """Held-out AUROC of the plain answer and of the confirmed one, mean over the cuts."""
    epochs = race.table.epochs
    inside = [s.curve for s in history.seen if s.epoch == epochs and s.time <= race.seconds]
    full = {curve.key: curve for curve in inside}
    ranked = sorted(full, key=lambda name: -full[name].value("search_auroc", epochs))
    probes = [name for name in ranked if full[name].fitted]
    entrants = dict.fromkeys([*ranked[:FINALISTS], *probes[:1]])
    every = np.stack([cuts[name] for name in entrants])
    chosen = every[:, :, 0].argmax(axis=0)
    return float(every[0, :, 1].mean()), float(every[chosen, np.arange(CUTS), 1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers from search films and confirmed ones.")
    parser.add_argument("table", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()

    bench = prepare(options.data, options.trained)
    table, space = read_table(options.table), load_space(str(SPACE))
    race = open_race(table, space, bench.facts, options.workers, FULL)
    cuts = cut(bench, race)
    print("| | best on search films | confirmed |\n|---|---|---|")
    for name, play in {"autopeft": autopeft, **PEERS}.items():
        found = [answers(play(race, seed), race, cuts) for seed in range(options.seeds)]
        plain, confirmed = np.mean(found, axis=0)
        print(f"| {name} | {plain:.4f} | {confirmed:.4f} |", flush=True)


if __name__ == "__main__":
    main()
