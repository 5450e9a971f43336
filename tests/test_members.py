"""The null, the members' scores in evaluations, and attacks with half trainings; without torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_bench import lora, make_bench, silent

from autopeft.bench import Model
from autopeft.evaluation import Cost
from autopeft.job import Outcome, Rows
from autopeft.members import planted_labels, recipe_attacks, with_null
from autopeft.metrics import METRICS
from autopeft.metrics.memorization import patient_signal
from autopeft.parts import fold_rows, halves, part_rows, planted, scored_rows, subsample


class Memory:
    """Answers jobs like a model that knows its own patients by heart, as far as ``heart`` says."""

    slots = 1

    def __init__(self, bench, heart):
        self.audience, self.heart, self.asked, self._out = bench.audience, heart, [], []

    def submit(self, job, name=""):
        self.asked.append(job)
        self._out.append(job)

    def wait(self):
        done, self._out = self._out, []
        return [(job, self._answer(job)) for job in done]

    def _answer(self, job):
        rows = self.audience.rows
        rng = np.random.default_rng([int(c) for c in job.name.encode()])
        if job.kind == "null":
            wanted, members = {"train": self.audience.members, "probe": rows["probe"]}, set()
        else:
            wanted = scored_rows(rows, job.part, 0)
            members = set(part_rows(rows, job.part, 0)[0].patient)
        scores = {}
        for name, some in wanted.items():
            mine = np.isin(some.patient, list(members))[:, None]
            pull = (0.5 + self.heart * mine) * (2 * some.label - 1)
            if job.part == "planted" and name == "train":  # it learnt what it was told
                told = (0.5 + self.heart * mine) * (2 * planted(some, 0)[0].label - 1)
                pull = np.where(mine, told, pull)
            scores[name] = (pull + rng.normal(size=pull.shape)).astype(np.float16)
        for folder in ("predictions", "states"):
            (self.audience.run_dir / folder).mkdir(exist_ok=True)
        np.savez(self.audience.run_dir / "predictions" / f"{job.name}.npz", **scores)
        if job.kind == "rung":
            (self.audience.run_dir / "states" / job.name).mkdir(exist_ok=True)
        state = job.name if job.kind == "rung" else None
        name = f"{job.name}.npz"
        return Outcome("ok", "", job.stop, name, Cost(10, 40), state, 0.1, part=job.part)


def bench_with_probe(folder, heart=1.0):
    bench = make_bench(folder)
    rows = dict(bench.audience.rows)
    rows["train"] = many(400, 5000)
    rows["probe"] = many(100, 9000)
    members = rows["train"].take(subsample(rows, 0))
    bench.audience = replace(bench.audience, rows=rows, members=members)
    bench.runner = Memory(bench, heart)
    return bench


def many(n, first):
    rng = np.random.default_rng(first)
    index = np.arange(n) + first
    return Rows(
        np.array([f"{i}.png" for i in index]),
        index,
        np.array([f"p{i}" for i in index]),
        rng.integers(0, 2, (n, 1)).astype(np.float32),
        {"sex": np.array(["sex=F", "sex=M"])[rng.integers(0, 2, n)]},
    )


@pytest.mark.parametrize(("heart", "low", "high"), [(0.0, -0.12, 0.12), (2.0, 0.25, 0.5)])
def test_an_evaluation_holds_members_probe_and_null(tmp_path, heart, low, high):
    bench = bench_with_probe(tmp_path, heart)
    assert with_null(bench, lora(2), silent) is bench.audience
    bench.train([Model("a", lora(2))], [0], "baseline", silent)
    outcome = bench.trained[(lora(2).fingerprint, 0)]
    predictions = bench.audience.predictions(outcome, "search", 0)
    e = bench.audience.evaluation(predictions, outcome.cost, outcome=outcome)
    assert (e.train.split, e.probe.split) == ("train", "probe")
    assert len(e.train.score) == len(e.probe.score) == 100
    assert np.array_equal(e.train.patient, e.null[0].patient)
    assert low < METRICS["memorization"](e) < high
    assert METRICS["generalization_gap"](e) is not None
    without = bench.audience.evaluation(predictions, outcome.cost)
    assert without.train is without.probe is None
    assert METRICS["memorization"](without) is None


def test_with_folds_members_are_those_of_the_training_that_is_kept(tmp_path):
    bench = bench_with_probe(tmp_path, heart=2.0)
    with_null(bench, lora(2), silent)
    bench.audience = replace(bench.audience, folds=fold_rows(bench.audience.rows))
    bench.train_folds([Model("a", lora(2))], "baseline", silent)
    outcomes = bench.folds[lora(2).fingerprint]
    whole, first = bench.audience.trial(outcomes), bench.audience.trial(outcomes[:1])
    assert set(whole.search.part) == {0, 1, 2, 3, 4}
    assert np.array_equal(whole.train.score, bench.audience.members_of(outcomes[0])[0].score)
    assert 0.25 < METRICS["memorization"](whole) < 0.5
    assert METRICS["memorization"](whole) == METRICS["memorization"](first)
    assert METRICS["generalization_gap"](whole) == METRICS["generalization_gap"](first)


def test_the_null_is_asked_for_once(tmp_path):
    bench = bench_with_probe(tmp_path)
    with_null(bench, lora(2), silent)
    with_null(bench, lora(2), silent)
    (job,) = bench.runner.asked
    assert (job.kind, job.split, job.candidate) == ("null", "null", lora(2))


def test_a_run_that_does_not_ask_stores_and_holds_nothing(tmp_path):
    bench = make_bench(tmp_path)
    bench.train([Model("a", lora(2))], [0], "baseline", silent)
    outcome = bench.trained[(lora(2).fingerprint, 0)]
    predictions = bench.audience.predictions(outcome, "search", 0)
    e = bench.audience.evaluation(predictions, outcome.cost, outcome=outcome)
    assert e.train is e.probe is e.null is None


def test_a_recipe_that_learns_by_heart_is_found_by_its_half_trainings(tmp_path):
    bench = bench_with_probe(tmp_path, heart=1.0)
    found = recipe_attacks(bench, Model("a", lora(2)), 0, silent)
    assert [job.part for job in bench.runner.asked] == [f"half:{i}" for i in range(8)]
    assert {a.name for a in found} == {"likelihood ratio", "rmia"}
    assert found[0].value >= found[1].value > 0.1
    assert all(a.succeeded and a.members == 200 for a in found)
    again = recipe_attacks(bench, Model("a", lora(2)), 0, silent)
    assert again == found
    assert len(bench.runner.asked) == 8  # all of it is in the journal


def test_a_recipe_without_memory_is_not_found(tmp_path):
    found = recipe_attacks(bench_with_probe(tmp_path, 0.0), Model("a", lora(2)), 0, silent)
    assert all(a.low < 0 < a.high for a in found)


def test_without_a_probe_there_is_only_the_likelihood_ratio(tmp_path):
    bench = bench_with_probe(tmp_path)
    rows = {k: v for k, v in bench.audience.rows.items() if k != "probe"}
    bench.audience = replace(bench.audience, rows=rows, members=None)
    bench.runner.audience = bench.audience
    (found,) = recipe_attacks(bench, Model("a", lora(2)), 0, silent)
    assert found.name == "likelihood ratio"


def test_patients_without_a_label_are_left_out_of_the_recipe_s_attacks(tmp_path):
    bench = bench_with_probe(tmp_path)
    rows = dict(bench.audience.rows)
    label = rows["train"].label.copy()
    label[:7] = np.nan
    rows["train"] = replace(rows["train"], label=label)
    bench.audience = replace(bench.audience, rows=rows)
    bench.runner.audience = bench.audience
    found = recipe_attacks(bench, Model("a", lora(2)), 0, silent)
    inside = halves(rows["train"], 0)[:, 7:]
    assert found[0].members == min(inside.sum(axis=1).min(), (~inside).sum(axis=1).min())
    table = bench.audience.table(label, rows["train"], "train")
    assert np.isnan(patient_signal(table, "loss")).sum() == 7


def test_planted_labels_are_repeated_by_a_model_that_learns_by_heart(tmp_path):
    bench = bench_with_probe(tmp_path, heart=3.0)
    found = planted_labels(bench, Model("a", lora(2)), 0, silent)
    assert [job.part for job in bench.runner.asked] == ["planted"]
    assert found.planted == 40  # of 400
    assert found.share > 0.95
    assert found.by_chance < 0.5
    assert planted_labels(bench, Model("a", lora(2)), 0, silent) == found
    assert len(bench.runner.asked) == 1  # it is in the journal
