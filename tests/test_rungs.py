"""Training rung by rung from a loop of one's own: the same values as in one stretch."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny

from autopeft.errors import RunError, UserError
from autopeft.job import Outcome
from autopeft.methods import METHODS, own
from autopeft.rungs import open_rungs

LORA = {"method": "lora", "r": 2, "blocks": 1, "lr": 1e-3}


@pytest.fixture(scope="module")
def rungs(tmp_path_factory):
    return open_rungs(**tiny(tmp_path_factory.mktemp("runs"), space="quick"))


def scores(rungs, outcome):
    with np.load(Path(rungs.setup.run_dir) / "predictions" / outcome.predictions) as stored:
        return stored["score"]


def test_two_rungs_are_one_training(rungs):
    sent = pickle.loads(pickle.dumps(rungs))  # as Ray sends it
    candidate = sent.candidate(LORA)
    first = sent.run(candidate, 1)
    last = sent.run(candidate, 2, first)
    assert (first.status, first.epoch, last.epoch) == ("ok", 1, 2)
    parts = scores(rungs, last)
    whole = rungs.run(candidate, 2)
    assert np.array_equal(parts, scores(rungs, whole))
    assert not np.array_equal(parts, scores(rungs, first))


def test_metrics_are_those_of_the_search_patients(rungs):
    from sklearn.metrics import roc_auc_score

    outcome = rungs.run(rungs.candidate(LORA), 1)
    numbers = rungs.measure(outcome, "auroc", "trainable_params", "worst_group_auroc")
    target = rungs.setup.rows["search"].label
    assert numbers["auroc"] == pytest.approx(roc_auc_score(target, scores(rungs, outcome)))
    assert numbers["trainable_params"] == outcome.cost.trainable_params
    assert math.isnan(numbers["worst_group_auroc"])  # no groups were asked for


def test_it_holds_no_confirm_and_no_test_patients(rungs):
    assert set(rungs.setup.rows) == set(rungs.audience.rows) == {"train", "search"}


@pytest.mark.parametrize(("stop", "after"), [(0, None), (3, None), (1, Outcome("ok", epoch=1))])
def test_a_rung_lies_inside_the_schedule(rungs, stop, after):
    with pytest.raises(UserError, match=f"epoch {stop} is not possible"):
        rungs.run(rungs.candidate(LORA), stop, after)


def test_mistakes_are_said(rungs):
    with pytest.raises(RunError, match=r"the rung failed \(nan\): diverged"):
        rungs.measure(Outcome("nan", "diverged"), "auroc")
    with pytest.raises(UserError, match='Did you mean "auroc"'):
        rungs.measure(rungs.run(rungs.candidate(LORA), 1), "auroq")
    with pytest.raises(UserError, match="unknown option 'rank'"):
        rungs.candidate({**LORA, "rank": 3})


def test_a_search_s_folder_is_not_written_into(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "settings.yaml").write_text("trials: 3\n")
    with pytest.raises(UserError, match="is a run of autopeft search"):
        open_rungs(**tiny(tmp_path, name="mine"))


def test_a_method_of_the_user_s_travels_along(tmp_path):
    space = Path(__file__).parents[1] / "examples" / "own_method_space.yaml"
    rungs = open_rungs(**tiny(tmp_path, space=str(space), epochs=1))
    sent = pickle.dumps(rungs)
    del METHODS["gate"]  # as in another process
    own._EXECUTED.clear()
    own._FILES.clear()
    try:
        rungs = pickle.loads(sent)
        outcome = rungs.run(rungs.candidate({"method": "gate", "blocks": 1}), 1)
        assert outcome.status == "ok", outcome.reason
        assert 0 <= rungs.measure(outcome, "auroc")["auroc"] <= 1
    finally:
        del METHODS["gate"]
