"""Trainings and predictions outside of the search: once each, in the journal, retried."""

from __future__ import annotations

import numpy as np
import pytest
from fake_bench import lora, make_bench, make_rows, silent

from autopeft.bench import Model
from autopeft.errors import RunError
from autopeft.evaluation import Cost
from autopeft.job import Job, Outcome
from autopeft.metrics.classification import fit_threshold
from autopeft.parts import FOLD_PARTS
from autopeft.study import Study

A, B = Model("a", lora(2)), Model("b", lora(4))


@pytest.mark.parametrize("slots", [1, 3])
def test_each_training_is_done_once_also_over_restarts(tmp_path, slots):
    bench, steps = make_bench(tmp_path, slots=slots), []
    bench.train([A, B], [0, 1], "baseline", lambda *step: steps.append(step))
    assert [(j.key[0], j.repeat, j.start, j.stop, j.kind) for j in bench.runner.asked] == [
        (m.candidate.fingerprint, r, 0, 9, "rung") for m in (A, B) for r in (0, 1)
    ]
    assert steps[0] == (0, 4)
    assert steps[-1] == (4, 4)
    bench.train([B, Model("again", A.candidate)], [1, 0], "confirm", silent)
    assert len(bench.runner.asked) == 4
    again = make_bench(tmp_path)  # a new driver on the same folder
    again.train([A, B], [0, 1, 2], "baseline", silent)
    assert [j.repeat for j in again.runner.asked] == [2, 2]
    assert (
        again.trained[(A.candidate.fingerprint, 0)] == bench.trained[(A.candidate.fingerprint, 0)]
    )


def test_a_training_whose_files_are_gone_is_done_again(tmp_path):
    bench = make_bench(tmp_path)
    bench.train([A, B], [0], "baseline", silent)
    (tmp_path / "states" / bench.trained[(A.candidate.fingerprint, 0)].state).rmdir()
    again = make_bench(tmp_path)
    again.train([A, B], [0], "baseline", silent)
    assert [j.key[0] for j in again.runner.asked] == [A.candidate.fingerprint]


def test_predictions_carry_no_labels_out_and_come_back_with_them(tmp_path):
    bench = make_bench(tmp_path)
    bench.train([A], [0, 1], "confirm", silent)
    scored = bench.predict([A], [0, 1], "confirm", silent)
    jobs = bench.runner.asked[2:]
    for job in jobs:
        assert job.kind == "predict"
        assert job.rows.label is None
        assert job.rows.groups == {}
        assert job.state == bench.trained[(A.candidate.fingerprint, job.repeat)].state
    assert set(scored) == {("a", 0), ("a", 1)}
    rows = bench.audience.rows["confirm"]
    for (_, repeat), predictions in scored.items():
        assert predictions.split == "confirm"
        assert predictions.repeat == repeat
        np.testing.assert_array_equal(predictions.target, rows.label)
        np.testing.assert_array_equal(predictions.patient, rows.patient)
        assert predictions.groups == rows.groups
    assert not np.array_equal(scored[("a", 0)].score, scored[("a", 1)].score)
    bench.predict([A], [0, 1], "confirm", silent)
    assert len(bench.runner.asked) == 4


def test_test_rows_travel_only_in_test_jobs(tmp_path):
    bench = make_bench(tmp_path)
    bench.train([A], [0], "confirm", silent)
    with pytest.raises(KeyError):
        bench.predict([A], [0], "test", silent)  # sealed: the driver does not have them
    bench.audience.rows["test"] = make_rows("test")
    bench.predict([A], [0], "test", silent)
    assert [j.kind for j in bench.runner.asked] == ["rung", "test"]


def test_out_of_memory_halves_the_micro_batch(tmp_path):
    bench = make_bench(tmp_path)
    name = Job("rung", "setup", A.candidate, stop=9).name
    bench.runner.bad[name] = [Outcome("oom", "no memory"), Outcome("oom", "no memory")]
    bench.train([A], [0], "baseline", silent)
    assert [j.micro_batch for j in bench.runner.asked] == [0, 16, 8]
    assert bench.trained[(A.candidate.fingerprint, 0)].status == "ok"


