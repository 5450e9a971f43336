"""The simulated worker: deterministic, plausible, and plainly a simulation."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import optuna
import pytest

from autopeft import simulated
from autopeft.errors import UserError
from autopeft.job import Job
from autopeft.runners.serial import SerialRunner
from autopeft.settings import Settings


def candidates(count, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [simulated.suggest(study.ask()) for _ in range(count)]


def job(candidate, stop=9, start=0, **changes):
    state = "before" if start else None
    return Job("rung", "s", candidate, start=start, stop=stop, state=state, **changes)


def fates(count=400, micro_batch=0, **world):
    made = simulated.World(**world)
    jobs = [job(c, micro_batch=micro_batch) for c in candidates(count)]
    return Counter(made.fate(0, j) for j in jobs)


def test_it_says_what_it_is(tmp_path):
    outcome = simulated.run(simulated.make_setup(tmp_path), job(candidates(1)[0]))
    assert outcome.extra["simulated"] is True
    real = replace(simulated.make_setup(tmp_path), simulated=None)
    with pytest.raises(UserError, match="the setup is for real training"):
        simulated.run(real, job(candidates(1)[0]))
    assert "simulated" not in {field.name for field in fields(Settings)}
    assert real.digest() != simulated.make_setup(tmp_path).digest()


def test_it_loads_no_torch_no_ray_no_optuna():
    code = "import sys, autopeft.simulated\n"
    code += "sys.exit(' '.join({'torch', 'ray', 'optuna'} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_answer_depends_on_seed_and_content_alone(tmp_path):
    first, second = candidates(2)
    setup = simulated.make_setup(tmp_path, noise=0.02)
    answer = simulated.run(setup, job(first))
    simulated.run(setup, job(second))
    assert simulated.run(setup, job(first)) == answer
    for other in (
        simulated.run(simulated.make_setup(tmp_path, seed=1, noise=0.02), job(first)),
        simulated.run(setup, job(first, repeat=1)),
        simulated.run(setup, job(first, part="fold:1")),
        simulated.run(setup, job(second)),
    ):
        assert other.extra["auroc"] != answer.extra["auroc"]


def test_curves_are_plausible(tmp_path):
    setup = simulated.make_setup(tmp_path)
    ends, starts = [], []
    for candidate in candidates(200):
        true = [simulated.curve(candidate, epoch) for epoch in (0, 1, 3, 9, 100)]
        assert true[0] == 0.5
        assert true == sorted(true)
        low = simulated.run(setup, job(candidate, 1))
        top = simulated.run(setup, job(candidate, 9, 3))
        assert top.extra["worst_group_auroc"] < top.extra["auroc"]
        assert top.cost.images == 6 * low.cost.images
        starts.append(low.extra["auroc"])
        ends.append(top.extra["auroc"])
    assert 0.6 < np.median(ends) < 0.85
    assert 0.85 < max(ends) < 0.95
    ranks = [np.argsort(np.argsort(v)) for v in (starts, ends)]
    assert 0.5 < np.corrcoef(*ranks)[0, 1] < 0.97  # low rungs inform, and sometimes mislead


def test_failures_come_as_often_as_asked():
    assert fates() == {"ok": 400}
    found = fates(nan=0.1, oom=0.1, error=0.1, death=0.1, doom=0.1)
    assert all(20 <= found[name] <= 60 for name in ("nan", "oom", "error", "death", "doom"))
    assert fates(oom=1.0) == {"oom": 400}
    assert fates(oom=1.0, micro_batch=16) == {"ok": 400}


def test_failures_are_those_of_a_real_worker(tmp_path):
    def answer(**world):
        runner = SerialRunner(simulated.make_setup(tmp_path, **world), "autopeft.simulated:run")
        runner.submit(job(candidates(1)[0]))
        return runner.wait()[0][1]

    assert answer(nan=1).status == "nan"
    assert answer(oom=1).status == "oom"
    failed = answer(error=1)
    assert (failed.status, failed.reason[:27]) == ("error", "ValueError: a simulated bug")


@pytest.mark.parametrize(("name", "codes"), [("death", [7, 0]), ("doom", [7, 7])])
def test_a_worker_dies_once_or_for_ever(tmp_path, name, codes):
    code = (
        "import sys\nsys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from autopeft import simulated\n"
        "from autopeft.candidate import Candidate, Readout, Stratum, Train\n"
        "from autopeft.job import Job\n"
        "c = Candidate((Stratum((6, 11), ('qkv',), 'lora', {'r': 8}),), Train(),"
        " Readout(12, 'avg'))\n"
        f"setup = simulated.make_setup(Path(sys.argv[1]), {name}=1)\n"
        "simulated.run(setup, Job('rung', 's', c, stop=1))\n"
    )
    done = [subprocess.run([sys.executable, "-c", code, tmp_path], check=False) for _ in codes]
    assert [d.returncode for d in done] == codes


def test_the_virtual_runner_gives_what_the_serial_one_gives(tmp_path):
    world = {"noise": 0.02, "nan": 0.05, "oom": 0.1, "error": 0.05}
    setup = simulated.make_setup(tmp_path, **world)
    serial = SerialRunner(setup, "autopeft.simulated:run")
    virtual = simulated.VirtualRunner(setup, slots=7)
    found = [
        simulated.search(tmp_path / name, runner, trials=40).entries
        for name, runner in (("serial", serial), ("virtual", virtual))
    ]
    assert [e.candidate for e in found[0]] == [e.candidate for e in found[1]]
    shared = 0
    for ours, theirs in zip(*found, strict=True):
        for epoch in ours.rungs.keys() & theirs.rungs.keys():
            assert ours.rungs[epoch] == theirs.rungs[epoch]
            shared += 1
    assert shared >= 40
    assert virtual.now > 0
    assert {e.state for e in found[1]} == {"complete", "pruned", "fail"}


def test_virtual_workers_work_side_by_side(tmp_path):
    ends = []
    for slots in (1, 8):
        runner = simulated.VirtualRunner(simulated.make_setup(tmp_path), slots)
        simulated.search(tmp_path / str(slots), runner, trials=24)
        ends.append(runner.now)
    assert ends[1] < ends[0] / 3


def test_folds_are_rungs_too(tmp_path):
    setup = simulated.make_setup(tmp_path, noise=0.02, nan=0.02, death=0.1)
    runner = simulated.VirtualRunner(setup, slots=4)
    study = simulated.search(tmp_path / "run", runner, trials=30, epochs=4, folds=5)
    complete = [e for e in study.entries if e.state == "complete"]
    assert complete
    for entry in complete:
        assert sorted(entry.rungs) == [1, 2, 3, 4, 5]
        assert all(m.outcome.epoch == 4 for m in entry.rungs.values())
        folds = [m.outcome.extra["auroc"] for m in entry.rungs.values()]
        assert len(set(folds)) == 5
        assert entry.last.value == pytest.approx(np.mean(folds))


def test_a_search_goes_on_where_it_stopped(tmp_path):
    runner = simulated.VirtualRunner(simulated.make_setup(tmp_path), slots=3)
    simulated.search(tmp_path / "run", runner, trials=10)
    before = runner.now
    study = simulated.search(tmp_path / "run", runner, trials=10)
    assert (runner.now, len(study.entries)) == (before, 10)
    assert len(simulated.search(tmp_path / "run", runner, trials=15).entries) == 15
