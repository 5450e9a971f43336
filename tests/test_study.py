"""The journal: what is recorded comes back, told as it should be, whatever killed the driver."""

import json
import math

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from autopeft.candidate import Candidate, Readout, Stratum, Train
from autopeft.errors import RunError
from autopeft.evaluation import Cost
from autopeft.job import Job, Outcome
from autopeft.study import Measured, Study, repair

LR = {"lora.lr": FloatDistribution(1e-5, 1.0, log=True)}
BOTH = ("maximize", "minimize")


def candidate(lr):
    return Candidate(
        (Stratum((0, 5), ("qkv",), "lora", {"r": 8}),), Train(lr=lr), Readout(6, "avg")
    )


def measured(epoch, value, floor=-0.1):
    outcome = Outcome("ok", "", epoch, f"p{epoch}", Cost(10, 40, 1.5, 100), f"s{epoch}", 0.3)
    return Measured(outcome, value, (value, 0.2), {"floor": floor})


def add(study, lr):
    return study.add(candidate(lr), {"lora.lr": lr}, LR).number


def plain_optuna(folder, name="search"):
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    )
    return optuna.load_study(study_name=name, storage=storage)


def test_everything_comes_back(tmp_path):
    study = Study(tmp_path, BOTH, ("auroc", "gap"))
    for lr in (0.1, 0.2, 0.3, 0.4):
        add(study, lr)
    study.record_rung(0, 1, measured(1, 0.7))
    study.record_rung(0, 3, measured(3, 0.8))
    study.complete(0)
    study.record_rung(1, 1, measured(1, 0.6))
    study.prune(1, "stopped after 1 epochs")
    study.record_attempt(2, 1, Outcome("nan", "loss is nan"))
    study.fail(2, "nan: loss is nan")
    study.record_attempt(3, 1, Outcome("oom", "no memory"))
    again = Study(tmp_path, BOTH, ("auroc", "gap"))
    assert again.entries == study.entries
    assert [e.state for e in again.entries] == ["complete", "pruned", "fail", "running"]
    assert again.entry(0).rungs[3] == measured(3, 0.8)
    assert again.entry(3).attempts[1][0].status == "oom"


def test_the_journal_is_a_plain_optuna_study(tmp_path):
    study = Study(tmp_path, BOTH)
    for number, floor in enumerate((-0.1, 0.3)):
        add(study, 0.1 * (number + 1))
        study.record_rung(number, 3, measured(3, 0.8 + number / 100, floor))
        study.complete(number)
    add(study, 0.3)
    study.prune(2, "stopped after 1 epochs")
    loaded = plain_optuna(tmp_path)
    assert [t.state for t in loaded.trials] == [
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.PRUNED,
    ]
    assert loaded.trials[0].values == [0.8, 0.2]
    assert loaded.trials[2].values is None
    assert loaded.trials[0].params == {"lora.lr": 0.1}
    assert loaded.trials[0].user_attrs["fingerprint"] == candidate(0.1).fingerprint
    assert json.loads(json.dumps(loaded.trials[0].user_attrs["rung/3"]))["value"] == 0.8
    # The second has the better value but breaks its constraint.
    assert [t.number for t in loaded.best_trials] == [0]
    assert all("floor" in t.constraints for t in loaded.trials if t.state == TrialState.COMPLETE)


def test_a_driver_killed_between_constraint_and_tell(tmp_path, monkeypatch):
    study = Study(tmp_path, BOTH)
    add(study, 0.1)
    study.record_rung(0, 3, measured(3, 0.8))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(study._search, "tell", killed)
    with pytest.raises(KeyboardInterrupt):
        study.complete(0)
    again = Study(tmp_path, BOTH)
    assert again.entry(0).state == "running"
    again.complete(0)
    trial = plain_optuna(tmp_path).trials[0]
    assert trial.state == TrialState.COMPLETE
    assert trial.constraints == {"floor": -0.1}


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_flaws_are_named(bad):
    outcome = Outcome("ok", epoch=3)
    assert "objective term 1" in Measured(outcome, 0.5, (0.5, bad)).flaw
    assert "constraint floor" in Measured(outcome, 0.5, (0.5, 0.5), {"floor": bad}).flaw
    assert Measured(outcome, 0.5, (0.5, 0.5), {"floor": 1.0}).flaw == ""


