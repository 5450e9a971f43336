"""Trains and scores models outside of the search: baselines, confirmations, the one test.

Everything is recorded in the study's journal and nothing recorded is done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autopeft.candidate import Candidate
from autopeft.errors import RunError
from autopeft.evaluation import Cost, Evaluation, Floats, Kind, Predictions, concatenated
from autopeft.job import Job, Outcome, Rows, total_cost
from autopeft.metrics.classification import operating_points
from autopeft.parts import FOLD_PARTS, fold_of
from autopeft.progress import Bar
from autopeft.runners import Runner
from autopeft.study import Study


@dataclass(frozen=True)
class Model:
    """A candidate that is compared outside of the search.

    Attributes:
        name: ``winner``, ``lora_r8`` ... as in files and report.
        candidate: what is trained.
    """

    name: str
    candidate: Candidate


Both = tuple[Predictions, Predictions]  # of members, of non-members


@dataclass(frozen=True)
class Audience:
    """What the driver needs to turn scores into evaluations.

    Attributes:
        run_dir: folder of the run.
        classes: names of the labels.
        kind: the task's kind.
        rows: split -> rows with labels, for the splits that are open so far.
        counted: attribute -> groups that count.
        margin: the settings' margin.
        setup: digest of the workers' setup.
        epochs: length of a full training.
        labels: attribute -> labels that its groups are scored on.
        members: the train rows that memorization is measured on, where it is.
        null: scores of ``members`` and of the probe rows by something that has seen neither.
        folds: what each fold judges by, ``search`` first (`autopeft.parts.fold_rows`); empty
            under a holdout.
    """

    run_dir: Path
    classes: tuple[str, ...]
    kind: Kind
    rows: dict[str, Rows]
    counted: dict[str, tuple[str, ...]]
    margin: float
    setup: str
    epochs: int
    labels: dict[str, tuple[str, ...]] | None = None
    members: Rows | None = None
    null: tuple[Floats, Floats] | None = None
    folds: tuple[Rows, ...] = ()

    def predictions(self, outcome: Outcome, split: str, repeat: int) -> Predictions:
        """Stored scores with the split's targets, patients and groups."""
        return self.of(self.stored(outcome, "score"), split, repeat)

    def judged(self, outcome: Outcome, repeat: int = 0) -> Predictions:
        """A training's stored scores of what judges it: its fold, or ``search``."""
        rows = self.folds[fold_of(outcome.part)] if self.folds else self.rows["search"]
        return self.table(self.stored(outcome, "score"), rows, "search", repeat)

    def on_folds(self, score: Sequence[Floats]) -> Predictions:
        """Scores of the first folds' rows, each by a model of its own; one under a holdout."""
        rows = self.folds or (self.rows["search"],)
        return concatenated({k: self.table(s, rows[k], "search") for k, s in enumerate(score)})

    def everyone(self) -> Predictions:
        """Everyone whom the search measures on, with scores of 0: to be counted."""
        rows = self.folds or (self.rows["search"],)
        return self.on_folds([np.zeros((len(r), len(self.classes)), np.float32) for r in rows])

    def trial(
        self,
        outcomes: Sequence[Outcome],
        reference: Mapping[str, float] | None = None,
        repeat: int = 0,
    ) -> Evaluation:
        """What an objective sees of a trial: its last stretch, or all of its folds so far.

        Who was trained on is told of the training on all of ``train`` alone, the one that is kept.

        Args:
            outcomes: all that are ok, in their order.
            reference: metric -> the strongest baseline's value.
            repeat: which seed trained them.
        """
        cost = total_cost(outcomes)
        assert cost is not None
        if not self.folds:
            last = self.judged(outcomes[-1], repeat)
            return self.evaluation(last, cost, reference, outcomes[-1])
        assert [o.part for o in outcomes] == list(FOLD_PARTS[: len(outcomes)])
        found = self.on_folds([self.stored(o, "score") for o in outcomes])
        return self.evaluation(found, cost, reference, outcomes[0])

    def stored(self, outcome: Outcome, name: str) -> Floats:
        """One array of a job's predictions."""
        assert outcome.predictions is not None
        with np.load(self.run_dir / "predictions" / outcome.predictions) as stored:
            score: Floats = stored[name]
        return score

    def of(self, score: Floats, split: str, repeat: int) -> Predictions:
        """Scores [N, C] of a split as predictions."""
        return self.table(score, self.rows[split], split, repeat)

    def table(self, score: Floats, rows: Rows, split: str, repeat: int = 0) -> Predictions:
        """Scores [N, C] of any rows with labels as predictions."""
        assert rows.label is not None
        return Predictions(
            score=score.astype(np.float32),
            target=rows.label,
            patient=rows.patient,
            part=np.zeros(len(rows), np.int64),
            groups=rows.groups,
            classes=self.classes,
            kind=self.kind,
            split=split,
            repeat=repeat,
        )

    def both(self, train: Floats, probe: Floats, repeat: int = 0) -> Both | None:
        """Scores of ``members`` and probe as predictions; None where memorization is not asked."""
        if self.members is None:
            return None
        return self.table(train, self.members, "train", repeat), self.of(probe, "probe", repeat)

    def members_of(self, outcome: Outcome, repeat: int = 0) -> Both | None:
        """A training's stored scores of ``members`` and probe, where it stored them."""
        if self.members is None:
            return None
        train, probe = (self.stored(outcome, name) for name in ("train", "probe"))
        return self.both(train, probe, repeat)

    def evaluation(
        self,
        predictions: Predictions,
        cost: Cost,
        reference: Mapping[str, float] | None = None,
        outcome: Outcome | None = None,
    ) -> Evaluation:
        """What an objective sees; thresholds are fitted on these predictions' split.

        Args:
            predictions: of one split.
            cost: of the training.
            reference: metric -> the strongest baseline's value.
            outcome: of the training, for objectives that ask who was trained on.
        """
        seen = self.members_of(outcome, predictions.repeat) if outcome else None
        train, probe = seen or (None, None)
        return Evaluation(
            train=train,
            probe=probe,
            null=self.both(*self.null) if self.null else None,
            search=predictions,
            cost=cost,
            counted=self.counted,
            reference=reference or {},
            thresholds=operating_points(predictions),
            margin=self.margin,
            labels=self.labels,
        )


