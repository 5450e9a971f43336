"""What is declared before the run, the log, and the ledger of looks at test patients."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from autopeft import protocol
from autopeft.errors import RunError
from autopeft.files import lock
from autopeft.protocol import (
    append_line,
    log,
    log_start,
    look,
    place,
    read_lines,
    since_last_start,
    write_protocol,
)

CONTENT = {"alpha": 0.05, "splits": {"train": "3+ / 4-"}, "rungs": (1, 3)}


def test_it_is_written_once_and_must_agree_for_ever(tmp_path):
    first = write_protocol(tmp_path, CONTENT)
    file = tmp_path / "protocol.yaml"
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert yaml.safe_load(file.read_text()) == {**CONTENT, "rungs": [1, 3]}
    assert write_protocol(tmp_path, CONTENT) == first
    with pytest.raises(RunError, match="--name"):
        write_protocol(tmp_path, {**CONTENT, "alpha": 0.1})
    file.write_text(file.read_text().replace("0.05", "0.1"))
    with pytest.raises(RunError, match="differs"):
        write_protocol(tmp_path, CONTENT)


def test_a_torn_last_line_loses_nothing_else(tmp_path):
    log(tmp_path, "started", pid=1)
    log(tmp_path, "chosen", winner="x")
    file = tmp_path / "log.jsonl"
    file.write_text(file.read_text()[:-9])  # killed while writing
    log(tmp_path, "finished", verdict="y")
    assert [e["event"] for e in read_lines(file)] == ["started", "finished"]
    assert all("time" in e for e in read_lines(file))
    assert read_lines(tmp_path / "gone") == []


def test_lines_are_appended_never_rewritten(tmp_path):
    file = tmp_path / "l"
    for i in range(3):
        append_line(file, {"i": i})
    assert file.read_text() == '{"i": 0}\n{"i": 1}\n{"i": 2}\n'


def test_looks_at_the_same_patients_are_counted_over_runs(tmp_path):
    patients = ["p1", "p2", "p2"]
    assert look(tmp_path, patients, "a", "id-a") == 1
    assert look(tmp_path, patients, "a", "id-a") == 1  # a resumed run looks no second time
    assert look(tmp_path, ["p2", "p1"], "b", "id-b") == 2  # order and repetition do not matter
    assert look(tmp_path, ["p1"], "c", "id-c") == 1  # other patients
    assert look(tmp_path, patients, "c", "id-c") == 3
    text = (tmp_path / "test_ledger.jsonl").read_text()
    assert len(text.splitlines()) == 4
    assert "p1" not in text
    assert json.loads(text.splitlines()[0])["run"] == "a"


def test_two_runs_that_end_together_both_get_in(tmp_path):
    code = (
        "import sys; from pathlib import Path; from autopeft.protocol import look;"
        f"print(look(Path({str(tmp_path)!r}), ['p'], 'other', 'id'))"
    )
    with lock(tmp_path / ".test_ledger.lock"):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, b"1")


# ---- what happened since the last start ---------------------------------------------------------


@pytest.fixture
def started(tmp_path):
    """A run folder that was started once."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "study.journal").write_text("{}\n")
    log_start(folder, trials=3)
    return folder


def test_an_ordinary_restart_has_nothing_to_say(started):
    assert since_last_start(started) == []
    assert since_last_start(started.rename(started.with_name("moved"))) == []


def test_a_copy_is_told_apart_and_looks_at_the_test_patients_itself(started, tmp_path):
    copy = Path(shutil.copytree(started, tmp_path / "copy"))
    [line] = since_last_start(copy)
    assert line.startswith("this folder is a copy of a run")
    assert place(copy) != place(started)
    looks = [look(tmp_path, ["a", "b"], "run", f"id-{place(f)}") for f in (started, copy, started)]
    assert looks == [1, 2, 1]
    log_start(copy)
    assert since_last_start(copy) == []  # said once


def test_a_clock_that_was_moved_back_is_said_and_harmless(started, monkeypatch):
    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr(protocol, "datetime", Yesterday)
    [line] = since_last_start(started)
    assert line.startswith("this machine's clock is 86")
    log_start(started)
    monkeypatch.undo()
    assert since_last_start(started) == []
