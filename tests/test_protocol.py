"""What is declared before the run, and the log."""

from __future__ import annotations

import hashlib
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from autopeft import chain, protocol
from autopeft.errors import RunError
from autopeft.ledger import enter
from autopeft.protocol import (
    events,
    log,
    log_start,
    place,
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
    assert [e["event"] for e in events(tmp_path)] == ["started", "finished"]
    assert all("time" in e for e in events(tmp_path))
    assert events(tmp_path / "gone") == []
    found = chain.check(file)
    assert (found.faults, found.torn) == ((), 1)


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
    looks = [
        enter(tmp_path, ["a", "b"], ["a.png", "b.png"], "run", f"id-{place(f)}").number
        for f in (started, copy, started)
    ]
    assert looks == [1, 2, 1]
    log_start(copy)
    assert since_last_start(copy) == []  # said once


def test_a_changed_log_is_said(started):
    log(started, "chosen", winner="x")
    file = started / "log.jsonl"
    file.write_text(file.read_text()[:-9])
    assert since_last_start(started) == []  # a killed driver's half line is nothing to say
    log(started, "chosen", winner="y")
    assert since_last_start(started) == []
    file.write_text(file.read_text().replace('"trials": 3', '"trials": 9'))
    [line] = since_last_start(started)
    assert line.startswith("log.jsonl was changed since it was written (line 3")


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
