"""The outer loop's decisions: which job next, and what an outcome means for its trial.

Two calls drive it, ``next_job`` and ``record``; who executes the jobs, and when, is the caller's.
All that it knows comes from the study, except which jobs are out; those of a killed driver are
simply given out again, from the last rung that was recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from autopeft.candidate import Candidate
from autopeft.evaluation import Evaluation
from autopeft.job import Job, Outcome
from autopeft.schedule import best_paused, next_promotion
from autopeft.study import Entry, Measured, Study

if TYPE_CHECKING:
    from autopeft.sampler import Proposal


class Judge(Protocol):
    """The part of an ``Objective`` that the engine calls."""

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
        stops: epochs of the rungs (``schedule.rungs``).
        trials: how many candidates to ask for, those of earlier starts included.
        setup: digest of the setup, for the jobs.
        batch_size: images a step; halved for a retry after out-of-memory.
        eta: one in ``eta`` trials is promoted.
        unpaused: candidates whose state is too large to keep: trained in one stretch.
    """

    def __init__(
        self,
        study: Study,
        propose: Callable[[], Proposal | None],
        objective: Judge,
        stops: tuple[int, ...],
        trials: int,
        setup: str,
        batch_size: int = 32,
        eta: int = 3,
        unpaused: Callable[[Candidate], bool] = lambda candidate: False,
    ) -> None:
        self.study, self.objective, self.stops = study, objective, stops
        self.trials, self.exhausted = trials, False
        self._propose, self._setup, self._eta = propose, setup, eta
        self._batch_size, self._unpaused = batch_size, unpaused
        self._stopping = False
        self._running: dict[str, int] = {}  # fingerprint -> trial number
        for entry in study.entries:
            self._settle(entry)

    @property
    def running(self) -> int:
        """Jobs that are out."""
        return len(self._running)

    def stop(self) -> None:
        """From now on only what a front needs is started: the budget is spent."""
        self._stopping = True

    def next_job(self) -> Job | None:
        """The job to start now: unfinished business, a promotion, or a new candidate.

        Returns:
            None where nothing can start now. With no job out, the search is then over.
        """
        entry = self._next_entry()
        if entry is None:
            return None
        self._running[entry.candidate.fingerprint] = entry.number
        stop = self._stop_of(entry)
        state = entry.last.outcome.state if entry.last else None
        return Job(
            kind="rung",
            setup=self._setup,
            candidate=entry.candidate,
            start=entry.epoch,
            stop=stop,
            state=state,
            micro_batch=self._micro_batch(entry, stop),
        )

    def record(
        self, job: Job, outcome: Outcome, evaluate: Callable[[Outcome], tuple[float, Evaluation]]
    ) -> Entry:
        """Records what came back from a job, and tells its trial when that ends it.

        Args:
            job: what ``next_job`` gave.
            outcome: what the worker answered.
            evaluate: rung metric and evaluation of an outcome that is ok.
        """
        assert job.candidate is not None
        number = self._running.pop(job.candidate.fingerprint)
        if outcome.status != "ok":
            return self._settle(self.study.record_attempt(number, job.stop, outcome))
        value, evaluation = evaluate(outcome)
        if value is None or not math.isfinite(value):
            reason = f"the rung metric is undefined ({value})"
            failure = Outcome("nan", reason, outcome.epoch, cost=outcome.cost)
            return self._settle(self.study.record_attempt(number, job.stop, failure))
        measured = Measured(
            outcome,
            float(value),
            tuple(self.objective.values(evaluation)),
            dict(self.objective.violations(evaluation)),
        )
        return self._settle(self.study.record_rung(number, measured))

    def finish(self) -> None:
        """Tells every trial that is still paused PRUNED: nothing stays RUNNING."""
        assert not self._running, "jobs are still out"
        for entry in self.study.entries:
            if entry.state == "running":
                self.study.prune(entry.number)

    def name(self, job: Job) -> str:
        """A job's name for people: trial number, method and rung, ``00012-lora-r8-e3``."""
        if job.candidate is None:
            return job.kind
        number = self._running.get(job.candidate.fingerprint)
        ranks = [f"r{s.options['r']}" for s in job.candidate.strata if "r" in s.options]
        head = [f"{number:05d}"] if number is not None else []
        return "-".join([*head, job.candidate.method, *ranks[:1], f"e{job.stop}"])

    # ---- which trial next ----------------------------------------------------------------------

    def _next_entry(self) -> Entry | None:
        out = set(self._running.values())
        idle = [e for e in self.study.entries if e.state == "running" and e.number not in out]
        if not self._stopping:
            for entry in idle:
                if not entry.rungs or self._stop_of(entry) in entry.attempts:
                    return entry  # never started, or to be tried again
            if (number := self._promotion(out)) is not None:
                return self.study.entry(number)
            if (new := self._new_entry()) is not None:
                return new
        return None if out else self._last_entry()

    def _last_entry(self) -> Entry | None:
        """With no job out and none to start: what a front still needs."""
        if not self._stopping:
            number = self._promotion(set(), at_least=1)
        elif any(entry.state == "complete" for entry in self.study.entries):
            number = None
        else:
            number = best_paused(self._results(), self._failed(), len(self.stops) - 1)
        return self.study.entry(number) if number is not None else None

    def _promotion(self, out: set[int], at_least: int = 0) -> int | None:
        return next_promotion(
            self._results(), out, self._failed(), len(self.stops) - 1, self._eta, at_least
        )

    def _new_entry(self) -> Entry | None:
        if self.exhausted or len(self.study.entries) >= self.trials:
            return None
        proposal = self._propose()
        if proposal is None:
            self.exhausted = True
            return None
        return self.study.add(
            proposal.candidate, proposal.params, proposal.distributions, proposal.system
        )

    def _results(self) -> dict[int, dict[int, float]]:
        """Rung values by rung index."""
        level = {stop: index for index, stop in enumerate(self.stops)}
        return {
            e.number: {level[epoch]: m.value for epoch, m in e.rungs.items()}
            for e in self.study.entries
            if e.rungs
        }

    def _failed(self) -> set[int]:
        return {e.number for e in self.study.entries if e.state in ("fail", "pruned")}

    def _stop_of(self, entry: Entry) -> int:
        if self._unpaused(entry.candidate):
            return self.stops[-1]
        return next(stop for stop in self.stops if stop > entry.epoch)

    # ---- what an outcome means -----------------------------------------------------------------

    def _micro_batch(self, entry: Entry, stop: int) -> int:
        """0 (the whole batch), halved once for a trial that ran out of memory on its way."""
        oom = any(o.status == "oom" for tries in entry.attempts.values() for o in tries)
        return max(1, self._batch_size // 2) if oom else 0

    def _settle(self, entry: Entry) -> Entry:
        """Tells a trial if what is recorded of it ends it. Safe to call again after a crash."""
        if entry.state != "running":
            return entry
        if entry.epoch == self.stops[-1] and entry.last is not None:
            if entry.last.flaw:
                return self.study.fail(entry.number, entry.last.flaw)
            return self.study.complete(entry.number)
        stop = self._stop_of(entry)
        if not entry.attempts.get(stop):
            return entry
        tries = entry.attempts[stop]
        last = tries[-1]
        # NaN would come again. Memory and a lost worker get one more chance each.
        again = last.status in ("oom", "error")
        if again and sum(o.status == last.status for o in tries) == 1:
            return entry
        return self.study.fail(entry.number, f"{last.status}: {last.reason}".rstrip(": "))
