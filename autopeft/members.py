"""Who was trained on? The null of a run, and at its end what needs trainings of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autopeft.bench import Audience, Bench, Model
from autopeft.candidate import Candidate
from autopeft.evaluation import Floats, Predictions
from autopeft.job import Job
from autopeft.metrics.generalization import Fitted, fitted_share
from autopeft.metrics.groups import patient_index
from autopeft.metrics.likelihood import judge, likelihood_ratio, rmia
from autopeft.metrics.memorization import Attack, patient_signal
from autopeft.parts import HALVES, PLANTED, halves, planted
from autopeft.progress import Bar


def with_null(bench: Bench, candidate: Candidate, bar: Bar) -> Audience:
    """The audience with the null's scores, which every evaluation then holds.

    Args:
        bench: of a run whose task has a probe split; its audience is replaced, too.
        candidate: whose readout the neighbors are looked for at: the linear probe's.
        bar: progress.
    """
    audience = bench.audience
    outcome = bench.ask(Job("null", audience.setup, candidate, split="null"), bar)
    train, probe = (audience.stored(outcome, name) for name in ("train", "probe"))
    bench.audience = replace(audience, null=(train, probe))
    return bench.audience


def recipe_attacks(bench: Bench, model: Model, seed: int, bar: Bar) -> list[Attack]:
    """Likelihood-ratio attack and RMIA on one recipe, trained eight times on half the patients.

    What they find holds for a training on n / 2. Trainings that are in the journal are not done
    again.

    Args:
        bench: of the run.
        model: the recipe.
        seed: of the setup; it says who is in which half.
        bar: progress over the trainings.

    Returns:
        Strongest first; without RMIA where there is no probe split; empty with too few patients.
    """
    parts = [f"half:{i}" for i in range(HALVES)]
    outcomes = bench.train_parts(model, parts, "memorization of", bar)
    rows, audience = bench.audience.rows, bench.audience
    train = [audience.table(audience.stored(o, "train"), rows["train"], "train") for o in outcomes]
    signal = np.stack([patient_signal(p, "confidence") for p in train])
    known = ~np.isnan(signal).any(axis=0)  # a patient without a label
    unit, count = patient_index(train[0])
    inside = np.zeros((HALVES, count), np.bool_)
    inside[:, unit] = halves(rows["train"], seed)
    inside = inside[:, known]
    found = [judge("likelihood ratio", likelihood_ratio(signal[:, known], inside), inside)]
    if "probe" in rows:
        other = [audience.of(audience.stored(o, "probe"), "probe", 0) for o in outcomes]
        population = _likelihood(other)
        population = population[:, ~np.isnan(population).any(axis=0)]
        score = rmia(_likelihood(train)[:, known], inside, population)
        found.append(judge("rmia", score, inside))
    return sorted((a for a in found if a is not None), key=lambda a: -a.value)


def planted_labels(bench: Bench, model: Model, seed: int, bar: Bar) -> Fitted | None:
    """How many of the wrong labels that were planted on purpose one recipe learns by heart.

    Args:
        bench: of a run with a probe split.
        model: the recipe, trained once more with one patient in ten labelled wrong.
        seed: of the setup; it says whose labels are wrong.
        bar: progress.

    Returns:
        The share that it repeats, beside the share of labels that were made wrong in the same way
        in patients that nobody trained on. None where no label was planted.
    """
    (outcome,) = bench.train_parts(model, [PLANTED], "planted labels of", bar)
    audience, rows = bench.audience, bench.audience.rows
    train, wrong = planted(rows["train"], seed)
    probe, wrong_too = planted(rows["probe"], seed)
    return fitted_share(
        audience.table(audience.stored(outcome, "train"), train, "train"), wrong,
        audience.table(audience.stored(outcome, "probe"), probe, "probe"), wrong_too,
    )  # fmt: skip


def _likelihood(every: list[Predictions]) -> Floats:
    """Probability that each model gives each patient's labels, [M, P]; over images the mean."""
    found: Floats = np.exp(np.stack([patient_signal(p, "loss") for p in every]))
    return found
