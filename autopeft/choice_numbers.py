"""What ``result.json`` says of the choice: the front, who was confirmed, how sure, how lucky."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopeft.answer import Answer
from autopeft.candidate import Candidate
from autopeft.confirmation import shares
from autopeft.evaluation import Predictions
from autopeft.metrics.folds import fold_interval
from autopeft.metrics.intervals import bootstrap
from autopeft.objective import Objective
from autopeft.replay import Replay
from autopeft.selection import mean_value, repeats_of

_SHOWN = 10  # of the trials that replays picked


def choice_numbers(answer: Answer) -> dict[str, Any]:
    """``front``, ``finalists``, ``feasible``, ``replay`` and ``optimism``."""
    replay = answer.entrants.replay
    own = answer.picked.candidate
    told = {} if replay is None else replay_numbers(replay, answer.pool, answer.objective, own)
    return {
        "front": _front(answer),
        "finalists": _finalists(answer),
        "feasible": answer.feasible,
        "ranked_by_replay": answer.won.ranked_by_replay,
        "replay": told,
        "optimism": _optimism(answer),
    }


def replay_numbers(
    replay: Replay, pool: Sequence[tuple[Any, Any]], objective: Objective, own: Candidate
) -> dict[str, Any]:
    """A replay as plain data, and how often it picked what ``own`` is.

    Args:
        replay: of the pool.
        pool: the fully trained trials, each with its evaluation.
        objective: whose rule was replayed.
        own: the candidate whose frequency is told: the winner.

    Returns:
        ``resamples``, ``patients``, ``candidates`` (fully trained ones; the others take no
        part), ``metric`` (the primary one), ``corrected`` (metric -> naive, value, low, high,
        optimism, dropped), ``feasible`` (share of the replays), ``pick`` (the rule's pick on all
        patients), ``picks`` (the most frequent), ``families`` (method -> share), ``first_block``
        (share by the first block that is changed; the number of blocks that the head reads where
        none is), ``own`` (see below) and ``notes``.
    """
    entries = [entry for entry, _ in pool]
    share = shares(replay, pool)
    families: dict[str, float] = {}
    depths: dict[int, float] = {}
    for entry, part in zip(entries, replay.share, strict=True):
        if part > 0:
            method, first = entry.candidate.method, first_block(entry.candidate)
            families[method] = families.get(method, 0.0) + part
            depths[first] = depths.get(first, 0.0) + part
    often = sorted(
        (i for i, s in enumerate(replay.share) if s > 0), key=lambda i: -replay.share[i]
    )
    plain = replay.to_dict()
    return {
        "resamples": replay.resamples,
        "patients": replay.patients,
        "candidates": len(pool),
        "metric": objective.primary,
        "corrected": plain["corrected"],
        "feasible": replay.feasible,
        "pick": _told(entries[replay.pick], replay.share[replay.pick]),
        "picks": [_told(entries[i], replay.share[i]) for i in often[:_SHOWN]],
        "families": dict(sorted(families.items(), key=lambda f: -f[1])),
        "first_block": {str(k): depths[k] for k in sorted(depths)},
        "own": {
            # None: it was no trial of the search, e.g. the linear probe.
            "share": share.get(own.fingerprint),
            "family": own.method,
            "family_share": families.get(own.method, 0.0),
            "first_block": first_block(own),
            "at_least_share": sum(s for k, s in depths.items() if k >= first_block(own)),
        },
        "notes": list(replay.notes),
    }


def first_block(candidate: Candidate) -> int:
    """The lowest block that is changed; a probe changes none below its readout."""
    firsts = [stratum.blocks[0] for stratum in candidate.strata]
    return min(firsts, default=candidate.readout.block)


def _told(entry: Any, share: float) -> dict[str, Any]:
    return {
        "number": entry.number,
        "title": entry.candidate.title,
        "fingerprint": entry.candidate.fingerprint,
        "share": share,
    }


def _front(answer: Answer) -> list[dict[str, Any]]:
    names = [t.name for t in answer.objective.terms]
    return [
        {
            "number": entry.number,
            "title": entry.candidate.title,
            "config": entry.candidate.to_dict(),
            "values": dict(zip(names, answer.objective.values(evaluation), strict=True)),
        }
        for entry, evaluation in answer.pool
        if entry.number in answer.entrants.front
    ]


def _finalists(answer: Answer) -> list[dict[str, Any]]:
    """Who was confirmed: the mean over fresh seeds on ``confirm``; the first is search's pick."""
    share = shares(answer.entrants.replay, answer.pool)
    found = []
    for model in answer.entrants.models:
        repeats = fresh(answer, model.name)
        found.append(
            {
                "title": model.candidate.title,
                "config": model.candidate.to_dict(),
                "fingerprint": model.candidate.fingerprint,
                "confirm": _means(answer, repeats_of(answer.confirm, model.name, repeats)),
                "repeats": len(repeats),
                "share": share.get(model.candidate.fingerprint),
                "winner": model.name == answer.picked.name,
            }
        )
    return found


def fresh(answer: Answer, name: str) -> list[int]:
    """The fresh seeds that a model has on ``confirm``: those of the screen, or all."""
    return sorted(r for n, r in answer.confirm if n == name and r > 0)


def _means(answer: Answer, repeats: Sequence[Predictions]) -> dict[str, float]:
    """AUROC and the ranking metric, mean over repeats, where defined."""
    names = dict.fromkeys(("auroc", answer.metric))
    found = {name: mean_value(answer.audience, name, repeats) for name in names}
    return {name: value for name, value in found.items() if value > float("-inf")}


def _optimism(answer: Answer) -> dict[str, Any]:
    """How much too high search's own pick looked on search: its value there minus on confirm.

    In AUROC where the worst group ranks: the lowest of several groups is the lower the fewer
    patients it is measured on, and confirm has fewer, so that its difference would be told as luck
    where nobody chose anything. ``replay`` holds what replays on the search patients make of it.
    """
    first = answer.entrants.models[0]
    metric = "auroc" if answer.metric == "worst_group_auroc" else answer.metric
    search = next(e.search for entry, e in answer.pool if entry.candidate == first.candidate)
    confirm = repeats_of(answer.confirm, first.name, fresh(answer, first.name))
    labels, counted = answer.audience.labels, answer.audience.counted
    over = fold_interval if answer.audience.folds else bootstrap
    a = over(search, metric, counted=counted, labels=labels)
    b = bootstrap(confirm, metric, counted=counted, labels=labels)
    found: dict[str, Any] = {
        "metric": metric,
        "looks": sum(len(e.rungs) for e in answer.bench.study.entries),
        "candidates": len(answer.bench.study.entries),
        "asked": answer.settings.trials,
    }
    if a is not None and b is not None:
        half = 1.96 * (a.se**2 + b.se**2) ** 0.5
        value = a.value - b.value
        found |= {"value": value, "low": value - half, "high": value + half}
    replay = answer.entrants.replay
    if replay is not None and answer.metric in replay.corrected:
        found["replay"] = replay.corrected[answer.metric].optimism
    return found
