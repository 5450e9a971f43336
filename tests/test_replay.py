"""The choice, repeated: against plain loops over copied rows, and against a known truth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.evaluation import Cost, Evaluation, Predictions
from autopeft.metrics.classification import operating_points
from autopeft.metrics.groups import patient_index
from autopeft.metrics.resampling import patient_weights
from autopeft.objective import AtLeast, Objective, Term, dto, lexicographic, load_objective
from autopeft.redrawn import how
from autopeft.replay import RESAMPLES, Replay, replay
from autopeft.rules import Rule

GROUPS = {"sex": ("sex=F", "sex=M")}


def predictions(score, target, patient=None, part=None, groups=None):
    n = len(target)
    return Predictions(
        score=np.asarray(score, float).reshape(n, -1),
        target=np.asarray(target, float).reshape(n, -1),
        patient=np.arange(n) if patient is None else patient,
        part=np.zeros(n, int) if part is None else part,
        groups=groups or {},
        classes=tuple(f"c{i}" for i in range(np.asarray(score).reshape(n, -1).shape[1])),
        kind="binary",
        split="search",
    )


def pool(seed, candidates, patients=30, parts=1, groups=False, spread=1.0, images=2):
    """Evaluations of candidates of unequal quality on the same rows."""
    rng = np.random.default_rng(seed)
    patient = np.arange(patients * images) // images
    target = (patient % 2).astype(float)  # cells alike: each group is scored from 10 + 10 on
    sex = np.array(["sex=F", "sex=M"])[patient // 2 % 2]
    found = []
    for _ in range(candidates):
        quality = spread * rng.random()
        p = predictions(
            quality * target + rng.normal(size=len(target)).round(1),  # with ties
            target,
            patient,
            patient // 4 % parts,
            {"sex": sex} if groups else {},
        )
        cost = Cost(int(rng.integers(1, 5)), 0)
        counted = GROUPS if groups else {}
        found.append(Evaluation(p, cost, counted, {"auroc": 0.6}, operating_points(p)))
    return found


# ---- plain loops --------------------------------------------------------------------------------


def slow_auroc(score, target, part):
    """Pairs of one part, one after another."""
    won = pairs = 0.0
    for i in np.flatnonzero(target == 1):
        below = score[(target == 0) & (part == part[i])]
        won += (score[i] > below).sum() + (score[i] == below).sum() / 2
        pairs += len(below)
    return won / pairs if pairs else None


def slow_values(evaluation, rows):
    """AUROC, the lower of the two groups' and the size, on copied rows."""
    p = evaluation.search
    score, target, part = p.score[rows, 0], p.target[rows, 0], p.part[rows]
    found = {"auroc": slow_auroc(score, target, part)}
    found["trainable_params"] = float(evaluation.cost.trainable_params)
    if p.groups:
        own = [p.groups["sex"][rows] == g for g in GROUPS["sex"]]
        each = [slow_auroc(score[m], target[m], part[m]) for m in own]
        found["worst_group_auroc"] = None if None in each else min(each)
    return found


def slow_pick(tables, objective, margin=0.01, reference=0.6):
    """Constraints, front and rule, spelled out; None where nothing is defined."""
    names = [t.name for t in objective.terms]
    known = [i for i, t in enumerate(tables) if all(t[n] is not None for n in names)]
    if not known:
        return None
    excess = [
        sum(
            max(0.0, (reference - margin) - t[c.metric]) / (reference - margin)
            if t[c.metric] is not None
            else 1e12
            for c in objective.constraints
        )
        for t in tables
    ]
    best = min(excess[i] for i in known)
    known = [i for i in known if excess[i] <= max(0.0, best)]
    sign = {t.name: 1 if t.direction == "maximize" else -1 for t in objective.terms}

    def beats(a, b):
        pairs = [(sign[n] * tables[a][n], sign[n] * tables[b][n]) for n in names]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    front = [i for i in known if not any(beats(j, i) for j in known)]
    rows = [[tables[i][k.name] for k in objective.choose.keys] for i in front]
    return front[objective.choose.pick(rows, margin)]


def slow_replay(evaluations, objective, n, seed, metric):
    """The same draws, row by row: picks, and AUROC of pick and first pick on those left out."""
    p = evaluations[0].search
    unit, patients = patient_index(p)
    part = p.part[np.unique(unit, return_index=True)[1]]
    all_rows = np.arange(len(unit))
    first = slow_pick([slow_values(e, all_rows) for e in evaluations], objective)
    picks, scored = [], []
    for block in patient_weights(patients, len(unit), n, seed, part):
        for b in range(block.shape[1]):
            rows = np.repeat(all_rows, block[unit, b].astype(int))
            out = np.flatnonzero(block[unit, b] == 0)
            pick = slow_pick([slow_values(e, rows) for e in evaluations], objective)
            picks.append(pick)
            if pick is not None:
                both = [slow_values(evaluations[i], out)[metric] for i in (pick, first)]
                scored += [both] if None not in both else []
    return first, picks, np.array(scored)


