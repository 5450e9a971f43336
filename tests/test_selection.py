"""From the front to the answer."""

from __future__ import annotations

import numpy as np
import pytest
from fake_bench import lora, make_bench, silent

from autopeft import selection
from autopeft.backbones.describe import random_backbone
from autopeft.bench import Model
from autopeft.candidate import Readout
from autopeft.entry import Entry, Measured
from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.job import Outcome
from autopeft.metrics import METRICS
from autopeft.metrics.classification import auroc
from autopeft.objective import AtLeast, Objective, Term, load_objective
from autopeft.selection import (
    by_replay,
    choose_readout,
    choose_winner,
    compare,
    evaluations,
    finalists,
    last_two,
    mean_value,
    ranking_metric,
    reference_evaluations,
    reference_values,
    repeats_of,
    replayed,
    strongest,
)
from autopeft.study import Study

REPEATS = (1, 2)


def scored_bench(tmp_path, quality, models, split="confirm", **options):
    """A bench on which the models are trained and scored; quality by model name."""
    by_print = {m.candidate.fingerprint: quality[m.name] for m in models}
    bench = make_bench(tmp_path, lambda job: by_print[job.key[0]], **options)
    bench.train(models, [0, *REPEATS], "confirm", silent)
    costs = {m.name: bench.trained[(m.candidate.fingerprint, 0)].cost for m in models}
    return bench, bench.predict(models, [0, *REPEATS], split, silent), costs


def models_of(**params):
    return [Model(name, lora(2 + i, params=p)) for i, (name, p) in enumerate(params.items())]


def test_the_best_on_confirm_wins(tmp_path):
    models = models_of(first=10, second=10, third=10)
    quality = {"first": 0.3, "second": 3.0, "third": 1.0}
    bench, scored, costs = scored_bench(tmp_path, quality, models)
    winner = choose_winner(models, costs, scored, REPEATS, "auroc", bench.audience)
    assert winner.name == "second"
    assert strongest(models, scored, REPEATS, "auroc", bench.audience).name == "second"


def test_within_one_standard_error_the_smallest_wins(tmp_path):
    models = models_of(big=1000, small=10, poor=1)
    quality = {"big": 1.5, "small": 1.5, "poor": 0.2}
    bench, scored, costs = scored_bench(tmp_path, quality, models)
    by_name = {m.name: repeats_of(scored, m.name, REPEATS) for m in models}
    best = max(("big", "small"), key=lambda n: mean_value(bench.audience, "auroc", by_name[n]))
    other = "small" if best == "big" else "big"
    gap = compare(bench.audience, "auroc", by_name[best], by_name[other])
    near = gap.value <= gap.se
    winner = choose_winner(models, costs, scored, REPEATS, "auroc", bench.audience)
    assert winner.name == ("small" if near else best)
    # The same scores under two names: certainly within one error of each other.
    twins = [Model("big", models[0].candidate), Model("twin", models[0].candidate)]
    scored = {(n, r): scored[("big", r)] for n in ("big", "twin") for r in (0, *REPEATS)}
    costs = {"big": Cost(1000, 0), "twin": Cost(10, 0)}
    assert choose_winner(twins, costs, scored, REPEATS, "auroc", bench.audience).name == "twin"
    assert (
        choose_winner(twins[::-1], costs, scored, REPEATS, "auroc", bench.audience).name == "twin"
    )


def test_only_fresh_seeds_rank(tmp_path):
    """Repeat 0 chose the finalists on search, so it may not choose among them."""
    models = models_of(a=10, b=10)
    bench, scored, costs = scored_bench(tmp_path, {"a": 2.0, "b": 0.5}, models)
    swapped = {**scored, ("a", 0): scored[("b", 0)], ("b", 0): scored[("a", 0)]}
    assert choose_winner(models, costs, swapped, REPEATS, "auroc", bench.audience).name == "a"


def test_mean_value(tmp_path):
    models = models_of(a=10)
    bench, scored, _ = scored_bench(tmp_path, {"a": 1.0}, models)
    predictions = repeats_of(scored, "a", REPEATS)
    want = np.mean([auroc(p) for p in predictions])
    assert mean_value(bench.audience, "auroc", predictions) == pytest.approx(want)
    assert mean_value(bench.audience, "worst_group_auroc", predictions) == -np.inf  # no groups


