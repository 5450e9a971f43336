"""From the front to the answer: reference, finalists, the winner on confirm, the contrast.

The search ranks on ``search`` patients; whoever wins there is partly lucky. So a few finalists are
trained again with fresh seeds and the winner is chosen on ``confirm`` patients (PROTOCOL 1, 2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autopeft.backbones.facts import Facts
from autopeft.bench import Audience, Bench, Model
from autopeft.candidate import Pool, Readout
from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.job import Job
from autopeft.metrics import METRICS
from autopeft.metrics.classification import auroc
from autopeft.metrics.folds import fold_interval
from autopeft.metrics.intervals import Interval, paired
from autopeft.objective import Objective
from autopeft.progress import Bar
from autopeft.replay import Floor, Replay, replay
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
        strengths: (block, pool) -> that strength.
        interval: of the AUROC that a probe has whose readout and strength are chosen without the
            patients that it is scored on: for each fold the best on the other folds. None = it is
            undefined, or there are too few patients for one.
    """

    block: int
    pool: Pool
    strength: float
    table: Mapping[str, float]
    strengths: Mapping[str, float]
    interval: Interval | None = None

    def strength_at(self, at: Readout) -> float:
        """The L2 strength of a probe there; below all that were tried the lowest one's."""
        tried = [int(p.split("|")[0]) for p in self.strengths if p.endswith(f"|{at.pool}")]
        return self.strengths[f"{max(at.block, min(tried))}|{at.pool}"]

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
    strengths: dict[str, float] = {}
    for (block, pool, strength), value in values.items():
        place = f"{block}|{pool}"
        if place not in table or value > table[place]:
            table[place], strengths[place] = value, strength
    best = max(values, key=values.__getitem__)
    interval = fold_interval(_chosen_elsewhere(list(scored.values())))
    told = interval if interval and interval.enough else None
    return ReadoutChoice(*best, table, strengths, told)


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

    With folds these stand for the seeds: the best baseline's value on all of them.

    Returns:
        Metric -> value, for every metric that the objective names (plain AUROC always).
    """
    names = {"auroc", objective.rung, objective.primary, *objective.references}
    values: dict[str, float] = {}
    every = reference_evaluations(bench, models, repeats)
    for name in sorted(names & set(METRICS)):
        means = []
        for own in every:
            found = [METRICS[name](evaluation) for evaluation in own]
            if all(v is not None for v in found):
                means.append(float(np.mean([v for v in found if v is not None])))
        if means:
            best = max if METRICS[name].direction == "maximize" else min
            values[name] = float(f"{best(means):.6g}")
    return values


def reference_evaluations(
    bench: Bench, models: Sequence[Model], repeats: Sequence[int]
) -> list[list[Evaluation]]:
    """Each reference baseline's repeats on ``search``, or its one of all folds."""
    trial, names = bench.audience.trial, [model.candidate.fingerprint for model in models]
    if bench.audience.folds:
        return [[trial(bench.folds[name])] for name in names]
    return [[trial([bench.trained[(name, r)]], repeat=r) for r in repeats] for name in names]


def evaluations(
    study: Study, audience: Audience, reference: dict[str, float]
) -> list[tuple[Entry, Evaluation]]:
    """Every fully trained trial with its evaluation on ``search``, or on all folds."""
    return [
        (entry, audience.trial(entry.outcomes, reference))
        for entry in study.entries
        if entry.state == "complete" and entry.last is not None
    ]


def replayed(
    study: Study,
    pool: Sequence[tuple[Entry, Evaluation]],
    objective: Objective,
    floor: Floor,
    seed: int,
) -> Replay | None:
    """The choice repeated on resampled search patients, once for each set of trials.

    What came out is a fact of the journal: a driver that was killed behind it reads it again, so
    that the finalists which it began to train stay the finalists.

    Args:
        study: the journal.
        pool: the fully trained trials.
        objective: of the run.
        floor: see `autopeft.replay.replay`.
        seed: of the resamples.
    """
    trials = "\0".join(entry.candidate.fingerprint for entry, _ in pool)
    name = f"replay/{hashlib.sha256(trials.encode()).hexdigest()[:16]}"
    known = study.fact(name)
    if known is None:
        found = replay([e for _, e in pool], objective, floor, seed=seed)
        known = study.fix(name, found.to_dict()) if found is not None else None
    return None if known is None else Replay.from_dict(known)


def finalists(
    pool: Sequence[tuple[Entry, Evaluation]],
    objective: Objective,
    count: int,
    share: Sequence[float] = (),
) -> tuple[list[Entry], list[Entry], bool]:
    """The rule's pick, then whom replays picked most often; ties go to the older trial.

    Where replays picked fewer, the rule's pick without those that are finalists follows, and so
    on. Who misses a constraint is no finalist where somebody keeps them all.

    Args:
        pool: the fully trained trials.
        objective: of the run.
        count: how many at most.
        share: of each trial, how often a replay picked it; empty = the rule alone decides.

    Returns:
        The finalists (the first is what search alone would have chosen), the whole front, and
        whether any trial met the constraints.
    """
    every = [evaluation for _, evaluation in pool]
    front = objective.front(every)
    allowed = [i for i, e in enumerate(every) if not front.feasible or _kept(objective, e)]
    picks: list[int] = []

    def next_pick() -> int | None:
        left = [i for i in allowed if i not in picks]
        best = [left[i] for i in objective.front([every[i] for i in left])]
        return best[objective.choose([every[i] for i in best])] if best else None

    often = sorted((i for i in allowed if share and share[i] > 0), key=lambda i: -share[i])
    while len(picks) < count:
        waiting = [i for i in often if i not in picks] if picks else []
        pick = waiting[0] if waiting else next_pick()
        if pick is None:
            break
        picks.append(pick)
    return [pool[i][0] for i in picks], [pool[i][0] for i in front], front.feasible


def _kept(objective: Objective, evaluation: Evaluation) -> bool:
    """Whether every constraint is met."""
    return all(value <= 0 for value in objective.violations(evaluation).values())


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


def last_two(
    models: Sequence[Model],
    costs: Mapping[str, Cost],
    scored: Scored,
    repeats: Sequence[int],
    metric: str,
    audience: Audience,
) -> list[Model]:
    """Who gets more seeds: the best, and whom the rule would take instead, else the second best.

    The arguments are those of `choose_winner`, after the screen.
    """
    ranked = sorted(
        models,
        key=lambda m: mean_value(audience, metric, repeats_of(scored, m.name, repeats)),
        reverse=True,
    )
    winner = choose_winner(models, costs, scored, repeats, metric, audience)
    return [ranked[0], winner] if winner is not ranked[0] else ranked[:2]


def by_replay(models: Sequence[Model], share: Mapping[str, float]) -> list[Model]:
    """Finalists by how often replays picked them; for when ``confirm`` cannot rank them.

    Args:
        models: the finalists; ties keep their order, which begins with the rule's pick.
        share: fingerprint -> share of the replays.
    """
    return sorted(models, key=lambda m: -share.get(m.candidate.fingerprint, 0.0))


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
