"""The outer loop: which job next, and what an outcome means for its trial.

``Engine`` decides and ``drive`` keeps a runner busy with it. All that the engine knows comes from
the study, except which jobs are out; those of a killed driver are simply given out again, from
the last rung that was recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from autopeft.candidate import Candidate
from autopeft.evaluation import Evaluation
from autopeft.job import Job, Outcome
from autopeft.schedule import Key, Ladder, Promotion
from autopeft.study import Entry, Measured, Study

if TYPE_CHECKING:
    from autopeft.runners import Runner
    from autopeft.sampler import Proposal

# All outcomes of a trial so far -> its rung metric and its evaluation.
Evaluate = Callable[[Sequence[Outcome]], tuple[float | None, Evaluation]]


class Judge(Protocol):
    """The part of an ``Objective`` that the engine calls."""

    @property
    def promoting(self) -> Sequence[tuple[int, int]]:
        """Terms that promote, as (index, +1 or -1); fewer than two: the rung metric does."""

    def values(self, evaluation: Evaluation) -> tuple[float | None, ...]:
        """The terms."""

    def violations(self, evaluation: Evaluation) -> dict[str, float]:
        """The constraints; feasible when <= 0."""


class Engine:
    """Gives out jobs and records outcomes.

    Args:
        study: the journal.
        propose: a new candidate, or None where the space is exhausted (``Proposer.ask``).
        objective: gives values and violations of an evaluation.
        ladder: where trials pause and are compared.
        trials: how many candidates to ask for, those of earlier starts included.
        setup: digest of the setup, for the jobs.
        batch_size: images a forward pass; halved for a retry after out-of-memory.
        eta: one in ``eta`` trials is promoted.
        finalists: so many are trained to the end, however few trials there are: a choice needs
            something to choose among.
        unpaused: candidates whose state is too large to keep: trained in one stretch.
        kept: whether an outcome's files are still there; a trial without them begins again.
    """

    def __init__(
        self,
        study: Study,
        propose: Callable[[], Proposal | None],
        objective: Judge,
        ladder: Ladder,
        trials: int,
        setup: str,
        batch_size: int = 32,
        eta: int = 3,
        finalists: int = 1,
        unpaused: Callable[[Candidate], bool] = lambda candidate: False,
        kept: Callable[[Outcome], bool] = lambda outcome: True,
    ) -> None:
        self.study, self.objective, self.ladder = study, objective, ladder
        self.trials, self.exhausted = trials, False
        self._propose, self._setup, self._eta = propose, setup, eta
        self._finalists, self._closing = finalists, False
        self._batch_size, self._unpaused, self._kept = batch_size, unpaused, kept
        self._stopped = ""  # why nothing new is started any more
        self._out: dict[str, int] = {}  # fingerprint -> trial that a worker holds
        self._due: set[int] = set()  # trials that go on without a promotion
        self._promotion = Promotion(ladder.top, eta)
        for entry in study.entries:
            for resource in entry.rungs:
                self._place(entry, resource)
            self._settle(entry)

    @property
    def running(self) -> int:
        """Jobs that are out."""
        return len(self._out)

    @property
    def stopped(self) -> str:
        """Why nothing new is started any more; empty while the search goes on."""
        return self._stopped

    def stop(self, why: str) -> None:
        """From now on only what a front needs is started.

        Args:
            why: the reason that stopped trials carry, e.g. ``the budget is spent``.
        """
        self._stopped = self._stopped or why

    def next_job(self) -> Job | None:
        """The job to start now: unfinished business, a promotion, or a new candidate.

        Returns:
            None where nothing can start now. With no job out, the search is then over.
        """
        entry = self._next_entry()
        if entry is None:
            return None
        self._out[entry.candidate.fingerprint] = entry.number
        self._due.discard(entry.number)
        part, start, stop = self.ladder.stretch(entry.done, self._target(entry))
        state = entry.last.outcome.state if entry.last and start else None
        if entry.last and not self._kept(entry.last.outcome):
            start, state = 0, None  # the same values again: training is deterministic
        return Job(
            kind="rung",
            setup=self._setup,
            candidate=entry.candidate,
            part=part,
            start=start,
            stop=stop,
            state=state,
            micro_batch=self._micro_batch(entry),
        )

    def record(self, job: Job, outcome: Outcome, evaluate: Evaluate) -> Entry:
        """Records what came back from a job, and tells its trial when that ends it.

        Args:
            job: what ``next_job`` gave.
            outcome: what the worker answered.
            evaluate: rung metric and evaluation of all of a trial's outcomes, when this is ok.
        """
        assert job.candidate is not None
        entry = self.study.entry(self._out.pop(job.candidate.fingerprint))
        target = self._target(entry)
        if outcome.status != "ok":
            return self._settle(self.study.record_attempt(entry.number, target, outcome))
        value, evaluation = evaluate([*entry.outcomes, outcome])
        if value is None or not math.isfinite(value):
            reason = f"the rung metric is undefined ({value})"
            failure = Outcome("nan", reason, outcome.epoch, cost=outcome.cost)
            return self._settle(self.study.record_attempt(entry.number, target, failure))
        measured = Measured(
            outcome,
            float(value),
            tuple(self.objective.values(evaluation)),
            dict(self.objective.violations(evaluation)),
        )
        entry = self.study.record_rung(entry.number, target, measured)
        self._place(entry, target)
        return self._settle(entry)

    def finish(self) -> None:
        """Tells every trial that is still paused PRUNED: nothing stays RUNNING."""
        assert not self._out, "jobs are still out"
        for entry in self.study.entries:
            if entry.state == "running":
                unit = "fold" if self.ladder.folds else "epoch"
                unit += "s" if entry.done != 1 else ""
                why = self._stopped or f"not among the best 1/{self._eta} of its rung"
                self.study.prune(entry.number, f"stopped after {entry.done} {unit}: {why}")

    def name(self, job: Job) -> str:
        """A job's name for people: trial number, method and rung, ``00012-lora-r8-e3``."""
        if job.candidate is None:
            return job.kind
        number = self._out.get(job.candidate.fingerprint)
        ranks = [f"r{s.options['r']}" for s in job.candidate.strata if "r" in s.options]
        head = [f"{number:05d}"] if number is not None else []
        fold = job.part.replace("fold:", "") if job.part != "all" else "0"
        rung = f"fold{fold}" if self.ladder.folds else f"e{job.stop}"
        return "-".join([*head, job.candidate.method, *ranks[:1], rung])

    # ---- which trial next ----------------------------------------------------------------------

    def _next_entry(self) -> Entry | None:
        out = self._out.values()
        if not self._stopped:
            if self._due:
                return self.study.entry(min(self._due))
            if (number := self._promotion.next(out)) is not None:
                return self.study.entry(number)
            if (new := self._new_entry()) is not None:
                return new
        # Until nothing is out somebody may still arrive who ranks higher.
        self._closing = self._closing or not out
        return self._last_entry() if self._closing and not (self._stopped and out) else None

    def _last_entry(self) -> Entry | None:
        """With nothing new to start: what finalists, and a front, still need."""
        if not self._stopped:
            number = self._promotion.next(self._out.values(), at_least=self._finalists)
        elif any(entry.state == "complete" for entry in self.study.entries):
            number = None
        else:  # what is on its way, then what is paused nearest to the end
            begun = [n for n in self._due if self.study.entry(n).rungs]
            number = min(begun) if begun else self._promotion.nearest()
            if number is None and self._due:
                number = min(self._due)
        return self.study.entry(number) if number is not None else None

    def _new_entry(self) -> Entry | None:
        if self.exhausted or self.study.count >= self.trials:
            return None
        found = self._propose()
        if found is None:
            self.exhausted = True
            return None
        return self.study.add(
            found.candidate, found.params, found.distributions, found.system, found.learned
        )

    def _target(self, entry: Entry) -> int:
        if not self.ladder.folds and self._unpaused(entry.candidate):
            return self.ladder.stops[-1]
        return self.ladder.next(entry.done)

    # ---- what an outcome means -----------------------------------------------------------------

    def _micro_batch(self, entry: Entry) -> int:
        """0 (the whole batch), halved once for a trial that ran out of memory on its way."""
        oom = any(o.status == "oom" for tries in entry.attempts.values() for o in tries)
        return max(1, self._batch_size // 2) if oom else 0

    def _place(self, entry: Entry, resource: int) -> None:
        """Enters a trial into the rung that it reached, if it reached one."""
        rung = self.ladder.rung(resource)
        if rung is not None:
            self._promotion.reached(entry.number, rung, self._key(entry.rungs[resource]))

    def _key(self, measured: Measured) -> Key:
        terms = self.objective.promoting
        if len(terms) < 2:
            return (measured.value,)
        values = [(measured.values[index], sign) for index, sign in terms]
        return tuple(-math.inf if value is None else sign * value for value, sign in values)

    def _settle(self, entry: Entry) -> Entry:
        """Tells a trial if what is recorded of it ends it. Safe to call again after a crash."""
        entry = self._end(entry)
        if entry.state in ("fail", "pruned"):
            self._promotion.left(entry.number)
        between = entry.state == "running" and self.ladder.rung(entry.done) is None
        if between or (entry.state == "running" and self._target(entry) in entry.attempts):
            self._due.add(entry.number)
        return entry

    def _end(self, entry: Entry) -> Entry:
        if entry.state != "running":
            return entry
        if entry.done == self.ladder.stops[-1] and entry.last is not None:
            if entry.last.flaw:
                return self.study.fail(entry.number, entry.last.flaw)
            return self.study.complete(entry.number)
        tries = entry.attempts.get(self._target(entry))
        if not tries:
            return entry
        last = tries[-1]
        # NaN would come again. Memory and a lost worker get one more chance each.
        again = last.status in ("oom", "error")
        if again and sum(o.status == last.status for o in tries) == 1:
            return entry
        return self.study.fail(entry.number, f"{last.status}: {last.reason}".rstrip(": "))


def drive(
    engine: Engine,
    runner: Runner,
    evaluate: Evaluate,
    known: Callable[[Job], Outcome | None] = lambda job: None,
    moment: Callable[[], None] = lambda: None,
    tell: bool = True,
) -> None:
    """Keeps a runner busy until the search is over; nothing stays RUNNING then.

    Args:
        engine: what to do next.
        runner: who does it.
        evaluate: as ``Engine.record`` takes it.
        known: the outcome of a job that was done before (a baseline may be the very training).
        moment: called whenever something may have changed: budget, progress, gauges.
        tell: tell paused trials at the end; otherwise the caller does (``Engine.finish``), once
            it is sure that the search will never go on.
    """
    while True:
        moment()
        slots = runner.slots
        while engine.running < slots and (job := engine.next_job()) is not None:
            outcome = known(job)
            if outcome is None:
                runner.submit(job, engine.name(job))
            else:
                engine.record(job, outcome, evaluate)
        if slots and not engine.running:
            break
        for job, outcome in runner.wait():
            engine.record(job, outcome, evaluate)
    if tell:
        engine.finish()