def test_a_dead_worker_s_job_is_given_again_but_not_for_ever(tmp_path):
    bench = make_bench(tmp_path)
    name = Job("rung", "setup", A.candidate, stop=9).name
    died = Outcome("error", "worker died: OOM killer")
    bench.runner.bad[name] = [died]
    bench.train([A], [0], "baseline", silent)
    assert len(bench.runner.asked) == 2
    bench.runner.bad[name.replace("-0-", "-1-")] = [died] * 3
    with pytest.raises(RunError, match=r"baseline a: .* failed: worker died"):
        bench.train([A], [1], "baseline", silent)
    assert len(bench.runner.asked) == 5


@pytest.mark.parametrize(
    "outcome",
    [Outcome("nan", "loss is nan"), Outcome("error", "the worker loaded other weights")],
)
def test_other_failures_end_the_run_at_once(tmp_path, outcome):
    bench = make_bench(tmp_path)
    bench.runner.bad[Job("rung", "setup", A.candidate, stop=9).name] = [outcome]
    with pytest.raises(RunError, match=outcome.reason):
        bench.train([A], [0], "baseline", silent)
    assert len(bench.runner.asked) == 1
    assert Study(tmp_path, ("maximize",)).done(bench.runner.asked[0]) is None


def test_folds_are_trained_once_and_scored_side_by_side(tmp_path):
    bench = make_bench(tmp_path, folds=True)
    bench.train_folds([A, B], "baseline", silent)
    asked = [(j.key[0], j.part, j.repeat, j.start, j.stop) for j in bench.runner.asked]
    assert sorted(asked) == sorted(
        (m.candidate.fingerprint, part, 0, 0, 9) for m in (A, B) for part in FOLD_PARTS
    )
    name = A.candidate.fingerprint
    assert bench.trained[(name, 0)] is bench.folds[name][0]
    whole = bench.audience.trial(bench.folds[name], {"auroc": 0.7})
    everyone = [p for rows in bench.audience.folds for p in rows.patient]
    assert whole.search.patient.tolist() == everyone
    assert whole.search.split == "search"
    assert whole.reference == {"auroc": 0.7}
    for k, outcome in enumerate(bench.folds[name]):
        mine = whole.search.take(whole.search.part == k)
        own = bench.audience.judged(outcome)
        np.testing.assert_array_equal(mine.score, own.score)
        np.testing.assert_array_equal(mine.target, bench.audience.folds[k].label)
        assert whole.thresholds[k] == fit_threshold(own)
    first = bench.audience.trial(bench.folds[name][:2])
    assert set(first.search.part) == {0, 1}
    with pytest.raises(AssertionError):
        bench.audience.trial(bench.folds[name][1:])  # whose rows would these be?
    again = make_bench(tmp_path, folds=True)
    again.train_folds([A, B], "baseline", silent)
    assert again.runner.asked == []


def test_without_folds_a_trial_is_its_last_stretch(tmp_path):
    bench = make_bench(tmp_path)
    bench.train([A], [0, 1], "baseline", silent)
    one, two = (bench.trained[(A.candidate.fingerprint, r)] for r in (0, 1))
    found = bench.audience.trial([one, two])
    np.testing.assert_array_equal(found.search.score, bench.audience.judged(two).score)
    assert set(found.search.part) == {0}
    assert bench.audience.everyone().patient.tolist() == found.search.patient.tolist()


def test_evaluations_hold_what_was_declared(tmp_path):
    bench = make_bench(tmp_path, groups=True)
    bench.train([A], [0], "baseline", silent)
    outcome = bench.trained[(A.candidate.fingerprint, 0)]
    predictions = bench.audience.predictions(outcome, "search", 0)
    evaluation = bench.audience.evaluation(predictions, outcome.cost, {"auroc": 0.7})
    assert evaluation.search is predictions
    assert evaluation.cost == Cost(100, 400)
    assert evaluation.reference == {"auroc": 0.7}
    assert evaluation.counted == {"sex": ("sex=F", "sex=M")}
    assert len(evaluation.thresholds) == 1
    assert evaluation.margin == 0.01
