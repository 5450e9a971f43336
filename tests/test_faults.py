"""Full and read-only disks, Ctrl-C, copied folders: one clear line each, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_driver import drive, make_engine
from fake_worker import make_candidate, make_setup
from optuna.storages.journal import JournalFileBackend
from tiny_run import flags, tiny

import autopeft
from autopeft.errors import RunError
from autopeft.job import Job
from autopeft.result import load_result
from autopeft.runners import guarded
from autopeft.runners.serial import SerialRunner
from autopeft.study import Study

ROOT = Path(autopeft.__file__).parents[1]


# ---- injected -----------------------------------------------------------------------------------


def full(path="f"):
    return OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (full("/a/b"), "/a/b: the disk is full. Make space; the same command goes on."),
        (OSError(errno.EDQUOT, "x"), "the disk quota is used up."),
        (OSError(errno.EROFS, "x"), "the disk is read-only."),
        (Exception("I/O error: No space left on device (os error 28)"), "the disk is full."),
    ],
)
def test_a_worker_s_full_disk_stops_the_run_and_fails_no_trial(error, words):
    def work(setup, job):
        raise error

    with pytest.raises(RunError) as said:
        guarded(work, make_setup(), Job("rung", "s", make_candidate(), stop=1))
    assert str(said.value).startswith(words)


@pytest.mark.parametrize("error", [PermissionError(13, "x"), OSError(5, "x"), ValueError("x")])
def test_other_errors_are_the_job_s_own(error):
    def work(setup, job):
        raise error

    outcome = guarded(work, make_setup(), Job("rung", "s", make_candidate(), stop=1))
    assert outcome.status == "error"


@pytest.mark.parametrize("whole", [0, 7, 30])
def test_a_disk_that_fills_up_inside_an_append_loses_nothing(tmp_path, monkeypatch, whole):
    """The append writes half a line and fails, as on a full disk; later there is space again."""
    append, left = JournalFileBackend.append_logs, [whole]

    def failing(backend, logs):
        left[0] -= 1
        if left[0] < 0:
            with Path(backend._file_path).open("ab") as stream:
                stream.write(b'{"op_code":8,"worker')
            raise full(backend._file_path)
        append(backend, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", failing)
    runner = SerialRunner(make_setup(), "fake_worker:run")
    with pytest.raises(OSError, match="No space"):
        drive(make_engine(tmp_path / "run", trials=9), runner)
    monkeypatch.undo()
    runner = SerialRunner(make_setup(), "fake_worker:run")
    drive(make_engine(tmp_path / "run", trials=9), runner)
    drive(make_engine(tmp_path / "other", trials=9), SerialRunner(make_setup(), "fake_worker:run"))
    found, expected = (Study(tmp_path / n, ("maximize", "minimize")) for n in ("run", "other"))
    assert found.entries == expected.entries


# ---- for real -----------------------------------------------------------------------------------


def command(options):
    return [sys.executable, "-m", "autopeft.cli", "search", *flags(options)]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def in_namespace(script, *words):
    """A shell script as root of its own mount namespace, where that is allowed."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("unshare is refused here")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, words)],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    script = """
        runs=$1; shift
        mount -t tmpfs -o size=1m none "$runs" || exit 99
        "$@" >/dev/null
        [ $? = 1 ] || exit 98
        mount -o remount,size=200m "$runs"
        exec "$@" >/dev/null
    """
    done = in_namespace(script, tmp_path, *command(tiny(tmp_path, name="first")))
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line]
    assert line.endswith("the disk is full. Make space; the same command goes on.")


@pytest.mark.slow
def test_a_read_only_folder_is_bad_input(tmp_path):
    script = """
        mount -t tmpfs -o ro none "$1" || exit 99
        shift
        exec "$@"
    """
    done = in_namespace(script, tmp_path, *command(tiny(tmp_path, name="first")))
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert "the disk is read-only. Take a --runs-dir that can be written to." in line


def started(options, events):
    """The run as a process group of its own, once its journal holds so many outcomes."""
    process = subprocess.Popen(
        command(options), env=environment(), stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    journal = Path(options["runs_dir"]) / options["name"] / "study.journal"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_text(errors="replace").count("rung/1") >= events:
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"the run did not come so far: {process.communicate()[1]}")


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_ctrl_c_once_finishes_what_runs_and_answers(tmp_path, runner):
    options = tiny(tmp_path, name="first", trials=40, runner=runner, workers=1, quiet=False)
    process = started(options, 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "Ctrl-C: no new trial" in said
    result = load_result(tmp_path / "first")
    assert 1 <= len(result.trials) < 40
    stopped = result.trials[result.trials["state"] == "pruned"]["reason"]
    assert all("asked to stop by Ctrl-C" in reason for reason in stopped)


@pytest.mark.slow
def test_ctrl_c_twice_stops_now_and_a_copy_goes_on_too(tmp_path):
    options = tiny(tmp_path / "a", name="first", quiet=False)
    process = started(options, 1)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("autopeft: stopped. The same command goes on")
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "first", tmp_path / "b" / "first")
    done = subprocess.run(
        command({**options, "runs_dir": str(tmp_path / "b")}), env=environment(), text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "this folder is a copy of a run" in done.stderr
    assert len(load_result(tmp_path / "b" / "first").trials) == 3
