"""One trial of the journal as plain data."""

import json
from dataclasses import replace

import optuna

from autopeft.candidate import Candidate, Readout, Train
from autopeft.entry import Entry, Measured, read_entry
from autopeft.evaluation import Cost
from autopeft.job import Outcome, total_cost
from autopeft.parts import FOLD_PARTS

PROBE = Candidate((), Train(), Readout(6, "avg"))


def measured(epoch, value=0.8):
    cost = Cost(10, 40, 1.5, 100)
    return Measured(Outcome("ok", epoch=epoch, cost=cost), value, (value, None), {"floor": -0.1})


def test_what_was_measured_survives_json():
    assert Measured.from_dict(json.loads(json.dumps(measured(3).to_dict()))) == measured(3)


def test_done_last_and_seconds_follow_the_rungs():
    entry = Entry(0, PROBE)
    assert (entry.done, entry.last, entry.seconds) == (0, None, 0)
    entry = Entry(0, PROBE, rungs={1: measured(1), 3: measured(3)})
    assert (entry.done, entry.last, entry.seconds) == (3, measured(3), 3.0)


def test_a_trial_of_optuna_becomes_an_entry():
    trial = optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL,
        user_attrs={
            "candidate": PROBE.to_dict(),
            "rung/3": measured(3).to_dict(),
            "rung/1": measured(1).to_dict(),
            "attempts/9": [Outcome("oom", "no memory").to_dict()],
            "reason": "oom: no memory",
        },
        system_attrs={"NSGAIISampler:generation": 2, "constraints:floor": 0.1},
    )
    entry = read_entry(trial)
    assert entry.state == "fail"
    assert list(entry.rungs) == [1, 3]
    assert entry.attempts[9] == (Outcome("oom", "no memory"),)
    assert entry.reason == "oom: no memory"
    assert entry.system == {"NSGAIISampler:generation": 2}


def test_with_folds_the_training_on_all_of_train_is_kept():
    folds = {}
    for k, part in enumerate(FOLD_PARTS[:3]):
        cost = Cost(10 + k, 40, 1.0 + k, 100 + k)
        outcome = Outcome("ok", epoch=9, cost=cost, state=None if k else "s", part=part)
        folds[k + 1] = replace(measured(9), outcome=outcome)
    entry = Entry(0, PROBE, rungs=folds)
    assert (entry.trained.part, entry.trained.state) == ("all", "s")
    assert entry.trained.cost == Cost(10, 40, 1.0, 100)
    assert entry.seconds == 6.0  # what was spent
    assert [o.part for o in entry.outcomes] == list(FOLD_PARTS[:3])
    assert total_cost(entry.outcomes) == Cost(10, 40, 2.0, 101)  # what one of them costs


def test_the_cost_of_a_training_is_that_of_all_its_stretches():
    entry = Entry(0, PROBE, rungs={1: measured(1), 3: measured(3)})
    assert entry.trained.cost == Cost(10, 40, 3.0, 200)
    assert entry.trained.epoch == 3