def test_ranking_falls_back_to_auroc_where_the_primary_is_undefined(tmp_path):
    models = models_of(a=10)
    fairness = load_objective("fairness")
    for groups, want in ((True, "worst_group_auroc"), (False, "auroc")):
        folder = tmp_path / str(groups)
        bench, scored, _ = scored_bench(folder, {"a": 1.0}, models, groups=groups)
        assert ranking_metric(fairness, bench.audience, scored[("a", 1)]) == want


def test_the_reference_is_the_best_baseline_s_mean_over_seeds(tmp_path):
    models = models_of(weak=10, strong=10)
    bench, _, _ = scored_bench(tmp_path, {"weak": 0.5, "strong": 2.0}, models, groups=True)
    got = reference_values(bench, models, REPEATS, load_objective("fairness"))
    for name in ("auroc", "worst_group_auroc"):
        values = []
        for repeat in REPEATS:
            outcome = bench.trained[(models[1].candidate.fingerprint, repeat)]
            predictions = bench.audience.predictions(outcome, "search", repeat)
            values.append(METRICS[name](bench.audience.evaluation(predictions, outcome.cost)))
        assert got[name] == pytest.approx(np.mean(values), rel=1e-5)


def test_with_folds_the_reference_is_the_best_baseline_on_all_of_them(tmp_path):
    models = models_of(weak=10, strong=10)
    quality = {m.candidate.fingerprint: q for m, q in zip(models, (0.5, 2.0), strict=True)}
    bench = make_bench(tmp_path, lambda job: quality[job.key[0]], folds=True)
    bench.train_folds(models, "baseline", silent)
    got = reference_values(bench, models, REPEATS, load_objective("auroc"))
    p = bench.audience.trial(bench.folds[models[1].candidate.fingerprint]).search
    assert set(p.part) == {0, 1, 2, 3, 4}
    assert got["auroc"] == pytest.approx(auroc(p), rel=1e-5)


# ---- finalists ----------------------------------------------------------------------------------


def pool_of(tmp_path, values, params=None):
    """Complete trials with given qualities: (number, evaluation)."""
    bench = make_bench(tmp_path)
    rows = bench.audience.rows["search"]
    noise = np.random.default_rng(0).normal(size=rows.label.shape)
    pool = []
    for i, value in enumerate(values):
        predictions = bench.audience.of(value * rows.label + noise, "search", 0)
        cost = Cost((params or [10] * len(values))[i], 0)
        pool.append(
            (Entry(i, lora(2 + i)), Evaluation(predictions, cost, reference={"auroc": 0.7}))
        )
    return pool


def test_finalists_are_the_rule_s_picks_one_after_another(tmp_path):
    pool = pool_of(tmp_path, [0.5, 2.0, 1.0, 3.0])
    chosen, front, feasible = finalists(pool, load_objective("auroc"), 3)
    assert [e.number for e in chosen] == [3, 1, 2]
    assert [e.number for e in front] == [3]
    assert feasible
    assert len(finalists(pool, load_objective("auroc"), 9)[0]) == 4
    assert finalists([], load_objective("auroc"), 2)[0] == []


def test_finalists_are_the_rule_s_pick_and_then_the_most_frequent(tmp_path):
    pool = pool_of(tmp_path, [0.5, 2.0, 1.0, 3.0])
    auroc_ = load_objective("auroc")
    chosen, front, _ = finalists(pool, auroc_, 3, [0.5, 0.0, 0.2, 0.3])
    assert [e.number for e in chosen] == [3, 0, 2]
    assert [e.number for e in front] == [3]
    # Where replays picked too few, the rule's own order fills up.
    chosen, _, _ = finalists(pool, auroc_, 3, [0.4, 0.0, 0.0, 0.6])
    assert [e.number for e in chosen] == [3, 0, 1]
    chosen, _, _ = finalists(pool, auroc_, 3, [0.3, 0.3, 0.4, 0.0])  # its pick is always first
    assert [e.number for e in chosen] == [3, 2, 0]


