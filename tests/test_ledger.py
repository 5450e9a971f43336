"""Looks at test patients over all runs of a folder, patient by patient."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autopeft import chain, ledger, secret
from autopeft.data import whose_patients
from autopeft.files import lock


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def look(folder, patients, entry, **changes):
    paths = [f"images/{p}.png" for p in patients]
    return ledger.enter(folder, patients, paths, f"run-{entry}", entry, **changes)


def test_any_patient_in_common_counts(tmp_path):
    assert look(tmp_path, ["p1", "p2", "p3"], "a").number == 1
    second = look(tmp_path, ["p3", "p4"], "b")
    assert (second.number, second.patients, second.seen) == (2, 2, 1)
    assert look(tmp_path, ["p8", "p9"], "c").number == 1
    third = look(tmp_path, ["p1", "p9", "p4"], "d")
    assert (third.number, third.seen) == (4, 3)  # of a, b and c each one


def test_a_resumed_run_looks_once(tmp_path):
    first = look(tmp_path, ["p1"], "a")
    look(tmp_path, ["p1"], "b")
    assert look(tmp_path, ["p1"], "a") == first
    assert [e["entry"] for e in chain.read(tmp_path / ledger.NAME)] == ["a", "b"]


def test_a_run_resumed_with_another_key_has_the_look_of_its_line(tmp_path):
    look(tmp_path, ["p1", "p2"], "a")
    first = look(tmp_path, ["p1", "p3"], "b")
    secret.file().unlink()
    again = look(tmp_path, ["p1", "p3"], "b")
    assert (again.number, again.patients, again.seen, again.unknown) == (2, 2, 1, 0)
    assert (again.number, again.unknown) == ledger.number_of(tmp_path, "b")
    assert (again.entry, again.line) == (first.entry, first.line)
    assert "a key that is not here now: later runs will not know" in again.words


def test_images_of_one_patient_are_one_patient(tmp_path):
    ids, paths = ["p", "p", "q"], ["a.png", "b.png", "a.png"]
    assert ledger.enter(tmp_path, ids, paths, "one", "1").patients == 2
    # Another choice of images, from another folder, of the same patient.
    again = ledger.enter(tmp_path, ["p", "p"], ["x/b.png", "x/c.png"], "two", "2")
    assert (again.number, again.patients, again.seen) == (2, 1, 1)


def test_equal_ids_of_two_hospitals_are_two_patients(tmp_path):
    ledger.enter(tmp_path, ["1", "2"], ["north/scan_7.png", "north/scan_8.png"], "n", "1")
    other = ledger.enter(tmp_path, ["1", "2"], ["south/IM0001.png", "south/IM0002.png"], "s", "2")
    assert other.number == 1
    assert look(tmp_path, ["1"], "a", source="phantom-1").number == 1
    assert look(tmp_path, ["1"], "b", source="phantom-2").number == 1


def test_a_patient_of_a_named_data_set_is_known_by_the_id_whatever_the_images(tmp_path):
    ledger.enter(tmp_path, ["1", "2"], ["1_000.png", "2_000.png"], "pa", "1", whose="nih")
    other = ledger.enter(tmp_path, ["2", "3"], ["2_001.png", "3_000.png"], "ap", "2", whose="nih")
    assert (other.number, other.patients, other.seen) == (2, 2, 1)
    assert ledger.number_of(tmp_path, "2") == (2, 0)
    assert ledger.knows(tmp_path, ["1"], ["1_009.png"], whose="nih")
    assert not ledger.knows(tmp_path, ["1"], ["1_009.png"], whose="chexpert")
    assert not ledger.knows(tmp_path, ["1"], ["1_009.png"])
    # The same image without the data set's name, read from a table of the user's own.
    assert ledger.knows(tmp_path, ["1"], ["elsewhere/1_000.png"])
    assert [whose_patients(d) for d in ("nih", "phantom", "labels.csv")] == ["nih", "", ""]


def test_it_names_nobody(tmp_path):
    look(tmp_path, ["MRN0001", "MRN0002"], "a")
    text = (tmp_path / ledger.NAME).read_text()
    assert "MRN" not in text
    assert "png" not in text
    (line,) = chain.read(tmp_path / ledger.NAME)
    assert line["run"] == "run-a"
    assert line["key"] == secret.key().name
    assert secret.key().value.hex() not in text


def test_equal_sets_are_written_once(tmp_path):
    for entry in "abc":
        look(tmp_path, ["p2", "p1"], entry)
    lines = chain.read(tmp_path / ledger.NAME)
    assert ["marks" in e for e in lines] == [True, False, False]
    assert [e["look"] for e in lines] == [1, 2, 3]


def test_another_key_is_said(tmp_path):
    look(tmp_path, ["p1"], "a")
    secret.file().unlink()  # lost, or the ledger was copied to another machine
    found = look(tmp_path, ["p1"], "b")
    assert (found.number, found.unknown) == (1, 1)
    assert "1 earlier look(s)" in found.words
    assert "another key" in found.words
    again = look(tmp_path, ["p1"], "c")
    assert (again.number, again.unknown) == (2, 1)
    assert again.words.startswith("look 2: 1 of the 1 test patients")


def test_a_key_that_cannot_be_kept_is_said(tmp_path):
    (tmp_path / "config").write_text("")
    assert "will not know this look again" in look(tmp_path, ["p1"], "a").words
    assert look(tmp_path, ["p1"], "b").unknown == 1


def test_a_plain_first_look_has_nothing_to_say(tmp_path):
    assert look(tmp_path, ["p1"], "a").words == ""


def test_the_number_is_found_again_without_the_key(tmp_path):
    look(tmp_path, ["p1", "p2"], "a")
    look(tmp_path, ["p2", "p3"], "b")
    secret.file().unlink()
    look(tmp_path, ["p3"], "c")
    assert ledger.number_of(tmp_path, "a") == (1, 0)
    assert ledger.number_of(tmp_path, "b") == (2, 0)
    assert ledger.number_of(tmp_path, "c") == (1, 2)
    assert ledger.number_of(tmp_path, "d") is None
    assert chain.check(tmp_path / ledger.NAME).faults == ()


def test_a_torn_line_is_no_look(tmp_path):
    look(tmp_path, ["p1"], "a")
    path = tmp_path / ledger.NAME
    path.write_bytes(path.read_bytes()[:-20])
    assert look(tmp_path, ["p1"], "b").number == 1
    assert look(tmp_path, ["p1"], "c").number == 2
    assert chain.check(path).faults == ()


def test_a_damaged_ledger_fails_nothing_and_is_said(tmp_path):
    for entry in "ab":
        look(tmp_path, ["p1"], entry)
    path = tmp_path / ledger.NAME
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (
        lines[1],
        lines[0].replace('"marks": "', '"marks": "x') + lines[1],
        '{"x": 1}\n',
    ):
        path.write_text(damaged)
        found = look(tmp_path, ["p1"], "c")
        assert found.number == 1
        assert found.unknown == len(damaged.splitlines())
    path.write_text(lines[1])
    assert ledger.number_of(tmp_path, "b") is None


def test_thirty_thousand_patients_are_small_and_quick(tmp_path):
    ids = [f"patient{i:05d}" for i in range(30_000)]
    began = time.perf_counter()
    look(tmp_path, ids, "a")
    look(tmp_path, ids[15_000:], "b")
    last = look(tmp_path, ids, "c")
    assert (last.number, last.seen) == (3, 30_000)
    assert time.perf_counter() - began < 5  # about 0.3 s where nothing else runs
    assert (tmp_path / ledger.NAME).stat().st_size < 400_000


def test_two_runs_that_end_together_both_get_in(tmp_path):
    code = (
        "from pathlib import Path; from autopeft import ledger;"
        f"print(ledger.enter(Path({str(tmp_path)!r}), ['p'], ['p'], 'other', 'id').number)"
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
    (line,) = (tmp_path / ledger.NAME).read_text().splitlines()
    assert json.loads(line)["run"] == "other"