OBJECTIVES = {
    "one": (Objective(terms=(Term("auroc"),)), "auroc"),
    "floor": (
        Objective(
            terms=(Term("auroc"), Term("trainable_params")),
            constraints=(AtLeast("auroc", "reference - margin"),),
            choose=dto("auroc", "trainable_params"),
        ),
        "auroc",
    ),
    "groups": (load_objective("worst_group"), "worst_group_auroc"),
    "slack": (
        Objective(
            terms=(Term("auroc"), Term("worst_group_auroc")),
            choose=lexicographic(("auroc", 0.05), "worst_group_auroc", "trainable_params"),
        ),
        "auroc",
    ),
}


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(sorted(OBJECTIVES)),
    candidates=st.integers(1, 5),
    parts=st.sampled_from([1, 2]),
)
def test_it_is_what_plain_loops_find(seed, name, candidates, parts):
    objective, metric = OBJECTIVES[name]
    evaluations = pool(seed, candidates, 44, parts, groups=True, images=1)
    n = 12
    first, picks, scored = slow_replay(evaluations, objective, n, seed, metric)
    found = replay(evaluations, objective, n=n, seed=seed)
    if first is None:
        assert found is None
        return
    assert found.pick == first
    counts = np.bincount([p for p in picks if p is not None], minlength=candidates)
    assert found.share == pytest.approx((counts / max(1, counts.sum())).tolist())
    assert found.resamples == n
    if len(scored) < max(2, n / 2):
        assert metric not in found.corrected
        return
    own, other = scored.T
    naive = slow_values(evaluations[first], np.arange(len(evaluations[0].search.part)))[metric]
    corrected = found.corrected[metric]
    assert corrected.naive == pytest.approx(naive)
    assert corrected.optimism == pytest.approx((other - own).mean(), abs=1e-12)
    assert corrected.value == pytest.approx(naive - (other - own).mean())
    low, high = np.quantile(own + naive - other.mean(), [0.025, 0.975])
    assert (corrected.low, corrected.high) == pytest.approx((low, high))
    assert corrected.dropped == n - len(scored)


# ---- what it is for -----------------------------------------------------------------------------


def test_equal_candidates_are_lucky_and_the_replay_knows_it():
    """Forty candidates of one true AUROC: the best looks better; corrected, it does not."""
    truth = 0.76025  # of normal scores one standard deviation apart
    naive, corrected, inside = [], [], 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        target = np.arange(120) % 2
        shared = rng.normal(size=120)
        evaluations = [
            Evaluation(
                predictions(target + 0.8 * shared + 0.6 * rng.normal(size=120), target), Cost(k, 0)
            )
            for k in range(40)
        ]
        found = replay(evaluations, load_objective("auroc"), n=200, seed=seed).corrected["auroc"]
        naive.append(found.naive - truth)
        corrected.append(found.value - truth)
        inside += found.low <= truth <= found.high
    assert np.mean(naive) > 0.03
    assert abs(np.mean(corrected)) < 0.4 * np.mean(naive)
    assert inside == 12  # of a third of the patients: wide


def test_a_lowest_value_of_few_patients_is_no_optimism():
    """One candidate was chosen from nobody: its worst group pays nothing for being picked."""
    evaluations = pool(3, 1, 200, groups=True)
    found = replay(evaluations, load_objective("worst_group"), n=200)
    assert found.corrected["worst_group_auroc"].optimism == pytest.approx(0, abs=1e-12)
    assert found.share == (1.0,)


def test_who_clearly_leads_is_always_picked():
    evaluations = [*pool(0, 3, spread=0.1), *pool(0, 1, spread=0.1)]
    best = evaluations[1].search
    evaluations[1] = replace(evaluations[1], search=replace(best, score=best.target * 9.0))
    found = replay(evaluations, load_objective("auroc"), n=100)
    assert found.pick == 1
    assert found.share[1] == 1.0
    assert found.corrected["auroc"].optimism == 0


def test_the_reference_is_measured_on_the_same_resamples():
    """A candidate a hair above the baseline meets the floor in every resample, not in half."""
    (one,) = pool(1, 1, 100, spread=1.0)
    objective = Objective(terms=(Term("auroc"),), constraints=(AtLeast("auroc", "reference"),))
    value = replay([one], load_objective("auroc"), n=2).corrected["auroc"].naive
    one = replace(one, reference={"auroc": value - 1e-9})
    moved = replay([one], objective, [[one.search]], n=200)
    frozen = replay([one], objective, n=200)
    assert moved.feasible == 1.0
    assert 0.3 < frozen.feasible < 0.7


def test_the_reference_is_the_best_baseline_s_mean():
    weak, strong, other = pool(5, 3, 200, spread=2.0)
    objective = Objective(terms=(Term("auroc"),), constraints=(AtLeast("auroc", "reference"),))
    alone = replay([other], objective, [[strong.search]], n=100).feasible
    best = replay([other], objective, [[weak.search], [strong.search]], n=100).feasible
    assert best <= alone
    twice = replay([other], objective, [[strong.search, strong.search]], n=100).feasible
    assert twice == alone


