"""Proposals: always new, never replayed, learnt from one rung."""

import math

import optuna
import pytest
from optuna.trial import TrialState

from autopeft.candidate import Candidate, Readout, Stratum, Train
from autopeft.errors import UserError
from autopeft.job import Outcome
from autopeft.sampler import Proposer, make_sampler, stable_seed
from autopeft.schedule import epoch_ladder
from autopeft.study import Measured, Study

LADDER = epoch_ladder(9)


def suggest(trial):
    lr = trial.suggest_float("lora.lr", 1e-5, 1e-1, log=True)
    r = trial.suggest_categorical("lora.r", (2, 4, 8))
    return Candidate((Stratum((0, 5), (), "lora", {"r": r}),), Train(lr=lr), Readout(6, "avg"))


def small(trial):
    r = trial.suggest_categorical("lora.r", (1, 2, 4, 8, 16, 32))
    return Candidate((Stratum((0, 5), (), "lora", {"r": r}),), Train(), Readout(6, "avg"))


def open_study(folder):
    return Study(folder, ("maximize", "minimize"))


def grow(study, proposer, count, epoch=1):
    for _ in range(count):
        p = proposer.ask()
        entry = study.add(p.candidate, p.params, p.distributions, p.system)
        value = 1 - abs(math.log10(p.candidate.train.lr) + 3) / 4
        study.record_rung(
            entry.number,
            epoch,
            Measured(Outcome("ok", epoch=epoch), value, (value, 0.1), {"floor": 0.1 - value}),
        )


def fingerprints(study):
    return [e.candidate.fingerprint for e in study.entries]


@pytest.mark.parametrize(
    "name", ["tpe", "random", "nsga2", pytest.param("gp", marks=pytest.mark.slow)]
)
def test_every_sampler_gives_new_candidates_and_does_not_replay_itself(tmp_path, name):
    for _ in range(2):  # the second time is a restart with the same seed
        study = open_study(tmp_path)
        grow(study, Proposer(study, suggest, (), LADDER, name, seed=3, trials=14), 7)
    assert len(set(fingerprints(study))) == 14


def test_a_restart_changes_nothing(tmp_path):
    once = open_study(tmp_path / "once")
    grow(once, Proposer(once, suggest, (), LADDER, "tpe", 5, 16), 16)
    for count in (3, 9, 4):
        study = open_study(tmp_path / "thrice")
        grow(study, Proposer(study, suggest, (), LADDER, "tpe", 5, 16), count)
    assert fingerprints(study) == fingerprints(once)


def test_seeds_depend_on_seed_and_count():
    seeds = {stable_seed(seed, asked) for seed in range(20) for asked in range(20)}
    assert len(seeds) == 400
    assert stable_seed(0, 0) == 2893166218  # sha256 of "0:0": the same in every process


def test_a_small_space_is_used_up_without_repetition(tmp_path):
    study = open_study(tmp_path)
    proposer = Proposer(study, small, (), LADDER, "tpe", 0, 20)
    for _ in range(9):
        if (p := proposer.ask()) is not None:
            study.add(p.candidate, p.params, p.distributions)
    assert proposer.ask() is None
    assert len(study.entries) == 6
    assert len(set(fingerprints(study))) == 6


def test_values_that_exclude_each_other_are_asked_again(tmp_path):
    def picky(trial):
        candidate = small(trial)
        if candidate.strata[0].options["r"] > 4:
            raise UserError("r is too large beside the others")
        return candidate

    study = open_study(tmp_path)
    proposer = Proposer(study, picky, [{"lora.r": 32}], LADDER, "random", 0, 9)
    for _ in range(3):
        p = proposer.ask()
        study.add(p.candidate, p.params, p.distributions)
    assert {e.params["lora.r"] for e in study.entries} == {1, 2, 4}
    assert proposer.ask() is None


def test_warm_starts_come_first_and_are_at_most_a_third(tmp_path):
    study = open_study(tmp_path)
    points = [{"lora.lr": 10.0**-k, "lora.r": 8} for k in range(1, 6)]
    grow(study, Proposer(study, suggest, points, LADDER, "tpe", 0, trials=9), 9)
    rates = [e.params["lora.lr"] for e in study.entries]
    assert rates[:3] == [0.1, 0.01, 0.001]
    assert 1e-4 not in rates


