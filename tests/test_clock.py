"""Wall time adds up over the starts of a run."""

from __future__ import annotations

import pytest

from autopeft.clock import Clock


def test_parts_of_earlier_starts_are_kept(tmp_path):
    first = Clock(tmp_path)
    first.add("search", 10.0)
    first.add("search", 5.0)
    first.add("test", 1.0)
    again = Clock(tmp_path)
    assert again.parts == {"search": 15.0, "test": 1.0}
    assert again.total() == pytest.approx(16.0, abs=0.5)


def test_a_part_that_fails_is_logged_too(tmp_path):
    clock = Clock(tmp_path)
    with pytest.raises(ValueError, match="x"), clock.part("search"):
        raise ValueError("x")
    assert "search" in Clock(tmp_path).parts