@dataclass
class Bench:
    """Runs trainings and predictions that are due, through the study's records.

    Attributes:
        audience: data of the driver.
        study: the journal.
        runner: who executes jobs.
        value: rung metric of a trained model, kept beside it in the journal.
        tick: called whenever an outcome came.
        batch_size: images a forward pass, halved after out-of-memory.
        trained: (fingerprint, repeat) -> the training on all of ``train``.
        folds: fingerprint -> the trainings of its folds, that one first.
    """

    audience: Audience
    study: Study
    runner: Runner
    value: Callable[[Outcome], float | None]
    tick: Callable[[], None] = lambda: None
    batch_size: int = 32
    trained: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    folds: dict[str, list[Outcome]] = field(default_factory=dict)

    def train(self, models: Sequence[Model], repeats: Iterable[int], role: str, bar: Bar) -> None:
        """Trains each model for each repeat from 0 to the last epoch.

        Raises:
            RunError: a training failed, with its reason.
        """
        pairs = [(m, r) for m in models for r in repeats]
        jobs = {
            (m.candidate.fingerprint, r): Job(
                "rung",
                self.audience.setup,
                m.candidate,
                r,
                stop=self.audience.epochs,
            )
            for m, r in pairs
            if (m.candidate.fingerprint, r) not in self.trained
        }
        names = {m.candidate.fingerprint: m.name for m in models}
        done = self._run(
            list(jobs.values()), bar, lambda job: f"{role} {names[job.key[0]]}".strip()
        )
        for key, job in jobs.items():
            self.trained[key] = done[job.name]

    def train_parts(
        self, model: Model, parts: Sequence[str], role: str, bar: Bar
    ) -> list[Outcome]:
        """Trains one model from the start on each part of the patients, e.g. ``half:0``.

        Raises:
            RunError: a training failed, with its reason.
        """
        digest, last = self.audience.setup, self.audience.epochs
        jobs = [Job("rung", digest, model.candidate, part=part, stop=last) for part in parts]
        done = self._run(jobs, bar, lambda job: f"{role} {model.name} {job.part}".strip())
        return [done[job.name] for job in jobs]

    def train_folds(self, models: Sequence[Model], role: str, bar: Bar) -> None:
        """Trains each model on every fold: what ``Audience.trial`` makes one evaluation of.

        Raises:
            RunError: a training failed, with its reason.
        """
        self.train(models, [0], role, bar)
        for model in models:
            first = self.trained[(model.candidate.fingerprint, 0)]
            rest = self.train_parts(model, FOLD_PARTS[1:], role, bar)
            self.folds[model.candidate.fingerprint] = [first, *rest]

    def predict(
        self, models: Sequence[Model], repeats: Iterable[int], split: str, bar: Bar
    ) -> dict[tuple[str, int], Predictions]:
        """fp32 scores of saved adapters on a split.

        Returns:
            (model name, repeat) -> predictions.
        """
        rows = self.audience.rows[split]
        kind = "test" if split not in ("search", "confirm") else "predict"
        jobs = {}
        for model in models:
            for repeat in repeats:
                outcome = self.trained[(model.candidate.fingerprint, repeat)]
                jobs[(model.name, repeat)] = Job(
                    kind,  # type: ignore[arg-type]
                    self.audience.setup,
                    model.candidate,
                    repeat,
                    stop=self.audience.epochs,
                    state=outcome.state,
                    rows=rows.blind(),
                    split=split,
                )
        done = self._run(list(jobs.values()), bar, lambda job: split)
        return {
            key: self.audience.predictions(done[job.name], split, key[1])
            for key, job in jobs.items()
        }

    def ask(self, job: Job, bar: Bar) -> Outcome:
        """Runs one job, or gives its recorded outcome."""
        return self._run([job], bar, lambda _: job.kind)[job.name]

    def is_there(self, outcome: Outcome) -> bool:
        """Whether the files of a recorded outcome still exist; what was deleted is done again."""
        folder = self.audience.run_dir
        scores, state = outcome.predictions, outcome.state
        return (scores is None or (folder / "predictions" / scores).exists()) and (
            state is None or (folder / "states" / state).exists()
        )

    def _run(
        self, jobs: Sequence[Job], bar: Bar, role: Callable[[Job], str]
    ) -> dict[str, Outcome]:
        unique = {job.name: job for job in jobs}
        known = {name: o for name, job in unique.items() if (o := self.study.done(job))}
        done = {name: o for name, o in known.items() if self.is_there(o)}
        due = [job for name, job in unique.items() if name not in done]
        tries: dict[str, int] = {}
        bar(len(done), len(unique))
        running = 0
        while due or running:
            while due and running < self.runner.slots:
                self.runner.submit(due.pop(0))
                running += 1
            for job, outcome in self.runner.wait():
                running -= 1
                self.tick()
                again = _retry(job, outcome, self.batch_size)
                if again is not None and tries.get(job.name, 0) < 2:
                    tries[job.name] = tries.get(job.name, 0) + 1
                    due.insert(0, again)
                    continue
                if outcome.status != "ok":
                    raise RunError(f"{role(job)}: {job.name} failed: {outcome.reason}")
                value = self.value(outcome) if job.kind == "rung" else None
                self.study.record_done(unique[job.name], outcome, role(job), value)
                done[job.name] = outcome
                bar(len(done), len(unique))
        return done


def _retry(job: Job, outcome: Outcome, batch_size: int) -> Job | None:
    """Half the micro-batch after out-of-memory; the same job after a worker's death."""
    if outcome.status == "oom":
        return replace(job, micro_batch=max(1, (job.micro_batch or batch_size) // 2))
    return job if outcome.reason.startswith("worker died") else None
