"""Wall time adds up over the starts of a run, and the machine's clock plays no role."""

from __future__ import annotations

import json
import time

import pytest

from autopeft import clock
from autopeft.clock import Clock


@pytest.fixture
def now(monkeypatch):
    """A monotonic clock that the test sets; the machine's own one is broken."""
    seconds = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the machine's clock was read"))
    return seconds


def test_parts_of_earlier_starts_are_kept(tmp_path, now):
    first = Clock(tmp_path)
    for name, seconds in (("search", 10), ("search", 5), ("test", 1)):
        with first.part(name):
            now[0] += seconds
    now[0] = 3.0  # another process, perhaps another machine: its clock starts elsewhere
    again = Clock(tmp_path)
    assert again.parts == {"search": 15.0, "test": 1.0}
    now[0] += 2
    assert again.total() == 18.0


def test_a_kill_loses_a_few_seconds_at_most(tmp_path, now):
    running = Clock(tmp_path)
    running.begin("search")
    for _ in range(9):
        now[0] += 4
        running.tick()
    now[0] += 3  # killed here: 39 seconds are spent, 32 or more are known
    assert Clock(tmp_path).total() == 32
    assert Clock(tmp_path).parts == {"search": 32}


def test_a_part_that_fails_counts_too(tmp_path, now):
    running = Clock(tmp_path)

    def fail():
        now[0] += 7
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), running.part("search"):
        fail()
    assert json.loads((tmp_path / "clock.json").read_text()) == {
        "total": 7.0,
        "parts": {"search": 7.0},
    }


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"total": "x", "parts": {}}'])
def test_a_damaged_file_counts_as_none(tmp_path, text):
    (tmp_path / "clock.json").write_text(text)
    assert Clock(tmp_path).parts == {}


def test_time_inside_a_long_job_is_written_too(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "_EVERY", 0.02)
    with Clock(tmp_path) as running:
        running.begin("search")
        time.sleep(0.3)  # nobody ticks
        assert json.loads((tmp_path / "clock.json").read_text())["parts"]["search"] > 0.1


def test_a_start_may_have_begun_before(tmp_path, now):
    assert Clock(tmp_path, start=now[0] - 9).total() == 9