def test_a_frequent_pick_that_misses_the_floor_is_no_finalist(tmp_path):
    floor = Objective(
        terms=(Term("auroc", "maximize"),), constraints=(AtLeast("auroc", "reference"),)
    )
    pool = pool_of(tmp_path, [0.0, 3.0, 2.0])
    chosen, _, feasible = finalists(pool, floor, 3, [0.9, 0.1, 0.0])
    assert feasible
    assert [e.number for e in chosen] == [1, 2]


def test_the_last_two_are_the_best_and_whom_the_rule_would_take(tmp_path):
    models = models_of(a=1000, b=100, c=10)
    bench, scored, _ = scored_bench(tmp_path, {"a": 3.0, "b": 1.0, "c": 0.2}, models)
    costs = {"a": Cost(1000, 0), "b": Cost(100, 0), "c": Cost(10, 0)}
    args = (REPEATS, "auroc", bench.audience)
    assert [m.name for m in last_two(models, costs, scored, *args)] == ["a", "b"]
    # The same scores under a third name: within a standard error, and smaller.
    twins = [*models[:2], Model("twin", models[0].candidate)]
    scored = {**scored, **{("twin", r): scored[("a", r)] for r in (0, *REPEATS)}}
    costs["twin"] = Cost(5, 0)
    assert [m.name for m in last_two(twins, costs, scored, *args)] == ["a", "twin"]
    assert last_two(models[:1], costs, scored, *args) == models[:1]


def test_without_confirm_the_most_frequent_leads():
    models = models_of(a=1, b=1, c=1)
    share = {models[2].candidate.fingerprint: 0.6, models[1].candidate.fingerprint: 0.1}
    assert [m.name for m in by_replay(models, share)] == ["c", "b", "a"]
    assert by_replay(models, {}) == models


def test_a_replay_is_done_once_for_each_set_of_trials(tmp_path, monkeypatch):
    pool = pool_of(tmp_path, [0.5, 2.0, 1.0])
    bench = make_bench(tmp_path)
    auroc_ = load_objective("auroc")
    first = replayed(bench.study, pool, auroc_, (), 0)
    assert first.pick == 1
    monkeypatch.setattr(selection, "replay", lambda *_, **__: pytest.fail("done again"))
    assert replayed(Study(tmp_path, ("maximize",)), pool, auroc_, (), 0) == first
    monkeypatch.undo()
    assert replayed(bench.study, pool[:2], auroc_, (), 0) != first  # other trials
    assert replayed(bench.study, [], auroc_, (), 0) is None


def test_the_reference_is_measured_on_every_repeat(tmp_path):
    models = models_of(weak=10, strong=10)
    bench, _, _ = scored_bench(tmp_path, {"weak": 0.5, "strong": 2.0}, models)
    found = reference_evaluations(bench, models, REPEATS)
    for model, own in zip(models, found, strict=True):
        outcomes = [bench.trained[(model.candidate.fingerprint, r)] for r in REPEATS]
        for evaluation, outcome in zip(own, outcomes, strict=True):
            stored = bench.audience.stored(outcome, "score")
            assert np.array_equal(evaluation.search.score, stored)


def test_what_misses_the_floor_is_no_finalist_where_something_keeps_it(tmp_path):
    terms = (Term("auroc", "maximize"), Term("trainable_params", "minimize"))
    floor = Objective(terms=terms, constraints=(AtLeast("auroc", "reference - 0.01"),))
    pool = pool_of(tmp_path, [0.0, 3.0, 2.0], params=[1, 30, 20])
    chosen, front, feasible = finalists(pool, floor, 3)
    assert feasible
    assert {e.number for e in front} == {1, 2}
    assert {e.number for e in chosen} == {1, 2}
    poor = pool_of(tmp_path / "poor", [0.0, 0.1])
    chosen, _, feasible = finalists(poor, floor, 1)
    assert not feasible
    assert len(chosen) == 1


def test_only_fully_trained_trials_are_evaluated(tmp_path):
    bench = make_bench(tmp_path)
    study = bench.study
    for i in range(3):
        study.add(lora(2 + i), {}, {})
    models = [Model(str(i), lora(2 + i)) for i in range(3)]
    bench.train(models, [0], "x", silent)
    for i in (0, 1):
        outcome = bench.trained[(models[i].candidate.fingerprint, 0)]
        study.record_rung(i, outcome.epoch, Measured(outcome, 0.5, (0.5,)))
    study.complete(0)
    study.prune(1, "stopped")
    study.record_attempt(2, 9, Outcome("nan", "x"))
    study.fail(2, "x")
    found = evaluations(study, bench.audience, {"auroc": 0.6})
    assert [entry.number for entry, _ in found] == [0]
    assert found[0][1].reference == {"auroc": 0.6}
    assert found[0][1].search.repeat == 0


