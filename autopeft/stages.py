"""Steps of a run that a rebuild takes too: baselines before the search, and all behind it.

What is in the journal is not done again. So a run goes through here to train, and ``rebuild`` goes
through here with a finished run's files to see what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopeft import baselines, protocol
from autopeft.ablation import ablations
from autopeft.answer import Answer
from autopeft.bench import Audience, Bench, Model
from autopeft.clock import Clock
from autopeft.confirmation import choose_entrants, confirm
from autopeft.errors import RunError
from autopeft.job import Outcome
from autopeft.members import planted_labels, recipe_attacks, with_null
from autopeft.metrics import METRICS
from autopeft.metrics.generalization import Fitted
from autopeft.metrics.memorization import Attack
from autopeft.objective import Objective
from autopeft.prepare import Ready
from autopeft.progress import Screen
from autopeft.selection import (
    ReadoutChoice,
    choose_readout,
    evaluations,
    reference_values,
)
from autopeft.settings import Settings


def first_baselines(
    settings: Settings, ready: Ready, bench: Bench, screen: Screen, clock: Clock
) -> tuple[ReadoutChoice, list[Model]]:
    """The probe's readout, the reference baselines and the frozen reference."""
    facts, objective = ready.network.facts, ready.objective
    with clock.part("prefix"), screen.bar("probing readouts") as bar:
        readout = choose_readout(bench, facts, bar)
    screen.say(readout.line)
    bench.study.fix("readout", [readout.block, readout.pool, readout.strength])
    wanted = baselines.names(settings.baselines, "groups" in objective.needs)
    models = baselines.make(wanted, facts, (readout.block, readout.pool), readout.strength)
    if "memorization" in objective.needs:
        with screen.bar("null of the memorization attacks") as bar:
            probe = next(m for m in models if m.name == "linear_probe")
            with_null(bench, probe.candidate, bar)
    first = [m for m in models if m.name in baselines.REFERENCE]
    repeats = range(1, settings.final_seeds + 1)
    with clock.part("baselines"), screen.bar("reference baselines") as bar:
        if ready.folds:  # they stand for the seeds
            bench.train_folds(first, "baseline", bar)
        else:
            bench.train(first, repeats, "baseline", bar)
    if bench.study.fact("reference") is None:
        found = reference_values(bench, first, repeats, objective)
        protocol.log(settings.run_dir, "reference", **found)
        bench.study.fix("reference", found)
    value = bench.study.fact("reference")["auroc"]
    who = "the patients of all folds" if ready.folds else "search patients"
    screen.say(f"baselines reach AUROC {value:.3f} on {who}")
    return readout, models


def conclude(
    settings: Settings,
    ready: Ready,
    bench: Bench,
    first: tuple[ReadoutChoice, list[Model]],
    told: tuple[str, str],
    clock: Clock,
    screen: Screen,
) -> Answer:
    """All behind the search but the look at test; ``rebuild`` calls it on what a run has stored.

    Args:
        settings: of the run.
        ready: task, objective, groups and the backbone's facts.
        bench: trains what is not in the journal.
        first: what ``first_baselines`` gave.
        told: the protocol's hash, and why the search was stopped.
        clock: counts the seconds.
        screen: for bars.

    Raises:
        RunError: no trial was trained to the end.
    """
    (readout, models), (declared, stopped), study = first, told, bench.study
    for entry in study.entries:
        if entry.state == "complete" and bench.is_there(entry.trained):
            bench.trained[(entry.candidate.fingerprint, 0)] = entry.trained
    reference = study.fact("reference")
    pool = evaluations(study, bench.audience, reference)
    with clock.part("replay"):
        entrants = choose_entrants(settings, ready.objective, bench, models, pool)
    if not entrants.models:
        reasons = sorted({e.reason for e in study.entries if e.state == "fail"})
        why = "; ".join(reasons[:3]) or stopped or "there was none"
        raise RunError(f"no trial was trained to the end ({why}); give it more time")
    won = confirm(settings, ready.objective, bench, entrants, models, pool, screen, clock)
    picked = won.picked
    with clock.part("confirm"), screen.bar("training the winner without its parts") as bar:
        strength = readout.strength_at(picked.candidate.readout)
        found = ablations(picked.candidate, ready.network.facts, strength)
        ablated = [Model(name, candidate) for name, candidate in found]
        bench.train(ablated, range(1, settings.final_seeds + 1), "ablation", bar)
    recipes, planted = _recipes(settings, bench, picked, models, screen)
    return Answer(
        settings, ready.task, ready.objective, ready.network, bench, won, entrants, models,
        ablated, readout, reference, pool, declared, clock, ready.decode_seconds,
        ready.counted.notes, recipes=recipes, planted=planted,
    )  # fmt: skip


def _recipes(
    settings: Settings, bench: Bench, picked: Model, models: Sequence[Model], screen: Screen
) -> tuple[dict[str, list[Attack]], dict[str, Fitted | None]]:
    """Attacks and planted labels, where the objective asks for memorization."""
    if bench.audience.null is None:
        return {}, {}
    asked = [Model("winner", picked.candidate)]
    asked += [m for m in models if m.name in ("lora_r8", "full")]
    with screen.bar("training on halves of the patients") as bar:
        attacks = {m.name: recipe_attacks(bench, m, settings.seed, bar) for m in asked}
    with screen.bar("training on planted labels") as bar:
        planted = {m.name: planted_labels(bench, m, settings.seed, bar) for m in asked}
    return attacks, planted


def rung_value(objective: Objective, audience: Audience) -> Any:
    """Rung metric of a training outside of the search, kept beside it in the journal.

    Of one fold that is of its own patients.
    """

    def value(outcome: Outcome) -> float | None:
        assert outcome.cost is not None
        evaluation = audience.evaluation(audience.judged(outcome), outcome.cost)
        value: float | None = METRICS[objective.rung](evaluation)
        return METRICS["auroc"](evaluation) if value is None and audience.folds else value

    return value
