"""Who wins: finalists with fresh seeds on patients whom the search has never seen.

Replays of the choice name the finalists, a few seeds screen them, and the last two get as many as
the baselines have (PROTOCOL 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.baselines import REFERENCE
from autopeft.bench import Bench, Model
from autopeft.clock import Clock
from autopeft.evaluation import Cost, Evaluation
from autopeft.metrics import METRICS
from autopeft.objective import Objective
from autopeft.progress import Screen
from autopeft.replay import Replay
from autopeft.selection import (
    Scored,
    by_replay,
    choose_winner,
    finalists,
    last_two,
    ranking_metric,
    reference_evaluations,
    replayed,
    strongest,
)
from autopeft.settings import Settings
from autopeft.study import Entry

Pool = Sequence[tuple[Entry, Evaluation]]


@dataclass(frozen=True)
class Entrants:
    """Who is confirmed, and why.

    Attributes:
        models: the finalists, and always the linear probe; the first is search's own pick.
        front: numbers of the trials on the front.
        feasible: whether any trial met the constraints.
        replay: the choice repeated on resampled patients.
    """

    models: list[Model]
    front: tuple[int, ...]
    feasible: bool
    replay: Replay | None


@dataclass(frozen=True)
class Confirmed:
    """What ``confirm`` patients said.

    Attributes:
        picked: the winner.
        opponent: the strongest baseline.
        metric: what ranked.
        scored: (name, repeat) -> predictions on ``confirm``.
        ranked_by_replay: ``confirm`` could not rank the finalists; replays on search did.
    """

    picked: Model
    opponent: Model
    metric: str
    scored: Scored
    ranked_by_replay: bool


def choose_entrants(
    settings: Settings, objective: Objective, bench: Bench, models: Sequence[Model], pool: Pool
) -> Entrants:
    """The finalists and the linear probe at its best readout; nobody where no trial is done.

    A search that cannot beat the probe must be able to answer "the probe".

    Args:
        settings: of the run.
        objective: of the run.
        bench: on which the reference baselines are trained.
        models: the baselines.
        pool: the fully trained trials.
    """
    repeats = range(1, settings.final_seeds + 1)
    references = [m for m in models if m.name in REFERENCE]
    floor = [[e.search for e in own] for own in reference_evaluations(bench, references, repeats)]
    found = replayed(bench.study, pool, objective, floor, settings.seed)
    share = found.share if found else ()
    chosen, front, feasible = finalists(pool, objective, settings.confirm, share)
    probe = next(m.candidate for m in models if m.name == "linear_probe")
    every = [entry.candidate for entry in chosen]
    if every and probe not in every:
        every.append(probe)
    named = [Model(f"finalist_{i}", candidate) for i, candidate in enumerate(every)]
    return Entrants(named, tuple(entry.number for entry in front), feasible, found)


def confirm(
    settings: Settings,
    objective: Objective,
    bench: Bench,
    entrants: Entrants,
    models: Sequence[Model],
    pool: Pool,
    screen: Screen,
    clock: Clock,
) -> Confirmed:
    """Trains finalists and baselines with fresh seeds and lets ``confirm`` patients choose.

    Args:
        settings: of the run.
        objective: of the run.
        bench: trains and scores.
        entrants: who is confirmed.
        models: the baselines.
        pool: the fully trained trials.
        screen: for bars.
        clock: counts the seconds.
    """
    few, all_seeds = range(1, settings.screen_seeds + 1), range(1, settings.final_seeds + 1)
    audience, named = bench.audience, entrants.models
    with clock.part("confirm"):
        with screen.bar("confirming finalists") as bar:
            bench.train(named, [0, *few], "confirm", bar)
        with screen.bar("training baselines") as bar:
            bench.train(models, [0, *all_seeds], "baseline", bar)
        with screen.bar("scoring confirm patients") as bar:
            scored = bench.predict(named, [0, *few], "confirm", bar)
            scored |= bench.predict(models, [0, *all_seeds], "confirm", bar)
    sample = scored[(models[0].name, 1)]
    metric = ranking_metric(objective, audience, sample)
    lost = METRICS[objective.primary](audience.evaluation(sample, Cost(0, 0))) is None
    costs = {
        m.name: c
        for m in [*named, *models]
        if (c := bench.trained[(m.candidate.fingerprint, 0)].cost) is not None
    }
    last = (
        by_replay(named, shares(entrants.replay, pool))[:1]
        if lost
        else last_two(named, costs, scored, few, metric, audience)
    )
    with clock.part("confirm"), screen.bar("more seeds for the last two") as bar:
        bench.train(last, all_seeds, "confirm", bar)
        scored |= bench.predict(last, all_seeds, "confirm", bar)
    picked = choose_winner(last, costs, scored, all_seeds, metric, audience)
    opponent = strongest(models, scored, all_seeds, metric, audience)
    return Confirmed(picked, opponent, metric, scored, lost)


def shares(replay: Replay | None, pool: Pool) -> dict[str, float]:
    """Fingerprint -> how often replays picked it."""
    if replay is None:
        return {}
    return {e.candidate.fingerprint: s for (e, _), s in zip(pool, replay.share, strict=True)}