# ---- the probe's readout ------------------------------------------------------------------------


def test_the_readout_with_the_best_out_of_fold_auroc_is_chosen(tmp_path, monkeypatch):
    facts = random_backbone("test_vit", 32).facts
    bench = make_bench(tmp_path)
    train = bench.audience.rows["train"]
    taken = np.arange(0, 60, 2)  # a large task is thinned out
    rng = np.random.default_rng(0)
    arrays = {"row": train.index[taken], "fold": np.arange(30) % 5}
    for key, quality in {
        "2|avg|0.1": 0.1,
        "4|token|0.01": 4.0,
        "4|token|0.1": 1,
        "6|avg|0.1": 1,
    }.items():
        arrays[key] = quality * train.label[taken] + rng.normal(size=(30, 1))

    def answer(job):
        assert job.kind == "readouts"
        assert job.split == "train"
        (tmp_path / "predictions").mkdir(exist_ok=True)
        np.savez(tmp_path / "predictions" / "r.npz", **arrays)
        return Outcome("ok", predictions="r.npz")

    monkeypatch.setattr(bench.runner, "_answer", answer)
    choice = choose_readout(bench, facts, silent)
    assert (choice.block, choice.pool, choice.strength) == (4, "token", 0.01)
    assert set(choice.table) == {"2|avg", "4|token", "6|avg"}
    assert choice.table["4|token"] > 0.9
    choose_readout(bench, facts, silent)
    assert len(bench.runner.asked) == 1  # recorded


def test_folds_are_not_compared_with_each_other(tmp_path, monkeypatch):
    """Scores of two folds may lie on two scales: pairs across folds mean nothing."""
    bench = make_bench(tmp_path)
    train = bench.audience.rows["train"]
    fold = np.arange(60) % 2
    score = train.label + 100 * fold[:, None]  # perfect within a fold
    (tmp_path / "predictions").mkdir()
    np.savez(
        tmp_path / "predictions" / "r.npz", row=train.index, fold=fold, **{"6|avg|0.1": score}
    )
    monkeypatch.setattr(bench.runner, "_answer", lambda job: Outcome("ok", predictions="r.npz"))
    facts = random_backbone("test_vit", 32).facts
    assert choose_readout(bench, facts, silent).table == {"6|avg": 1.0}


def test_the_first_answer_pays_for_the_choice_among_readouts():
    """Of 20 readouts of pure noise the best looks good; chosen on other folds it does not."""
    looked, paid = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        target, fold = rng.integers(0, 2, (60, 1)).astype(float), np.arange(60) % 5
        every = [
            Predictions(
                score=rng.normal(size=(60, 1)), target=target, patient=np.arange(60), part=fold,
                groups={}, classes=("y",), kind="binary", split="train",
            )
            for _ in range(20)
        ]  # fmt: skip
        looked.append(max(auroc(p) for p in every))
        paid.append(auroc(selection._chosen_elsewhere(every)))
    assert np.mean(looked) > 0.6
    assert abs(np.mean(paid) - 0.5) < 0.05


def test_a_first_answer_of_few_patients_gives_no_interval():
    choice = selection.ReadoutChoice(6, "avg", 0.1, {"6|avg": 0.9}, {"6|avg": 0.1}, None)
    assert "too few patients" in choice.line


def test_a_probe_elsewhere_has_the_strength_that_was_chosen_there():
    strengths = {"2|avg": 1.0, "3|avg": 0.1, "2|token": 0.01, "3|token": 0.5}
    choice = selection.ReadoutChoice(3, "token", 0.5, {}, strengths)
    assert choice.strength_at(Readout(3, "avg")) == 0.1
    assert choice.strength_at(Readout(2, "token")) == 0.01
    assert choice.strength_at(Readout(1, "token")) == 0.01  # not tried: the lowest that was
