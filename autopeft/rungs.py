"""Trains candidates rung by rung from a loop of your own, e.g. in a Ray Tune trainable.

``autopeft search`` does more with a rung: it shares warm workers, never trains an equal candidate
twice, retries, resumes, confirms on other patients and opens test once. None of that happens here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autopeft import settings as settings_file
from autopeft.bench import Audience
from autopeft.candidate import Candidate
from autopeft.errors import RunError, UserError, nearest
from autopeft.job import Job, Outcome, Setup
from autopeft.methods import canonical
from autopeft.methods.own import receive
from autopeft.metrics import METRICS
from autopeft.prepare import make_audience, make_setup, prepare
from autopeft.progress import Screen
from autopeft.runners import guarded

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts


@dataclass(frozen=True)
class Rungs:
    """A task, a backbone and a schedule, ready to train on: plain data that may be sent anywhere.

    It holds the patients of ``train`` and ``search`` and no others.

    Attributes:
        setup: all that affects a training's values.
        facts: the backbone.
        audience: turns scores into metrics.
    """

    setup: Setup
    facts: Facts
    audience: Audience

    @property
    def epochs(self) -> int:
        """Length of the full schedule: where the last rung ends."""
        return self.setup.epochs

    def candidate(self, raw: Mapping[str, Any]) -> Candidate:
        """The candidate that a mapping means, e.g. ``{"method": "lora", "r": 4, "lr": 1e-3}``.

        Raises:
            UserError: unknown method, option, module, block or value.
        """
        receive(self.setup.plugins)  # this may be another process than the one that opened it
        return canonical(raw, self.facts)

    def run(
        self, candidate: Candidate, stop: int, after: Outcome | None = None, repeat: int = 0
    ) -> Outcome:
        """Trains a candidate up to epoch ``stop`` and scores the search patients.

        Cutting a training into rungs changes no bit of it.

        Args:
            candidate: made by ``candidate``.
            stop: epochs trained at the end, up to ``epochs``.
            after: what its previous rung gave; None starts afresh.
            repeat: number of an independent training of the same candidate.

        Returns:
            The outcome; ``status`` says whether it went well.
        """
        from autopeft import trial  # torch

        start, state = (after.epoch, after.state) if after else (0, None)
        if not start < stop <= self.epochs:
            raise UserError(
                f"epoch {stop} is not possible after {start}", "stop", f"Up to {self.epochs}."
            )
        job = Job("rung", self.audience.setup, candidate, repeat, "all", start, stop, state)
        return guarded(trial.run, self.setup, job)

    def measure(self, outcome: Outcome, *metrics: str) -> dict[str, float]:
        """Metrics of a rung on the search patients, NaN where one is undefined.

        Args:
            outcome: what ``run`` gave.
            *metrics: names in ``autopeft.metrics.METRICS``.

        Raises:
            RunError: the rung failed.
            UserError: no such metric.
        """
        if outcome.status != "ok" or outcome.cost is None:
            raise RunError(f"the rung failed ({outcome.status}): {outcome.reason}")
        for name in metrics:
            if name not in METRICS:
                raise UserError(f"there is no metric {name!r}", "measure", nearest(name, METRICS))
        predictions = self.audience.predictions(outcome, "search", 0)
        evaluation = self.audience.evaluation(predictions, outcome.cost, outcome=outcome)
        values = {name: METRICS[name](evaluation) for name in metrics}
        return {name: float("nan") if v is None else float(v) for name, v in values.items()}


def open_rungs(dataset: str = "phantom", **options: Any) -> Rungs:
    """Opens and checks task, backbone and images as ``search`` does, to train in your own loop.

    Args:
        dataset: a data set's name or a CSV file.
        **options: fields of ``Settings``. A space matters only for its ``methods_from``.

    Raises:
        UserError: bad input, or the name of a run of ``autopeft search``.
    """
    values = settings_file.complete({"dataset": dataset, **options})
    settings = settings_file.from_mapping(values, "autopeft.open_rungs")
    if settings.inner == "cv5":
        raise UserError(
            "rungs of your own loop are measured on search patients",
            "inner=cv5",
            "Leave it out.",
        )
    if not settings.name:
        settings = replace(settings, name=f"rungs-{settings.digest()}")
    settings = replace(settings, inner="holdout")
    if (settings.run_dir / "settings.yaml").exists():
        raise UserError("is a run of autopeft search", str(settings.run_dir), "Take another name.")
    ready = prepare(settings, Screen(settings.quiet))
    setup = make_setup(settings, ready)
    audience = make_audience(settings, ready, setup.digest())
    return Rungs(setup, ready.network.facts, replace(audience, rows=dict(setup.rows)))