def test_facts_are_set_once(tmp_path):
    study = Study(tmp_path, BOTH)
    assert study.fact("reference") is None
    assert study.fix("reference", {"auroc": 0.8}) == {"auroc": 0.8}
    again = Study(tmp_path, BOTH)
    assert again.fact("reference") == {"auroc": 0.8}
    again.fix("reference", {"auroc": 0.8})
    with pytest.raises(RunError, match="reference of this run is"):
        again.fix("reference", {"auroc": 0.9})


def test_what_is_done_once_is_known_after_a_restart(tmp_path):
    study = Study(tmp_path, BOTH)
    train = Job("rung", "s", candidate(0.1), repeat=1, stop=9)
    test = Job("test", "s", candidate(0.1), repeat=1, stop=9, split="test")
    failed = Job("rung", "s", candidate(0.2), repeat=1, stop=9)
    assert study.done(train) is None
    study.record_done(train, Outcome("ok", epoch=9, cost=Cost(1, 4)), "confirm", 0.8)
    study.record_done(test, Outcome("ok", epoch=9, predictions="t.npz"))
    study.record_done(failed, Outcome("nan", "loss"), "confirm")
    again = Study(tmp_path, BOTH)
    assert again.done(train) == Outcome("ok", epoch=9, cost=Cost(1, 4))
    assert again.done(test).predictions == "t.npz"
    assert again.done(failed).status == "nan"
    assert again.done(Job("rung", "s", candidate(0.1), repeat=2, stop=9)) is None
    trials = plain_optuna(tmp_path, "confirm").trials
    assert [(t.state.name, t.user_attrs["role"]) for t in trials] == [
        ("COMPLETE", "confirm"),
        ("FAIL", "confirm"),
    ]
    assert again.entries == ()


def test_other_directions_are_refused(tmp_path):
    Study(tmp_path, BOTH)
    with pytest.raises(RunError, match="directions"):
        Study(tmp_path, ("maximize",))


@pytest.mark.parametrize("tail", [b'{"op_code": 4, "wor', b"\x00\x00\x00", b"\x00\x00\n", b"{\n"])
def test_a_torn_tail_is_cut_and_kept(tmp_path, tail):
    study = Study(tmp_path, BOTH)
    add(study, 0.1)
    path = tmp_path / "study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    again = Study(tmp_path, BOTH)
    assert f" {len(tail)} bytes were cut off" in again.repaired
    assert len(again.entries) == 1
    assert (tmp_path / f"study.journal.torn-{len(whole)}").read_bytes() == tail
    add(again, 0.2)
    assert len(Study(tmp_path, BOTH).entries) == 2


def test_a_whole_journal_is_left_alone(tmp_path):
    Study(tmp_path, BOTH)
    before = (tmp_path / "study.journal").read_bytes()
    assert repair(tmp_path / "study.journal") == 0
    assert (tmp_path / "study.journal").read_bytes() == before
    assert repair(tmp_path / "none.journal") == 0


def test_a_lock_left_by_a_killed_driver_does_not_hold_up_the_next(tmp_path):
    Study(tmp_path, BOTH)
    (tmp_path / "study.journal.lock").symlink_to("study.journal")
    repair(tmp_path / "study.journal")  # otherwise Optuna waits for 30 s
    assert not (tmp_path / "study.journal.lock").is_symlink()


def test_the_table_has_a_row_for_each_trial(tmp_path):
    study = Study(tmp_path, BOTH, ("auroc", "gap"))
    add(study, 0.1)
    add(study, 0.2)
    study.record_rung(0, 1, measured(1, 0.7))
    study.record_rung(0, 3, measured(3, 0.8))
    frame = study.frame()
    assert list(frame["number"]) == [0, 1]
    assert frame.loc[0, ["auroc", "gap", "epochs", "train_seconds"]].tolist() == [0.8, 0.2, 3, 3.0]
    assert frame["auroc"].isna().tolist() == [False, True]
    assert frame["lora.lr"].tolist() == [0.1, 0.2]
