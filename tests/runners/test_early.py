"""A cluster that comes up beside the driver's own preparations."""

import threading
from types import SimpleNamespace

import pytest
import ray
from fake_worker import make_candidate, make_setup

from autopeft.errors import RunError
from autopeft.job import Job
from autopeft.runners import cluster, open_runner, worker_threads
from autopeft.runners.early import Early


def settings(**given):
    plain = {"runner": "ray", "workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.0}
    return SimpleNamespace(**{**plain, "address": "", "quiet": True, **given})


@pytest.mark.parametrize("given", [{"runner": "serial"}, {"address": "10.0.0.1:6379"}])
def test_nothing_begins_for_another_runner(given):
    early = Early(settings(**given))
    early.begin()
    assert not early.ready(1)
    early.close()
    assert not any(t.name == "autopeft-ray" for t in threading.enumerate())


def test_workers_and_their_threads(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    plain = {"workers": 0, "cpus_per_worker": 0}
    assert worker_threads(settings(**plain)) == (4, 2)
    assert worker_threads(settings(**plain, runner="serial")) == (1, 8)
    assert worker_threads(settings(workers=3, cpus_per_worker=0)) == (3, 2)
    assert worker_threads(settings(workers=3, cpus_per_worker=1)) == (3, 1)


@pytest.mark.parametrize("error", [RunError("Ray did not start: why"), ValueError("why")])
def test_ray_that_does_not_start_is_told_to_who_waits(monkeypatch, error):
    def fail(count):
        raise error

    monkeypatch.setattr(cluster, "start", fail)
    early = Early(settings())
    early.begin()
    with pytest.raises(RunError, match="Ray did not start.*why"):
        early.ready(1)
    early.close()


@pytest.mark.ray
def test_a_runner_takes_over_the_cluster_and_its_workers(capfd):
    early = Early(settings(quiet=False), "fake_worker:run")
    early.begin()
    runner = open_runner(settings(quiet=False), make_setup(threads=1), "fake_worker:run", early)
    assert "dashboard: http://127.0.0.1:" in capfd.readouterr().err
    assert not early.actors  # taken: no second worker was started
    actors = [a for a in ray.util.list_named_actors() if a.startswith("autopeft-slot")]
    assert actors == ["autopeft-slot-0"]
    job = Job("rung", make_setup(threads=1).digest(), make_candidate(), stop=1)
    runner.submit(job)
    [(_, outcome)] = runner.wait()
    assert outcome.status == "ok"
    runner.close()
    assert ray.is_initialized()  # it belongs to who began it
    early.close()
    assert not ray.is_initialized()


@pytest.mark.ray
def test_a_run_with_other_threads_starts_its_own_cluster():
    early = Early(settings(cpus_per_worker=2), "fake_worker:run")
    early.begin()
    runner = open_runner(settings(), make_setup(threads=1), "fake_worker:run", early)
    assert runner.slots == 1
    runner.close()
    assert not ray.is_initialized()
    early.close()


@pytest.mark.ray
def test_bad_input_found_later_ends_the_cluster():
    early = Early(settings(), "fake_worker:run")
    early.begin()
    early.close()
    assert not ray.is_initialized()
    early.close()
