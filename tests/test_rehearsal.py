"""An objective that cannot be measured on these patients is refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopeft.bench import Audience
from autopeft.errors import UserError
from autopeft.job import Rows
from autopeft.objective import AtLeast, Objective, Term, overall
from autopeft.rehearsal import rehearse


def audience(patients=300, positives=100):
    label = np.zeros((patients, 1), np.float32)
    label[:positives] = 1
    ids = np.array([f"p{i}" for i in range(patients)])
    rows = Rows(ids, np.arange(patients), ids, label, {})
    return Audience(Path("runs/x"), ("x",), "binary", {"search": rows}, {}, 0.01, "", 1)


def objective(*terms, **more):
    floor = (AtLeast("auroc", "reference - margin"),)
    return Objective(
        terms=terms, rung="auroc", choose=overall, primary="auroc", constraints=floor, **more
    )


def test_what_can_be_measured_passes():
    rehearse(objective(Term("auroc"), Term("ece")), audience(), "x")
    rehearse(objective(Term("auroc"), Term("train_seconds")), audience(), "x")


def test_a_term_that_needs_more_patients_is_refused():
    with pytest.raises(UserError, match=r"--objective calibration: ece: .* on these 150 search"):
        rehearse(objective(Term("auroc"), Term("ece")), audience(150), "calibration")


def test_with_folds_everyone_in_them_counts():
    one = audience(150, positives=50).rows["search"]
    shifted = [replace(one, patient=np.char.add(one.patient, f"-{k}")) for k in range(5)]
    folds = replace(audience(150), rows={"search": one}, folds=tuple(shifted))
    rehearse(objective(Term("auroc"), Term("brier")), folds, "x")
    with pytest.raises(UserError, match="ece: .* on these 750 search"):  # each fold has too few
        rehearse(objective(Term("auroc"), Term("ece")), folds, "calibration")


def test_one_label_alone_is_refused():
    with pytest.raises(UserError, match="auroc: .* undefined"):
        rehearse(objective(Term("auroc")), audience(positives=0), "auroc")


def test_a_users_function_is_tried():
    def broken(evaluation):
        return evaluation.serach

    def silent(evaluation):
        return None

    with pytest.raises(UserError, match="metric broken failed: AttributeError"):
        rehearse(objective(Term("auroc"), Term(broken, "maximize")), audience(), "own.py")
    with pytest.raises(UserError, match="silent; it is undefined"):
        rehearse(objective(Term("auroc"), Term(silent, "maximize")), audience(), "own.py")


def test_memorization_is_not_measured_without_members():
    terms = (Term("auroc"), Term("memorization"))
    rehearse(objective(*terms, needs=("memorization",)), audience(), "memorization")
