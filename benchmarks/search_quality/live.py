"""One real run of a contestant, with training, beside its replay on the table.

Serial, so that the order of decisions does not hang on the load of the machine: what a contestant
does next depends on its seed and on the results alone, and the replay must take the same decisions
for as long as the trainings give the table's values. Tune is run by Tune itself, on a Ray of its
own, as a user would call it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from contestants import (
    AUROC,
    ETA,
    History,
    Judge,
    Race,
    autopeft,
    optuna_tpe,
    random_search,
    tune,
)
from curves import Table, key
from train_table import (
    BACKBONE,
    EPOCHS,
    SIZE,
    SPACE,
    Bench,
    candidate_of,
    grid,
    prepare,
    warm_up,
    worth,
)

from autopeft import trial as worker
from autopeft.backbones.weights import load_backbone
from autopeft.engine import Engine, drive
from autopeft.job import Job, Outcome
from autopeft.methods import canonical
from autopeft.runners.serial import SerialRunner
from autopeft.sampler import Proposer
from autopeft.schedule import epoch_ladder
from autopeft.space import Space, load_space
from autopeft.study import Study


@dataclass(frozen=True)
class Result:
    """What came back from a worker.

    Attributes:
        wall: seconds since the start of the run.
        key: the candidate.
        epoch: how far it is trained.
        auroc: on the search patients.
        seconds: processor seconds of this stretch.
        start: epoch where the stretch began.
    """

    wall: float
    key: str
    epoch: int
    auroc: float
    seconds: float
    start: int


def timed(bench: Bench, job: Job) -> tuple[Outcome, float]:
    """An outcome and its processor seconds, without those of scoring held-out films."""
    wall, processor = time.perf_counter(), time.process_time()
    outcome = worker.run(bench.setup, job)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    trained = outcome.cost.train_seconds if outcome.cost else wall
    share = (trained + (wall - trained) * bench.search / len(bench.scored)) / wall
    return outcome, processor * share


class Watched(SerialRunner):
    """autopeft's serial runner; what it answers is written down."""

    def __init__(self, bench: Bench, keys: Mapping[str, str]) -> None:
        super().__init__(bench.setup, "autopeft.trial:run")
        self._bench, self._keys = bench, keys
        self._begun = time.perf_counter()
        self.results: list[Result] = []

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._begun

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Does the oldest job."""
        job = self._queue.popleft()
        outcome, seconds = timed(self._bench, job)
        assert job.candidate is not None
        if outcome.status == "ok":
            auroc = worth(self._bench, str(outcome.predictions))["search_auroc"]
            name = self._keys[job.candidate.fingerprint]
            result = Result(self.passed, name, job.stop, auroc, seconds, job.start)
            self.results.append(result)
        return [(job, outcome)]


def live_autopeft(bench: Bench, race: Race, seed: int, seconds: float) -> list[Result]:
    """The engine, the serial runner and the real worker function."""
    names = {
        candidate_of(race.space, params, race.facts).fingerprint: key(params)
        for params in grid(race.space)
    }
    runner, ladder = Watched(bench, names), epoch_ladder(EPOCHS, eta=ETA)
    study = Study(Path(bench.setup.run_dir), tuple(race.aim.terms.values()))
    proposer = Proposer(study, race.ask, (), ladder, "tpe", seed, race.most)
    engine = Engine(
        study, proposer.ask, Judge(race.aim), ladder, race.most, bench.setup.digest(), eta=ETA,
        unpaused=lambda candidate: not candidate.strata,
    )  # fmt: skip

    def evaluate(outcomes: Sequence[Outcome]) -> tuple[float, Any]:
        value = worth(bench, str(outcomes[-1].predictions))["search_auroc"]
        return value, (value,)

    def moment() -> None:
        if runner.passed >= seconds:
            engine.stop("the budget is spent")

    drive(engine, runner, evaluate, moment=moment)
    return runner.results


def live_optuna(
    bench: Bench, race: Race, seconds: float, sampler: optuna.samplers.BaseSampler
) -> list[Result]:
    """Ask, train to the end, tell."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    begun, results = time.perf_counter(), []
    while time.perf_counter() - begun < seconds:
        asked = study.ask()
        candidate = race.ask(asked)
        outcome, cost = timed(bench, Job("rung", bench.setup.digest(), candidate, stop=EPOCHS))
        if outcome.status != "ok":
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            continue
        auroc = worth(bench, str(outcome.predictions))["search_auroc"]
        study.tell(asked, auroc)
        wall = time.perf_counter() - begun
        results.append(Result(wall, key(asked.params), EPOCHS, auroc, cost, 0))
    return results


def train_for_tune(config: dict[str, Any], data: str, out: str) -> None:
    """A user's Tune function: one report an epoch, a probe reports once."""
    from ray import tune as ray_tune

    bench = prepare(Path(data), Path(out))
    candidate = canonical(
        load_space(str(SPACE)).ask(optuna.trial.FixedTrial(config), bench.facts), bench.facts
    )
    digest, state, epoch = bench.setup.digest(), None, 0
    while epoch < EPOCHS:
        stop = epoch + 1 if candidate.strata else EPOCHS
        job = Job("rung", digest, candidate, start=epoch, stop=stop, state=state)
        outcome, seconds = timed(bench, job)
        if outcome.status != "ok":
            raise RuntimeError(outcome.reason)
        auroc = worth(bench, str(outcome.predictions))["search_auroc"]
        found = {"search_auroc": auroc, "epoch": stop, "start": epoch, "seconds": seconds}
        ray_tune.report(found)
        state, epoch = outcome.state, stop