def test_a_partial_warm_start_leaves_the_rest_to_the_sampler(tmp_path):
    study = open_study(tmp_path)
    grow(study, Proposer(study, suggest, [{"lora.r": 4}], LADDER, "random", 0, trials=9), 1)
    assert study.entry(0).params["lora.r"] == 4
    assert 1e-5 <= study.entry(0).params["lora.lr"] <= 1e-1


def test_the_sampler_learns_from_the_highest_rung_with_ten_results(tmp_path):
    study = open_study(tmp_path)
    proposer = Proposer(study, suggest, (), LADDER, "tpe", 0, 40)
    grow(study, proposer, 12)
    for number in range(9):
        study.record_rung(
            number, 3, Measured(Outcome("ok", epoch=3), 0.9, (0.9, 0.2), {"floor": 0})
        )
    p = proposer.ask()
    study.add(p.candidate, p.params, p.distributions)  # the 13th: nothing measured yet
    seen = proposer._memory("tpe", 0)[0].trials
    assert [t.state for t in seen] == [TrialState.COMPLETE] * 12 + [TrialState.RUNNING]
    assert seen[0].values[1] == 0.1  # rung 0: nine results at rung 1 are too few
    study.record_rung(9, 3, Measured(Outcome("ok", epoch=3), 0.9, (0.9, 0.2), {"floor": 0.5}))
    study.record_attempt(10, 3, Outcome("nan", "loss"))
    study.fail(10, "nan: loss")
    seen = proposer._memory("tpe", 0)[0].trials
    states = [t.state.name for t in seen]
    # Ten at rung 1; what diverged ranks below them; what is not there yet is a constant liar.
    assert states == ["COMPLETE"] * 10 + ["PRUNED", "RUNNING", "RUNNING"]
    assert seen[0].values == [0.9, 0.2]
    assert seen[9].constraints == {"floor": 0.5}


def test_what_never_paused_is_learnt_from_at_every_rung(tmp_path):
    study = open_study(tmp_path)
    proposer = Proposer(study, suggest, (), LADDER, "tpe", 0, 40)
    grow(study, proposer, 10)
    grow(study, proposer, 1, epoch=9)  # one stretch: no value at rung 0
    assert [t.state.name for t in proposer._memory("tpe", 0)[0].trials] == ["COMPLETE"] * 11


def test_tpe_learns(tmp_path):
    study = open_study(tmp_path)
    grow(study, Proposer(study, suggest, (), LADDER, "tpe", 1, 40), 40)
    off = [abs(math.log10(e.params["lora.lr"]) + 3) for e in study.entries]
    assert sum(off[25:]) / 15 < 0.7 * sum(off[:10]) / 10


def test_nsga2_keeps_its_generations_over_restarts(tmp_path):
    for _ in range(3):
        study = open_study(tmp_path)
        grow(study, Proposer(study, suggest, (), LADDER, "nsga2", 0, 32), 10)
    key = "NSGAIISampler:generation"
    generations = [e.system[key] for e in study.entries]
    assert generations == sorted(generations)
    assert max(generations) == 3  # 30 trials in generations of 8


def test_an_unknown_sampler_is_refused():
    with pytest.raises(UserError, match='Did you mean "tpe"'):
        make_sampler("tpes", 0, 10)
    assert isinstance(make_sampler("gp", 0, 10), optuna.samplers.GPSampler)


def test_what_a_proposal_was_learned_from_is_in_the_journal(tmp_path):
    study = open_study(tmp_path)
    proposer = Proposer(study, suggest, ({"lora.r": 4},), LADDER, "tpe", 0, 40)
    for _ in range(12):
        p = proposer.ask()
        study.add(p.candidate, p.params, p.distributions, p.system, p.learned)
        number = len(study.entries) - 1
        study.record_rung(number, 1, Measured(Outcome("ok", epoch=1), 0.9, (0.9, 0.2)))
    p = proposer.ask()
    study.add(p.candidate, p.params, p.distributions, p.system, p.learned)
    noted = [t.user_attrs["proposed"] for t in study._search.trials]
    assert noted[0] == {"by": "warm start"}
    assert noted[1] == {"by": "tpe", "rung": 1, "results": 1}
    assert noted[12] == {"by": "tpe", "rung": 1, "results": 12}
