"""Lines with the hash of the line before: whatever is changed later is found."""

from __future__ import annotations

import hashlib
import json

import pytest

from autopeft import chain


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "log.jsonl"
    for number in range(5):
        chain.append(path, {"event": f"e{number}"})
    return path


def rewrite(file, change):
    """Puts other lines into the file."""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(change(lines)))


def test_each_line_holds_the_hash_of_the_line_before(file):
    lines = file.read_bytes().splitlines()
    values = [json.loads(line) for line in lines]
    assert [v["seq"] for v in values] == [1, 2, 3, 4, 5]
    assert values[0]["prev"] == "0" * 64
    for before, value in zip(lines, values[1:], strict=False):
        assert value["prev"] == hashlib.sha256(before).hexdigest()
    found = chain.check(file)
    assert found.faults == ()
    assert (found.lines, found.head) == (5, hashlib.sha256(lines[-1]).hexdigest())
    assert [v["event"] for v in chain.read(file)] == ["e0", "e1", "e2", "e3", "e4"]


def forged(seq):
    return json.dumps({"seq": seq, "prev": "0" * 64, "event": "x"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: [*x[:2], x[2].replace(b"e2", b"e9"), *x[3:]], "line 4: does not hold the hash"),
        (lambda x: [x[0].replace(b"e0", b"e9"), *x[1:]], "line 2: does not hold the hash"),
        (lambda x: [*x[:2], *x[3:]], "line 3: 1 line"),
        (lambda x: x[1:], "line 1: 1 line"),
        (lambda x: [x[1], x[0], *x[2:]], "line 1: 1 line"),
        (lambda x: [*x[:3], forged(4), *x[3:]], "line 4: does not hold the hash"),
        (lambda x: [*x[:3], b'{"event": "x"}\n', *x[3:]], "line 4: has no number"),
        (lambda x: [*x[:3], x[1], *x[3:]], "line 4: it is number 2"),
        (lambda x: [*x[:2], x[2][:9] + b"\n", *x[3:]], "line 3: is damaged"),
        (lambda x: [*x[:4], b"x\n"], "line 5: is damaged"),
        (lambda x: [*x[:2], b"\xff\xfe\n", *x[3:]], "line 3: is damaged"),
    ],
    ids=["edited", "first", "removed", "no-first", "swapped", "inserted", "plain", "twice", "cut",
         "last", "bytes"],
)  # fmt: skip
def test_what_was_changed_is_found(file, change, told):
    rewrite(file, change)
    assert any(fault.startswith(told) for fault in chain.check(file).faults)


def test_a_tail_cut_off_changes_the_head(file):
    before = chain.check(file)
    rewrite(file, lambda lines: lines[:-1])
    after = chain.check(file)
    assert after.faults == ()  # nothing in the file says so: who keeps the head knows
    assert (after.lines, after.head) != (before.lines, before.head)


def test_half_a_line_of_a_killed_process_is_closed_and_told(file):
    file.write_bytes(file.read_bytes()[:-9])
    assert chain.check(file).unfinished
    assert chain.check(file).faults == ()
    chain.append(file, {"event": "again"})
    found = chain.check(file)
    assert (found.faults, found.torn, found.lines, found.unfinished) == ((), 1, 6, False)
    assert [v["event"] for v in chain.read(file)] == ["e0", "e1", "e2", "e3", "again"]
    # Half a line that nobody told of is not taken for one.
    rewrite(file, lambda lines: [*lines[:2], lines[2][:20] + b"\n", *lines[3:]])
    assert chain.check(file).faults


def test_a_torn_line_cannot_be_changed_either(file):
    file.write_bytes(file.read_bytes()[:-9])
    chain.append(file, {"event": "again"})
    rewrite(file, lambda x: [*x[:4], x[4].replace(b"seq", b"sep"), *x[5:]])
    assert chain.check(file).faults


def test_what_stands_before_a_torn_line_cannot_be_changed(file):
    file.write_bytes(file.read_bytes()[:-9])
    chain.append(file, {"event": "again"})
    rewrite(file, lambda x: [*x[:3], x[3].replace(b"e3", b"e9"), *x[4:]])
    assert chain.check(file).faults


def test_a_process_killed_twice_leaves_two_halves(file):
    file.write_bytes(file.read_bytes()[:-9])
    chain.append(file, {"event": "again"})
    file.write_bytes(file.read_bytes()[:-9])
    chain.append(file, {"event": "and again"})
    found = chain.check(file)
    assert (found.faults, found.torn, found.lines) == ((), 2, 7)
    rewrite(file, lambda x: [*x[:4], *x[5:]])
    assert chain.check(file).faults


def test_half_a_first_line_is_closed_too(tmp_path):
    file = tmp_path / "l"
    file.write_bytes(b'{"seq": 1, "pr')
    chain.append(file, {"event": "again"})
    found = chain.check(file)
    assert (found.faults, found.torn, found.lines) == ((), 1, 2)


def test_a_line_that_only_lacks_its_end_is_whole(file):
    file.write_bytes(file.read_bytes()[:-1])
    chain.append(file, {"event": "again"})
    found = chain.check(file)
    assert (found.faults, found.torn) == ((), 0)
    assert [v["event"] for v in chain.read(file)][-2:] == ["e4", "again"]


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert chain.read(tmp_path / "gone") == []
    with pytest.raises(OSError, match="gone"):
        chain.check(tmp_path / "gone")
