"""How sure is the choice? Search patients are drawn again, and the whole choice is made again.

Whoever looks best among many is partly lucky, and how lucky can be told from stored scores: choose
on a resample of the patients, score the choice on those that the resample left out. Nothing is
trained (bootstrap bias correction: Tsamardinos, Greasidou & Borboudakis, Machine Learning 107,
2018; docs/choosing.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from autopeft.evaluation import Evaluation, Floats, Predictions
from autopeft.metrics import METRICS
from autopeft.metrics.folds import fold_of_patient
from autopeft.metrics.front import select_front
from autopeft.metrics.groups import patient_index
from autopeft.metrics.intervals import DEFINED
from autopeft.metrics.pairs import Indices
from autopeft.metrics.resampling import Weighted, check_same_rows, patient_weights
from autopeft.objective import UNDEFINED, Bound, Objective
from autopeft.redrawn import copied, how, redrawn
from autopeft.rules import Rule
from autopeft.terms import Measure, name_of

RESAMPLES = 1000
# Evaluations of copied rows that a replay may cost, where a metric knows no weights.
_COPIES, _LEAST_COPIED, _MOST_COPIED = 6000, 25, 200

Floor = Sequence[Sequence[Predictions]]  # the reference baselines, each with its repeats


@dataclass(frozen=True)
class Corrected:
    """A metric of the pick, and what is left of it without the luck of being picked.

    Attributes:
        naive: on the search patients that chose it.
        value: corrected; ``naive - optimism``.
        low: 2.5% of the resamples; wide, for a third of the patients are left out of one.
        high: 97.5%.
        optimism: how much lower the resamples' own picks score than the pick, on patients that
            took no part in choosing them.
        dropped: resamples in which it is undefined.
    """

    naive: float
    value: float
    low: float
    high: float
    optimism: float
    dropped: int


@dataclass(frozen=True)
class Replay:
    """What came out of choosing again and again.

    Attributes:
        resamples: how often.
        patients: who were drawn.
        pick: index of the rule's pick on all patients.
        share: of each candidate, how often it was picked; they sum to 1.
        feasible: share of those that picked anything in which something met the constraints.
        corrected: metric -> its corrected value; without those that are undefined too often.
        notes: what was not resampled as it should be, in words.
    """

    resamples: int
    patients: int
    pick: int
    share: tuple[float, ...]
    feasible: float
    corrected: Mapping[str, Corrected]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Replay:
        """Reads back ``to_dict``, also from JSON."""
        corrected = {name: Corrected(**c) for name, c in value["corrected"].items()}
        lists = {name: tuple(value[name]) for name in ("share", "notes")}
        return Replay(**{**value, **lists, "corrected": corrected})


def replay(
    evaluations: Sequence[Evaluation],
    objective: Objective,
    floor: Floor = (),
    n: int = RESAMPLES,
    seed: int = 0,
) -> Replay | None:
    """Repeats front, constraints and choice on resampled patients; scores on those left out.

    Patients are drawn inside each part (fold), so that scores of two models are never mixed.

    Args:
        evaluations: of all fully trained trials, on the same search rows.
        objective: whose terms, constraints and rule are applied.
        floor: predictions of the reference baselines on the same rows: the reference is then
            measured again on each resample, as it was on all patients. Empty: it stays.
        n: resamples; fewer where a metric knows no weights (`Replay.notes` says so).
        seed: of the draws.

    Returns:
        None where there is nothing to choose from.

    Raises:
        ValueError: the evaluations are not on the same rows.
    """
    front = list(objective.front(evaluations))
    if not front:
        return None
    pick = front[objective.choose([evaluations[i] for i in front])]
    check_same_rows([e.search for e in evaluations] + [p for model in floor for p in model])
    unit, patients = patient_index(evaluations[0].search)
    table = _Table.of(evaluations, objective, floor, unit)
    done = table.affordable(n)
    judged = {m: [redrawn(m, e, unit) for e in evaluations] for m in _judged(objective)}
    drawn: dict[str, list[Floats]] = {m: [] for m in judged}
    chosen, feasible = [], 0
    fold = fold_of_patient(evaluations[0].search, unit)
    for weight in patient_weights(patients, len(unit), done, seed, fold):
        picks, kept = table.choose(weight)
        left_out = (weight == 0).astype(np.float64)
        for m, columns in judged.items():
            drawn[m].append(_left_out(columns, left_out, picks, pick))
        chosen.append(picks)
        feasible += kept
    picks = np.concatenate(chosen)
    counts = np.bincount(picks[picks >= 0], minlength=len(evaluations))
    one = np.ones((patients, 1))
    found = {
        m: _corrected(float(judged[m][pick].values(one)[0]), np.concatenate(d, axis=1))
        for m, d in drawn.items()
    }
    return Replay(
        done,
        patients,
        pick,
        tuple((counts / max(1, counts.sum())).tolist()),
        feasible / max(1, int(counts.sum())),
        {m: c for m, c in found.items() if c is not None},
        table.notes(n),
    )


def _judged(objective: Objective) -> tuple[str, ...]:
    return tuple(dict.fromkeys((objective.primary, "auroc")))


def _left_out(columns: Sequence[Weighted], weight: Floats, picks: Indices, pick: int) -> Floats:
    """A metric on the patients that were left out, of each resample's pick and of the pick."""
    found = np.full((2, len(picks)), np.nan)
    for i in np.unique(picks[picks >= 0]):
        here = picks == i
        found[0, here] = columns[i].values(weight[:, here])
    found[1] = columns[pick].values(weight)
    return found


