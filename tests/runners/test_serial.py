"""The serial runner, and what every runner does with a failing worker function."""

from types import SimpleNamespace

import pytest
from fake_worker import make_candidate, make_setup

from autopeft.errors import UserError
from autopeft.job import Job
from autopeft.runners import open_runner, resolve
from autopeft.runners.serial import SerialRunner

SERIAL = SimpleNamespace(runner="serial", workers=4, gpus_per_worker=0.0, quiet=True)


def job(stop=1, **changes):
    return Job("rung", "s", make_candidate(**changes), stop=stop)


def test_jobs_come_back_in_order_with_their_outcomes():
    runner = open_runner(SERIAL, make_setup(), "fake_worker:run")
    assert runner.slots == 1
    runner.submit(job(1), "00000-lora-e1")
    runner.submit(job(3))
    (first, outcome), (second, _) = runner.wait()[0], runner.wait()[0]
    assert (first.stop, second.stop) == (1, 3)
    assert outcome.status == "ok"
    assert outcome.epoch == 1
    runner.close()


@pytest.mark.parametrize(
    ("trouble", "status", "reason"),
    [
        ("raise", "error", "ValueError: two lines (fake_worker.py:"),
        ("memory", "oom", "MemoryError"),
    ],
)
def test_a_failure_is_an_outcome_of_one_line(trouble, status, reason):
    runner = SerialRunner(make_setup(precision=trouble), "fake_worker:run")
    runner.submit(job())
    [(_, outcome)] = runner.wait()
    assert outcome.status == status
    assert outcome.reason.startswith(reason)
    assert "\n" not in outcome.reason


def test_bad_input_found_by_a_worker_stops_the_run():
    runner = SerialRunner(make_setup(precision="user"), "fake_worker:run")
    runner.submit(job())
    with pytest.raises(UserError, match=r"a\.png: image cannot be read"):
        runner.wait()


def test_functions_are_named_not_passed():
    assert resolve("math:sqrt")(9) == 3
    with pytest.raises(ModuleNotFoundError):
        SerialRunner(make_setup(), "no_such_module:run")
