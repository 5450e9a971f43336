"""From the front to the answer: reference, finalists, the winner on confirm, the contrast.

The search ranks on ``search`` patients; whoever wins there is partly lucky. So a few finalists are
trained again with fresh seeds and the winner is chosen on ``confirm`` patients (PROTOCOL 1, 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autopeft.backbones.facts import Facts
from autopeft.bench import Audience, Bench, Model
from autopeft.candidate import Pool
from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.job import Job, Outcome
from autopeft.metrics import METRICS
from autopeft.metrics.classification import auroc
from autopeft.metrics.intervals import Interval, bootstrap, paired
from autopeft.objective import Objective
from autopeft.progress import Bar
from autopeft.study import Entry, Study

Scored = Mapping[tuple[str, int], Predictions]


@dataclass(frozen=True)
class ReadoutChoice:
    """Where a linear probe reads best, by cross-validation inside train.

    Attributes:
        block: after how many blocks.
        pool: how tokens are pooled.
        strength: L2 strength.
        table: (block, pool) -> out-of-fold AUROC at its best strength.
        interval: of the AUROC that a probe has whose readout and strength are chosen without the
            patients that it is scored on: for each fold the best on the other folds. None = it is
            undefined, or there are too few patients for one.
    """

    block: int
    pool: Pool
    strength: float
    table: Mapping[str, float]
    interval: Interval | None = None

    @property
    def line(self) -> str:
        """The first answer of a run, for people."""
        if self.interval is None:
            place = f"block {self.block} ({self.pool})"
            return (
                f"first answer: a linear probe reads best at {place}; too few patients to say more"
            )
        i = self.interval
        return (
            f"first answer: linear probe at block {self.block} ({self.pool}), AUROC {i.value:.3f} "
            f"({i.low:.3f} to {i.high:.3f}) on {i.patients} train patients out of fold, "
            f"the choice among {len(self.table)} readouts included"
        )


def choose_readout(bench: Bench, facts: Facts, bar: Bar) -> ReadoutChoice:
    """Scores every readout by out-of-fold AUROC on train patients; search is not consulted."""
    job = Job("readouts", bench.audience.setup, split="train")
    outcome = bench.ask(job, bar)
    assert outcome.predictions is not None
    rows = bench.audience.rows["train"]
    scored: dict[tuple[int, Pool, float], Predictions] = {}
    with np.load(bench.audience.run_dir / "predictions" / outcome.predictions) as stored:
        subset = rows.take(np.searchsorted(rows.index, stored["row"]))
        for key in sorted(set(stored.files) - {"row", "fold"}):
            block, pool, strength = key.split("|")
            folds = _folds(bench.audience, subset, stored[key], stored["fold"])
            scored[int(block), pool, float(strength)] = folds
    values = {place: auroc(p) or 0.0 for place, p in scored.items()}
    table: dict[str, float] = {}
    for (block, pool, _), value in values.items():
        table[f"{block}|{pool}"] = max(value, table.get(f"{block}|{pool}", 0.0))
    best = max(values, key=values.__getitem__)
    interval = bootstrap(_chosen_elsewhere(list(scored.values())))
    return ReadoutChoice(*best, table, interval if interval and interval.enough else None)


def _chosen_elsewhere(every: Sequence[Predictions]) -> Predictions:
    """Each fold scored by what is best on the other folds: the choice costs what it costs."""
    first = every[0]
    score = np.array(first.score)
    for fold in np.unique(first.part):
        here = first.part == fold
        values = [auroc(p.take(np.flatnonzero(~here))) or 0.0 for p in every]
        score[here] = every[int(np.argmax(values))].score[here]
    return replace(first, score=score)


def _folds(audience: Audience, rows: Any, score: Any, fold: Any) -> Predictions:
    assert rows.label is not None
    return Predictions(
        score=score,
        target=rows.label,
        patient=rows.patient,
        part=fold,
        groups=rows.groups,
        classes=audience.classes,
        kind=audience.kind,
        split="train",
    )


def reference_values(
    bench: Bench, models: Sequence[Model], repeats: Sequence[int], objective: Objective
) -> dict[str, float]:
    """The utility floor's reference: the best baseline's mean over seeds on ``search``.

    Returns:
        Metric -> value, for every metric that the objective names (plain AUROC always).
    """
    names = {"auroc", objective.rung, objective.primary, *objective.references}
    values: dict[str, float] = {}
    for name in sorted(names & set(METRICS)):
        means = []
        for model in models:
            found = [
                METRICS[name](
                    _on_search(bench, bench.trained[(model.candidate.fingerprint, r)], r)
                )
                for r in repeats
            ]
            if all(v is not None for v in found):
                means.append(float(np.mean([v for v in found if v is not None])))
        if means:
            best = max if METRICS[name].direction == "maximize" else min
            values[name] = float(f"{best(means):.6g}")
    return values


def _on_search(bench: Bench, outcome: Outcome, repeat: int) -> Evaluation:
    assert outcome.cost is not None
    return bench.audience.evaluation(
        bench.audience.predictions(outcome, "search", repeat), outcome.cost, outcome=outcome
    )


def evaluations(
    study: Study, audience: Audience, reference: dict[str, float]
) -> list[tuple[Entry, Evaluation]]:
    """Every fully trained trial with its evaluation on ``search``."""
    found = []
    for entry in study.entries:
        if entry.state == "complete" and entry.last is not None:
            outcome = entry.trained
            assert outcome.cost is not None
            predictions = audience.predictions(outcome, "search", 0)
            found.append(
                (entry, audience.evaluation(predictions, outcome.cost, reference, outcome))
            )
    return found


def finalists(
    pool: Sequence[tuple[Entry, Evaluation]], objective: Objective, count: int
) -> tuple[list[Entry], list[Entry], bool]:
    """The rule's pick, then its pick without the first, and so on.

    Returns:
        The finalists (the first is what search alone would have chosen), the whole front, and
        whether any trial met the constraints.
    """
    left = list(pool)
    front = objective.front([e for _, e in left])
    whole = [left[i][0] for i in front]
    chosen: list[Entry] = []
    while left and len(chosen) < count:
        best = objective.front([e for _, e in left])
        if front.feasible and not best.feasible:
            break  # whoever is left misses a constraint
        indices = list(best)
        pick = indices[objective.choose([left[i][1] for i in indices])]
        chosen.append(left.pop(pick)[0])
    return chosen, whole, front.feasible


def ranking_metric(objective: Objective, audience: Audience, sample: Predictions) -> str:
    """The metric that ranks on ``confirm``: the primary one, or AUROC where it is undefined."""
    evaluation = audience.evaluation(sample, Cost(0, 0))
    value = METRICS[objective.primary](evaluation)
    return "auroc" if value is None else objective.primary


def repeats_of(scored: Scored, name: str, repeats: Sequence[int]) -> list[Predictions]:
    """Predictions of one model, repeat by repeat."""
    return [scored[(name, r)] for r in repeats]


def mean_value(audience: Audience, metric: str, predictions: Sequence[Predictions]) -> float:
    """Mean of a metric over repeats; -inf where undefined."""
    values = [METRICS[metric](audience.evaluation(p, Cost(0, 0))) for p in predictions]
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if len(known) == len(values) and known else -np.inf


def compare(
    audience: Audience,
    metric: str,
    a: Sequence[Predictions],
    b: Sequence[Predictions],
    alpha: float = 0.05,
) -> Interval | None:
    """Paired interval of a minus b over the same patients (means over repeats)."""
    labels = audience.labels
    return paired(list(a), list(b), metric, alpha=alpha, counted=audience.counted, labels=labels)


def choose_winner(
    models: Sequence[Model],
    costs: Mapping[str, Cost],
    scored: Scored,
    repeats: Sequence[int],
    metric: str,
    audience: Audience,
) -> Model:
    """Among finalists within one paired standard error of the best, the smallest.

    Args:
        models: the finalists; the first is search's own pick.
        costs: model name -> cost.
        scored: (name, repeat) -> predictions on ``confirm``.
        repeats: the fresh seeds.
        metric: what ranks.
        audience: groups that count.
    """
    by_name = {m.name: repeats_of(scored, m.name, repeats) for m in models}
    values = {name: mean_value(audience, metric, p) for name, p in by_name.items()}
    best = max(models, key=lambda m: values[m.name])
    near = [best]
    for model in models:
        if model is best:
            continue
        gap = compare(audience, metric, by_name[best.name], by_name[model.name])
        if gap is not None and gap.value <= gap.se:
            near.append(model)
    return min(near, key=lambda m: (costs[m.name].trainable_params, -values[m.name]))


def strongest(
    models: Sequence[Model],
    scored: Scored,
    repeats: Sequence[int],
    metric: str,
    audience: Audience,
) -> Model:
    """The baseline with the best mean on ``confirm``: the winner's opponent on ``test``."""
    return max(
        models,
        key=lambda m: mean_value(audience, metric, repeats_of(scored, m.name, repeats)),
    )