def suggest_for_tune(trial: Any, space: Space, facts: Any) -> None:
    """Draws a candidate; Tune pickles it with the searcher, so it is no closure."""
    space.ask(trial, facts)


def live_tune(data: Path, out: Path, race: Race, seed: int, seconds: float) -> list[Result]:
    """Tune's own controller, one trial at a time."""
    import ray
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    results: list[Result] = []
    begun = time.perf_counter()

    class Note(ray_tune.Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            wall = time.perf_counter() - begun
            results.append(
                Result(wall, key(trial.config), result["epoch"], result["search_auroc"],
                       result["seconds"], result["start"])
            )  # fmt: skip

    define = partial(suggest_for_tune, space=race.space, facts=race.facts)
    searcher = OptunaSearch(define, "search_auroc", "max", seed=seed)
    scheduler = ASHAScheduler(
        time_attr="epoch", metric="search_auroc", mode="max", max_t=EPOCHS, grace_period=1,
        reduction_factor=ETA,
    )  # fmt: skip
    # Ray's workers are nice (15); on a busy machine they would wait for all the others.
    ray.init(
        num_cpus=1, include_dashboard=False, logging_level="ERROR",
        _system_config={"worker_niceness": 0},
    )  # fmt: skip
    try:
        ray_tune.Tuner(
            partial(train_for_tune, data=str(data), out=str(out)),
            tune_config=ray_tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=-1,
                max_concurrent_trials=1, time_budget_s=seconds,
            ),
            run_config=ray_tune.RunConfig(
                storage_path=str(out.resolve() / "tune"), callbacks=[Note()], verbose=0
            ),
        ).fit()  # fmt: skip
    finally:
        ray.shutdown()
    return results


# ---- live beside replayed ---------------------------------------------------------------------


def compare(results: Sequence[Result], replayed: History, table: Table) -> list[str]:
    """Values, costs and decisions of the live run, each beside the table's."""
    if not results:
        return ["no result came back in this time"]
    rows = [
        "| result | live s | candidate | epoch | AUROC live | table | processor s live | table | "
        "answer live | replayed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    answers, same = [0.5, 0.5], 0
    gaps, ratios = [], []
    for i, result in enumerate(results):
        curve = table.curves[result.key]
        value, cost = curve.value("search_auroc", result.epoch), None
        cost = curve.cost(result.start, result.epoch)
        gaps.append(abs(result.auroc - value))
        ratios.append(result.seconds / cost)
        seen = replayed.seen[i] if i < len(replayed.seen) else None
        agrees = seen is not None and (seen.curve.key, seen.epoch) == (result.key, result.epoch)
        same += agrees and same == i
        if result.epoch == table.epochs:
            answers[0] = max(answers[0], result.auroc)
        if seen is not None and seen.epoch == table.epochs:
            answers[1] = max(answers[1], seen.curve.value("search_auroc", seen.epoch))
        shown = " ".join(str(v) for k, v in sorted(json.loads(result.key).items()))
        rows.append(
            f"| {i + 1} | {result.wall:.0f} | {shown} | {result.epoch} | {result.auroc:.4f} | "
            f"{value:.4f} | {result.seconds:.2f} | {cost:.2f} | {answers[0]:.4f} | "
            f"{answers[1]:.4f} |"
        )
    live = [r.auroc for r in results]
    told = [table.curves[r.key].value("search_auroc", r.epoch) for r in results]
    order = np.corrcoef(np.argsort(np.argsort(live)), np.argsort(np.argsort(told)))[0, 1]
    summary = (
        f"{len(results)} results; the first {same} decisions are those of the replay; AUROC "
        f"differs by {max(gaps):.4f} at most, mean {np.mean(gaps):.4f}; rank correlation "
        f"{order:.3f}; processor seconds live / table: median {np.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
    )
    return [summary, "", *rows]


REPLAYS: dict[str, Callable[[Race, int], History]] = {
    "autopeft": autopeft,
    "optuna": optuna_tpe,
    "random": random_search,
    "tune": tune,
}


def main(
    name: str, table: Table, data: Path, out: Path, seconds: float = 150, seed: int = 0
) -> None:
    """Runs one contestant for so many seconds and prints it beside its replay.

    What it gave is kept in ``out/live_NAME.json``; if that is there, nothing is run.
    """
    kept = out / f"live_{name}.json"
    space = load_space(str(SPACE))
    facts = load_backbone(BACKBONE, None, SIZE, offline=True).facts
    # One worker; how long the replay is follows from what the live run did.
    race = Race(table, space, facts, AUROC, 1, 0.0)
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            results = run(name, race, data, Path(folder), seconds, seed)
        kept.write_text(json.dumps([asdict(r) for r in results]))
    results = [Result(**r) for r in json.loads(kept.read_text())]
    spent = sum(table.curves[r.key].cost(r.start, r.epoch) for r in results)
    replayed = REPLAYS[name](replace(race, seconds=2 * spent), seed)
    wall = results[-1].wall if results else seconds
    print(f"### Live: {name}, seed {seed}, serial, {wall:.0f} s\n")
    print("\n".join(compare(results, replayed, table)))


def run(name: str, race: Race, data: Path, out: Path, seconds: float, seed: int) -> list[Result]:
    """The live run itself."""
    bench = prepare(data, out)
    points = grid(race.space)
    warm_up(bench, [candidate_of(race.space, params, bench.facts) for params in points])
    if name == "tune":
        return live_tune(data, out, race, seed, seconds)
    if name == "autopeft":
        return live_autopeft(bench, race, seed, seconds)
    return live_optuna(bench, race, seconds, sampler_of(name, seed))


def sampler_of(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """As in the replay."""
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
