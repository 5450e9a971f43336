"""Hashes of stored files, taken when they are recorded."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from fake_bench import lora, make_bench, silent

from autopeft import seals
from autopeft.bench import Model
from autopeft.errors import RunError
from autopeft.job import Outcome
from autopeft.study import Study


@pytest.fixture
def recorded(tmp_path):
    """A journal with two trainings, and their files."""
    bench = make_bench(tmp_path)
    bench.train([Model("a", lora(2)), Model("b", lora(4))], [0], "baseline", silent)
    return tmp_path


def files(folder):
    return sorted((folder / "predictions").glob("*.npz"))


def test_the_journal_holds_the_hash_of_each_file(recorded):
    again = Study(recorded, ("maximize",))
    found = {o.predictions: o.sha256 for o in again.outcomes}
    assert found == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files(recorded)}
    assert len(found) == 2
    seals.refuse_changed(recorded, again.outcomes)


def test_an_edited_file_is_refused(recorded):
    outcomes = Study(recorded, ("maximize",)).outcomes
    file = files(recorded)[1]
    with np.load(file) as stored:
        score = stored["score"]
    score[0, 0] += 1e-3
    np.savez(file, score=score)
    assert seals.changed(recorded, outcomes) == [file.name]
    with pytest.raises(RunError, match=f"{file.name} changed since the run recorded"):
        seals.refuse_changed(recorded, outcomes)


def test_two_swapped_files_are_refused(recorded):
    outcomes = Study(recorded, ("maximize",)).outcomes
    a, b = files(recorded)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert seals.changed(recorded, outcomes) == [a.name, b.name]


def test_a_lost_file_is_made_again_and_recorded_again(recorded):
    file = files(recorded)[0]
    file.unlink()
    assert seals.changed(recorded, Study(recorded, ("maximize",)).outcomes) == []
    bench = make_bench(recorded, quality=lambda job: 2.0)  # other bits, as on another machine
    bench.train([Model("a", lora(2)), Model("b", lora(4))], [0], "baseline", silent)
    assert file.exists()
    seals.refuse_changed(recorded, Study(recorded, ("maximize",)).outcomes)


def test_an_outcome_without_a_file_stays_as_it_is(tmp_path):
    for outcome in (Outcome("nan"), Outcome("ok", predictions="gone.npz")):
        assert seals.sealed(tmp_path, outcome).sha256 is None


def test_what_a_dashboard_adds_to_the_journal_is_told_apart(recorded):
    seal = seals.journal(recorded)
    path = recorded / "study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 2}\n')
    assert seals.journal_holds(recorded, seal)
    path.write_bytes(whole.replace(b"baseline a", b"baseline b"))
    assert not seals.journal_holds(recorded, seal)
    path.write_bytes(whole[:-5])
    assert not seals.journal_holds(recorded, seal)


def test_written_lists_a_run_s_files(tmp_path):
    for name in ("settings.yaml", "best/a.json", "baselines/x/b.json", "predictions/p.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = seals.written(tmp_path)
    assert set(found) == {"settings.yaml", "best/a.json", "baselines/x/b.json"}
    assert found["best/a.json"] == hashlib.sha256(b"best/a.json").hexdigest()