def test_folds_are_drawn_apart():
    """Patients of each fold as many as there are, and pairs inside a fold alone."""
    part = np.repeat([0, 1, 2], [5, 9, 2])
    for weight in patient_weights(16, 16, 50, 0, part):
        for k in range(3):
            assert (weight[part == k].sum(axis=0) == (part == k).sum()).all()
    whole = next(iter(patient_weights(16, 16, 50, 0)))
    assert (whole == next(iter(patient_weights(16, 16, 50, 0, np.zeros(16))))).all()
    shifted = pool(2, 2, 60, parts=2, spread=3.0)
    moved = [
        replace(e, search=replace(e.search, score=e.search.score + 50.0 * e.search.part[:, None]))
        for e in shifted
    ]
    a, b = (replay(es, load_objective("auroc"), n=50) for es in (shifted, moved))
    assert a == b


def test_the_same_every_time_and_through_json():
    evaluations = pool(7, 4, 60, groups=True)
    objective = load_objective("fairness")
    found = replay(evaluations, objective, seed=3)
    assert found.resamples == RESAMPLES
    assert replay(evaluations, objective, seed=3) == found
    assert replay(evaluations, objective, seed=4) != found
    assert Replay.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert sum(found.share) == pytest.approx(1)


# ---- what knows no weights ----------------------------------------------------------------------


def mean_score(evaluation):
    """A user's own metric."""
    return float(np.mean(evaluation.search.score[evaluation.search.target == 1]))


def test_a_user_s_function_is_computed_on_copies_and_said():
    evaluations = pool(0, 3, 40)
    objective = Objective(
        terms=(Term(mean_score, "maximize"),), choose=Rule("x", (Term("auroc"),))
    )
    found = replay(evaluations, objective)
    assert found.resamples == 200
    assert found.notes == ("200 replays instead of 1,000: mean_score takes long to repeat",)
    known = replay(evaluations, load_objective("auroc"))
    assert known.notes == ()


def test_a_user_s_rule_sees_evaluations():
    def second(front):
        assert all(len(e.search.target) == 80 for e in front)
        return len(front) - 1

    evaluations = pool(0, 3, 40)
    terms = (Term("auroc"), Term("trainable_params"))
    found = replay(evaluations, Objective(terms=terms, choose=second), n=30)
    assert found.resamples == 30
    assert sum(found.share) == pytest.approx(1)


def test_copies_and_weights_agree():
    """The same metric as a function: the same draws give the same picks."""

    def by_function(evaluation):
        from autopeft.metrics.classification import auroc

        return auroc(evaluation.search)

    evaluations = pool(11, 4, 50)
    named = Objective(terms=(Term("auroc"),), choose=Rule("x", (Term("auroc"),)))
    own = Objective(
        terms=(Term(by_function, "maximize"),),
        choose=Rule("x", (Term(by_function, "maximize"),)),
    )
    a, b = (replay(evaluations, o, n=60) for o in (named, own))
    assert a.share == b.share
    assert a.corrected == b.corrected


def test_how_each_metric_follows():
    assert how("auroc") == how("worst_group_auroc") == how("brier") == "weighted"
    assert how("memorization") == how("trainable_params") == how("generalization_gap") == "held"
    assert how(mean_score) == how("ece") == "copied"


def test_memorization_keeps_its_value_and_it_is_said(monkeypatch):
    import autopeft.redrawn

    evaluations = pool(0, 3, 40)
    monkeypatch.setattr(autopeft.redrawn, "measure", lambda m, e: 0.1 * e.cost.trainable_params)
    objective = load_objective("memorization")
    monkeypatch.setattr(Objective, "values", lambda self, e: (0.5, 0.1 * e.cost.trainable_params))
    evaluations = [replace(e, reference={"auroc": 0.1}) for e in evaluations]
    found = replay(evaluations, objective, n=20)
    assert found.notes == ("memorization keeps its value in all replays: it is of other patients",)


def test_a_resample_without_a_positive_misses_no_constraint():
    """Of four patients some draws hold one label only: nothing is picked there, nothing missed."""
    found = replay(pool(0, 2, 4, images=1), load_objective("auroc"), n=200)
    assert found.feasible == 1.0
    assert sum(found.share) == pytest.approx(1)


def test_nothing_to_choose_from():
    assert replay([], load_objective("auroc")) is None
    one = pool(0, 1)[0]
    same = replace(one, search=replace(one.search, target=np.ones_like(one.search.target)))
    assert replay([same], load_objective("auroc")) is None


def test_other_rows_are_refused():
    evaluations = [*pool(0, 1), *pool(1, 1, 31)]
    with pytest.raises(ValueError, match="not on the same rows"):
        replay(evaluations, load_objective("auroc"))
