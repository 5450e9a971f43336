"""The Ray runner gives what the serial one gives, and survives the death of a worker."""

import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from fake_worker import BrokenWorker, SlowWorker, make_candidate, make_setup

from autopeft.errors import RunError, UserError
from autopeft.job import Job
from autopeft.runners import open_runner

sys.path.insert(0, str(Path(__file__).parents[1]))

pytestmark = pytest.mark.ray


def start(workers=1, trouble=None, function="fake_worker:run", quiet=True, gpus=0.0):
    settings = SimpleNamespace(
        runner="ray", workers=workers, gpus_per_worker=gpus, address="", quiet=quiet
    )
    return open_runner(settings, make_setup(precision=trouble), function)


def wait_for(runner, slots):
    while runner.slots < slots:
        assert runner.wait() == []


def test_one_worker_gives_exactly_the_serial_study(tmp_path, monkeypatch, capfd):
    from fake_driver import drive, make_engine

    from autopeft.runners.serial import SerialRunner

    monkeypatch.chdir(tmp_path)  # workers find the package from any folder
    lines, entries = {}, {}
    for name in ("serial", "ray"):
        serial = SerialRunner(make_setup(), "fake_worker:run")
        runner = serial if name == "serial" else start(quiet=False)
        said = []
        engine = make_engine(tmp_path / name, "tpe", trials=18)
        drive(engine, runner, said.append)
        runner.close()
        lines[name], entries[name] = said, engine.study.entries
    assert lines["ray"] == lines["serial"]
    assert entries["ray"] == entries["serial"]
    assert "dashboard: http://127.0.0.1:" in capfd.readouterr().err
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster():
    """A cluster that was there before the runner: it stays when the runner closes."""
    ray.init(
        address="local",  # also where a cluster of somebody else was left behind
        num_cpus=4,
        num_gpus=1,  # believed, not checked
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    )
    yield
    assert ray.is_initialized()
    ray.shutdown()


@pytest.fixture
def opened(cluster):
    """Opens runners on that cluster, and closes them."""
    runners = []

    def opener(*args, **kwargs):
        runners.append(start(*args, **kwargs))
        return runners[-1]

    yield opener
    for runner in runners:
        runner.close()


def test_two_workers_train_the_same_candidates_to_the_same_values(opened, tmp_path):
    from fake_driver import drive, make_engine

    from autopeft.runners.serial import SerialRunner

    found = {}
    for name in ("serial", "ray"):
        serial = SerialRunner(make_setup(), "fake_worker:run")
        engine = make_engine(tmp_path / name, "random", trials=18)
        drive(engine, serial if name == "serial" else opened(2))
        found[name] = engine.study.entries
    assert [e.candidate for e in found["ray"]] == [e.candidate for e in found["serial"]]
    for ours, theirs in zip(found["ray"], found["serial"], strict=True):
        for epoch in ours.rungs.keys() & theirs.rungs.keys():
            assert ours.rungs[epoch] == theirs.rungs[epoch]


def test_a_dead_worker_is_an_outcome_and_is_replaced(opened):
    runner = opened(1, "die once")
    runner.submit(Job("rung", "s", make_candidate(), stop=1), "00000-lora-e1")
    [(job, outcome)] = runner.wait()
    assert outcome.status == "error"
    assert outcome.reason.startswith("worker died")
    assert "\n" not in outcome.reason
    assert runner.slots == 0
    wait_for(runner, 1)
    runner.submit(Job("rung", "s", make_candidate(), start=1, stop=3))
    [(job, outcome)] = runner.wait()
    assert (job.stop, outcome.status) == (3, "ok")


def test_a_worker_that_grows_is_replaced(opened, capfd):
    runner = opened(1, "leak", quiet=False)
    pids = []
    for stop in (1, 3, 9):
        runner.submit(Job("rung", "s", make_candidate(), stop=stop))
        [(_, outcome)] = runner.wait()
        pids.append(outcome.extra["pid"])
        wait_for(runner, 1)
    assert pids[0] == pids[1] != pids[2]  # the second job grew by 400 MB
    assert re.search(r"slot 0 grew from \d+ to \d+ MB: replaced", capfd.readouterr().err)


def test_two_halves_share_a_gpu_and_a_third_finds_no_place(opened, capfd, monkeypatch):
    monkeypatch.setattr("autopeft.runners.ray._PATIENCE_SECONDS", 0.1)
    runner = opened(3, "leak", gpus=0.5, quiet=False)
    wait_for(runner, 2)
    for stop in (1, 3):
        runner.submit(Job("rung", "s", make_candidate(), stop=stop))
    done = runner.wait()
    while len(done) < 2:
        done += runner.wait()
    assert [o.extra["gpu"] for _, o in done] == ["0", "0"]
    assert len({o.extra["pid"] for _, o in done}) == 2
    assert runner.wait() == []
    assert runner.slots == 2
    said = capfd.readouterr().err.splitlines()
    waits = "the others wait for a place: each needs 1 CPU and 0.5 GPU"
    assert said.count(f"2 of 3 workers have started; {waits}") == 1


@pytest.mark.parametrize(("kind", "said"), [(SlowWorker, ""), (BrokenWorker, "on this node")])
def test_a_replacement_that_does_not_start_keeps_nobody_waiting(
    opened, capfd, kind, said, monkeypatch
):
    runner = opened(2, "die once", quiet=False)
    wait_for(runner, 2)
    monkeypatch.setattr("autopeft.runners.worker.Worker", kind)
    runner.submit(Job("rung", "s", make_candidate(), stop=1))  # this one dies
    [(_, outcome)] = runner.wait()
    assert outcome.reason.startswith("worker died")
    started = time.monotonic()
    while time.monotonic() - started < 3 or (said and said not in capfd.readouterr().err):
        runner.submit(Job("rung", "s", make_candidate(), start=1, stop=3))
        [(_, outcome)] = runner.wait()
        assert outcome.status == "ok"
        assert runner.slots == 1
        assert time.monotonic() - started < 60


def test_another_version_of_autopeft_is_refused(opened, monkeypatch):
    monkeypatch.setattr("autopeft.runners.worker.__version__", "0.0.1")
    with pytest.raises(
        RunError, match=r"cannot start: node .* has autopeft .*, the driver 0\.0\.1"
    ):
        opened(1)


def test_failures_are_the_same_as_in_the_serial_runner(opened):
    runner = opened(1, "raise")
    runner.submit(Job("rung", "s", make_candidate(), stop=1))
    [(_, outcome)] = runner.wait()
    assert outcome.reason.startswith("ValueError: two lines (fake_worker.py:")
    runner.close()
    runner = opened(1, "user")
    runner.submit(Job("rung", "s", make_candidate(), stop=1))
    with pytest.raises(UserError, match=r"^a\.png: image cannot be read\. Remove it\.$"):
        runner.wait()


def test_a_worker_that_cannot_start_is_said_in_one_line(opened):
    with pytest.raises(RunError, match=r"^a worker cannot start: .*no_such_module"):
        opened(1, function="no_such_module:run")
