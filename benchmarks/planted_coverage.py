"""Cheap searches of planted.py: linear probes on frozen features, and what each interval holds.

A run draws 2,000 patients, splits them as the tool does (60/15/10/15), fits 72 probes (readout x
pool x strength), picks on search, confirms five finalists with three fresh seeds, and takes the
winner's test interval. A probe has no seed of its own; so that it has one, as a network has, each
training is given four fifths of the train patients, and the repeat says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import planted_data as data
from planted_data import SIZE, Size
from planted_memory import append, read

from autopeft.bench import Audience, Model
from autopeft.candidate import Candidate
from autopeft.data.splits import cells, make_splits, shares
from autopeft.evaluation import Cost, Predictions
from autopeft.job import Rows
from autopeft.methods import canonical
from autopeft.metrics.intervals import Interval, bootstrap, paired
from autopeft.rules import Rule, overall, worst_group
from autopeft.selection import choose_winner
from autopeft.training.probe import Probe, fit_probe

PATIENTS, FINALISTS, SEEDS = 2000, 5, (1, 2, 3)
STRENGTHS = (0.01, 0.1, 0.3, 1.0)
RULES: dict[str, Rule] = {"auroc": overall, "worst_group_auroc": worst_group}
COVERAGE = ("run", "metric", "estimate", "value", "low", "high", "truth")
ESTIMATES = (
    "search, the pick as it was chosen",
    "search, the pick with fresh seeds",
    "confirm, the pick with fresh seeds",
    "confirm, the winner",
    "test, the winner",
    "test, winner minus plain probe",
)
Truth = tuple[Rows, data.Frozen]
Row = tuple[int, str, str, str, str, str, str]


def coverage(out: Path, runs: int, shortcut: float, size: Size = SIZE) -> None:
    """Runs what is not in the table yet."""
    done = {line["run"] for line in read(out / "coverage.csv", COVERAGE)}
    if all(str(run) in done for run in range(runs)):
        return
    people, drawn_from = data.population(out, shortcut, size)
    others, fresh = data.fresh(out, shortcut, size)
    truth = others.rows(), fresh
    for run in range(runs):
        if str(run) not in done:
            cheap = Cheap.drawn(run, people, drawn_from)
            lines = [line for metric in RULES for line in one(cheap, metric, truth)]
            append(out / "coverage.csv", COVERAGE, lines)
            print(f"coverage, run {run}", flush=True)


@dataclass
class Cheap:
    """One run: its patients, its candidates, and the heads that were fitted so far."""

    run: int
    rows: Mapping[str, Rows]
    candidates: Mapping[str, Candidate]
    frozen: data.Frozen
    heads: dict[tuple[str, int], Probe] = field(default_factory=dict)
    truths: dict[tuple[str, int], data.Values] = field(default_factory=dict)
    features: dict[tuple[Any, str], npt.NDArray[np.float32]] = field(default_factory=dict)

    @staticmethod
    def drawn(run: int, people: data.Films, frozen: data.Frozen) -> Cheap:
        """Patients of the population, split as the tool does it."""
        rng = np.random.default_rng([run, 7])
        rows = people.rows(np.sort(rng.permutation(len(people.people))[:PATIENTS]))
        assert rows.label is not None
        strata = cells(rows.label, list(rows.groups.values()))
        split = make_splits(rows.patient, strata, shares(PATIENTS), run)
        parts = {str(s): rows.take(np.flatnonzero(split == s)) for s in np.unique(split)}
        facts = data.network(int(people.store.array.shape[1])).facts
        places = product(range(1, facts.depth + 1), facts.pools, STRENGTHS)
        found = {
            f"{block} {pool} {strength:g}": canonical(
                {
                    "method": "linear_probe",
                    "readout": {"block": block, "pool": pool},
                    "weight_decay": strength,
                },
                facts,
            )
            for block, pool, strength in places
        }
        return Cheap(run, parts, found, frozen)

    def x(self, name: str, split: str) -> npt.NDArray[np.float32]:
        """Features of a split at a candidate's readout."""
        at = self.candidates[name].readout
        if (at, split) not in self.features:
            self.features[at, split] = self.frozen.features(at, self.rows[split].index)
        return self.features[at, split]

    def head(self, name: str, repeat: int) -> Probe:
        """One training: four fifths of the train patients, which ones the repeat says."""
        if (name, repeat) not in self.heads:
            label = self.rows["train"].label
            assert label is not None
            number = list(self.candidates).index(name)
            rng = np.random.default_rng([self.run, number, repeat])
            kept = np.sort(rng.permutation(len(label))[: len(label) * 4 // 5])
            strength = self.candidates[name].train.weight_decay
            x = self.x(name, "train")[kept]
            self.heads[name, repeat] = fit_probe(x, label[kept], "binary", strength)
        return self.heads[name, repeat]

    def scored(self, name: str, repeat: int, split: str) -> Predictions:
        """A training's predictions on a split; on search rounded to fp16, as in a run."""
        score = self.head(name, repeat).logits(self.x(name, split))[:, 0]
        rounded = score.astype(np.float16) if split == "search" else score
        return data.predictions(rounded, self.rows[split], split, repeat)

    def true(self, name: str, repeats: Sequence[int], metric: str, truth: Truth) -> float:
        """What trainings are worth on the fresh patients, their mean."""
        rows, frozen = truth
        for repeat in repeats:
            if (name, repeat) not in self.truths:
                x = frozen.features(self.candidates[name].readout)
                score = self.head(name, repeat).logits(x)[:, 0]
                self.truths[name, repeat] = data.values(data.predictions(score, rows))
        found = [self.truths[name, r] for r in repeats]
        return float(np.mean([v.auroc if metric == "auroc" else v.worst for v in found]))

    def params(self, name: str) -> int:
        """Trained numbers."""
        return int(self.head(name, 0).weight.size) + 1


def one(cheap: Cheap, metric: str, truth: Truth) -> Iterator[Row]:
    """A whole run under one rule: what each interval says, and what is true."""
    finalists = chosen(cheap, RULES[metric])
    pick, winner = finalists[0], confirmed(cheap, finalists, metric)
    plain = "6 token 0.1"
    cases = {
        ESTIMATES[0]: (pick, (0,), "search"),
        ESTIMATES[1]: (pick, SEEDS, "search"),
        ESTIMATES[2]: (pick, SEEDS, "confirm"),
        ESTIMATES[3]: (winner, SEEDS, "confirm"),
        ESTIMATES[4]: (winner, (0,), "test"),
    }
    for estimate, (name, repeats, split) in cases.items():
        every = [cheap.scored(name, r, split) for r in repeats]
        found = bootstrap(every, metric, counted=data.COUNTED)
        yield _row(cheap.run, metric, estimate, found, cheap.true(name, repeats, metric, truth))
    sides = [cheap.scored(name, 0, "test") for name in (winner, plain)]
    gain = paired(sides[0], sides[1], metric, counted=data.COUNTED)
    mine, theirs = (cheap.true(name, (0,), metric, truth) for name in (winner, plain))
    yield _row(cheap.run, metric, ESTIMATES[5], gain, mine - theirs)


def chosen(cheap: Cheap, rule: Rule) -> list[str]:
    """The rule's pick on search, then its pick without the first, and so on."""
    table: dict[str, list[float | None]] = {}
    for name in cheap.candidates:
        found = data.values(cheap.scored(name, 0, "search"))
        known = {
            "auroc": found.auroc,
            "worst_group_auroc": found.worst,
            "trainable_params": float(cheap.params(name)),
        }
        table[name] = [known[key.name] for key in rule.keys]
    finalists: list[str] = []
    while len(finalists) < FINALISTS:
        left = [name for name in table if name not in finalists]
        finalists.append(left[rule.pick([table[name] for name in left])])
    return finalists


def confirmed(cheap: Cheap, finalists: Sequence[str], metric: str) -> str:
    """The winner on confirm, by the tool's own rule."""
    audience = Audience(Path(), ("lesion",), "binary", dict(cheap.rows), data.COUNTED, 0.01, "", 1)
    return choose_winner(
        [Model(name, cheap.candidates[name]) for name in finalists],
        {name: Cost(cheap.params(name), 4 * cheap.params(name)) for name in finalists},
        {(n, r): cheap.scored(n, r, "confirm") for n in finalists for r in SEEDS},
        SEEDS,
        metric,
        audience,
    ).name


def _row(run: int, metric: str, estimate: str, found: Interval | None, truth: float) -> Row:
    known = ("", "", "") if found is None else (found.value, found.low, found.high)
    value, low, high = (f"{v:.5f}" if v != "" else "" for v in known)
    return run, metric, estimate, value, low, high, f"{truth:.5f}"
