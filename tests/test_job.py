"""Jobs and outcomes: plain data, names of files, what a setup's digest covers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from autopeft.candidate import Candidate, Readout, Stratum, Train
from autopeft.evaluation import Cost
from autopeft.job import Job, Outcome, Rows, Setup

CANDIDATE = Candidate((Stratum((0, 3), ("qkv",), "lora", {"r": 4}),), Train(), Readout(4, "avg"))
ROWS = Rows(
    np.array(["a.png", "b.png", "c.png"]),
    np.array([0, 2, 5]),
    np.array(["p1", "p1", "p2"]),
    np.array([[0], [1], [np.nan]], np.float32),
    {"sex": np.array(["sex=F", "sex=F", "sex=M"])},
)
SETUP = Setup(
    "binary", ("x",), "vit", None, "sha", 32, "pad", "/images", "/cache", "/run",
    {"train": ROWS, "search": ROWS}, 3, 8, 4, "fp32", 1, 0,
)  # fmt: skip


def test_rows_are_taken_column_by_column():
    for rows in (np.array([2, 0]), np.array([True, False, True])):
        part = ROWS.take(rows)
        assert len(part) == 2
        order = [2, 0] if rows.dtype != bool else [0, 2]
        assert part.path.tolist() == ROWS.path[order].tolist()
        assert part.index.tolist() == ROWS.index[order].tolist()
        assert part.patient.tolist() == ROWS.patient[order].tolist()
        assert part.groups["sex"].tolist() == ROWS.groups["sex"][order].tolist()
        np.testing.assert_array_equal(part.label, ROWS.label[order])


def test_blind_rows_hold_no_label_and_no_group():
    blind = ROWS.blind()
    assert blind.label is None
    assert blind.groups == {}
    assert blind.path.tolist() == ROWS.path.tolist()
    assert b"sex=F" not in pickle.dumps(blind)


def test_the_digest_covers_the_rows():
    label = ROWS.label.copy()
    label[0] = 1
    others = [
        replace(ROWS, path=np.array(["a.png", "b.png", "d.png"])),
        replace(ROWS, patient=np.array(["p1", "p2", "p2"])),
        replace(ROWS, label=label),
        replace(ROWS, groups={"sex": np.array(["sex=F", "sex=M", "sex=M"])}),
        replace(ROWS, groups={"race": ROWS.groups["sex"]}),
        ROWS.take(np.array([0, 1])),
    ]
    digests = {replace(SETUP, rows={"train": r, "search": ROWS}).digest() for r in others}
    digests |= {replace(SETUP, rows={"train": ROWS}).digest(), SETUP.digest()}
    assert len(digests) == len(others) + 2
    assert pickle.loads(pickle.dumps(SETUP)).digest() == SETUP.digest()


def test_the_digest_does_not_cover_where_files_lie():
    moved = replace(SETUP, images="/x", cache="/y", run_dir="/z", weights="/w", offline=True)
    assert moved.digest() == SETUP.digest()


def test_names_tell_one_training_from_another():
    rung = Job("rung", "s", CANDIDATE, 2, stop=3)
    fingerprint = CANDIDATE.fingerprint
    assert rung.key == (fingerprint, 2, "all")
    assert rung.name == f"{fingerprint}-2-all-3"
    others = [
        replace(rung, repeat=1),
        replace(rung, part="fold:1"),
        replace(rung, stop=9),
        replace(rung, kind="predict", split="confirm"),
        replace(rung, kind="predict", split="search"),
        replace(rung, kind="test", split="test"),
        Job("readouts", "s", split="train"),
    ]
    names = {job.name for job in [rung, *others]}
    assert len(names) == len(others) + 1
    assert not any(set(name) & set(":/ ") for name in names)
    # A second try of the same training has its name.
    assert replace(rung, start=1, state="x", micro_batch=4).name == rung.name


def test_outcomes_are_plain_data():
    whole = Outcome("ok", "", 3, "p.npz", Cost(10, 40, 1.5, 60), "s", 0.25, {"a": 1})
    for outcome in (whole, Outcome("oom", "no memory")):
        assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome


def test_jobs_load_no_torch():
    code = "import sys, autopeft.job; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