def _corrected(naive: float, drawn: Floats) -> Corrected | None:
    """From the [2, B] of `_left_out` to one value.

    The patients left out are a third of all, and the lowest AUROC of several groups is the lower
    the fewer patients it is measured on. So the resamples' picks are held against the pick on the
    same patients, and only the difference is taken off. For an AUROC, which fewer patients do not
    move, that is the paper's mean over the resamples.
    """
    known = np.isfinite(drawn).all(axis=0)
    if not np.isfinite(naive) or known.sum() < max(2, DEFINED * drawn.shape[1]):
        return None
    picks, pick = drawn[:, known]
    values = picks + (naive - pick.mean())
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    value = float(values.mean())
    return Corrected(naive, value, low, high, naive - value, int((~known).sum()))


@dataclass(frozen=True)
class _Table:
    """Everything that the choice looks at, of all candidates, ready for patient weights."""

    evaluations: Sequence[Evaluation]
    objective: Objective
    unit: Indices
    columns: Mapping[Measure, Sequence[Weighted]]
    references: Mapping[str, Sequence[Sequence[Weighted]]]

    @staticmethod
    def of(
        evaluations: Sequence[Evaluation], objective: Objective, floor: Floor, unit: Indices
    ) -> _Table:
        terms: list[Measure] = [t.metric for t in objective.terms]
        bounds: list[Measure] = [c.metric for c in objective.constraints]
        rule = objective.choose
        keys = [k.metric for k in rule.keys] if isinstance(rule, Rule) else []
        used = dict.fromkeys([*terms, *bounds, *keys])
        columns = {m: [redrawn(m, e, unit) for e in evaluations] for m in used}
        references: dict[str, list[list[Weighted]]] = {}
        for name in objective.references:
            if floor and how(name) != "held":
                every = [[replace(evaluations[0], search=p) for p in model] for model in floor]
                references[name] = [[redrawn(name, e, unit) for e in m] for m in every]
        return _Table(evaluations, objective, unit, columns, references)

    def affordable(self, asked: int) -> int:
        """Resamples, fewer where rows have to be copied for each."""
        if not self._slow:
            return asked
        most = np.clip(_COPIES // len(self.evaluations), _LEAST_COPIED, _MOST_COPIED)
        return min(asked, int(most))

    @property
    def _slow(self) -> list[str]:
        """What knows no weights."""
        named = [name_of(m) for m in self.columns if how(m) == "copied"]
        rule = self.objective.choose
        return named if isinstance(rule, Rule) else [*named, f"the rule {name_of(rule)}"]  # type: ignore[arg-type]

    def notes(self, asked: int) -> tuple[str, ...]:
        """What differs from resampling everything ``asked`` times."""
        found, done = [], self.affordable(asked)
        if done < asked:
            names = ", ".join(self._slow)
            found.append(f"{done} replays instead of {asked:,}: {names} takes long to repeat")
        elsewhere = [n for m in self.columns if "memorization" in _needs(n := name_of(m))]
        if elsewhere:
            names = ", ".join(elsewhere)
            found.append(f"{names} keeps its value in all replays: it is of other patients")
        return tuple(found)

    def choose(self, weight: Floats) -> tuple[Indices, int]:
        """The pick in each resample [B], -1 where none is defined; and how many are feasible."""
        values = {
            m: np.stack([column.values(weight) for column in columns])
            for m, columns in self.columns.items()
        }
        excess = self._excess(values, weight)
        terms = np.stack([values[t.metric] for t in self.objective.terms], axis=1)
        picks, feasible = np.full(weight.shape[1], -1), 0
        directions = self.objective.directions
        for b in range(weight.shape[1]):
            front = select_front(_rows(terms[:, :, b]), excess[:, b].tolist(), directions)
            if len(front):
                picks[b] = self._pick(list(front), values, weight[:, b], b)
                feasible += front.feasible
        return picks, feasible

    def _pick(
        self, front: list[int], values: Mapping[Measure, Floats], weight: Floats, b: int
    ) -> int:
        rule = self.objective.choose
        if isinstance(rule, Rule):
            keys = np.stack([values[k.metric][front, b] for k in rule.keys], axis=1)
            return front[rule.pick(_rows(keys), self.evaluations[0].margin)]
        return front[rule([copied(self.evaluations[i], self.unit, weight) for i in front])]

    def _excess(self, values: Mapping[Measure, Floats], weight: Floats) -> Floats:
        """Total violation [K, B], as `Objective.front` has it."""
        total = np.zeros((len(self.evaluations), weight.shape[1]))
        for bound in self.objective.constraints:
            limit = self._limit(bound, weight)
            violation = bound.sign * (values[bound.metric] - limit)
            violation = np.where(np.isnan(violation), UNDEFINED, np.maximum(violation, 0.0))
            total += violation / np.where(np.abs(limit) > 0, np.abs(limit), 1.0)
        return total

    def _limit(self, bound: Bound, weight: Floats) -> Floats:
        """The bound [B], its reference measured on the same resamples."""
        name = name_of(bound.metric)
        if not bound.uses_reference or name not in self.references:
            return np.full(weight.shape[1], bound.limit(self.evaluations[0]))
        means = [np.mean([c.values(weight) for c in m], axis=0) for m in self.references[name]]
        best = np.max if METRICS[name].direction == "maximize" else np.min
        known = {"reference": best(means, axis=0), "margin": self.evaluations[0].margin}
        total = np.zeros(weight.shape[1])
        for sign, part in bound.parts:
            total = total + sign * (known[part] if isinstance(part, str) else part)
        return total


def _needs(name: str) -> tuple[str, ...]:
    return METRICS[name].needs if name in METRICS else ()


def _rows(table: Floats) -> list[tuple[float | None, ...]]:
    """Rows of a table with None for NaN."""
    return [tuple(None if v != v else v for v in row) for row in table.tolist()]
