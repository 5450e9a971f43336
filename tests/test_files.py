"""Atomic writes, locks, paths inside their root."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import files
from autopeft.errors import UserError
from autopeft.files import inside, lock, new_folder, write_bytes, write_json, write_text

REPO = Path(__file__).parents[1]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_writing_makes_folders_and_sets_the_mode(tmp_path):
    write_bytes(tmp_path / "a" / "b", b"\x00\xff", 0o600)
    assert (tmp_path / "a" / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o600
    write_text(tmp_path / "t", "ä\n")
    assert (tmp_path / "t").read_bytes() == "ä\n".encode()
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o644
    write_json(tmp_path / "j", {"a": [1, 2.5]})
    assert (tmp_path / "j").read_text() == '{\n "a": [\n  1,\n  2.5\n ]\n}\n'
    assert names(tmp_path) == ["a", "j", "t"]


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "j", {"a": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_crash_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, failing):
    file = tmp_path / "f"
    write_text(file, "old")

    def crash(*args):
        raise KeyboardInterrupt

    target = os if failing == "fsync" else Path
    monkeypatch.setattr(target, failing, crash)
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "new")
    monkeypatch.undo()
    assert file.read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_folder_gets_its_name_at_the_end(tmp_path):
    with new_folder(tmp_path / "x" / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "x" / "out").exists()
    assert names(tmp_path / "x") == ["out"]
    with new_folder(tmp_path / "x" / "out") as folder:
        (folder / "b").write_text("2")
    assert names(tmp_path / "x" / "out") == ["b"]  # replaced, not merged
    with pytest.raises(ValueError, match="JSON"), new_folder(tmp_path / "x" / "out") as folder:
        write_json(folder / "c", float("nan"))
    assert names(tmp_path / "x") == ["out"]
    assert names(tmp_path / "x" / "out") == ["b"]


def holder(path, seconds, remove=False):
    """Another process that holds a lock; returns once it does."""
    code = f"""
    import sys, time
    from pathlib import Path
    from autopeft.files import lock
    with lock(Path({str(path)!r})):
        print("held", flush=True)
        time.sleep({seconds})
        {f"Path({str(path)!r}).unlink()" if remove else ""}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=REPO
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_driver_is_refused_and_told_who_holds_it(tmp_path):
    path = tmp_path / "run" / ".lock"
    process = holder(path, 60)
    try:
        with (
            pytest.raises(UserError, match=f"pid {process.pid} on .* since 20") as error,
            lock(path),
        ):
            pass
        assert "--name" in str(error.value)
    finally:
        process.kill()
        process.wait()
    with lock(path):  # the kernel let go of it
        assert f"pid {os.getpid()} " in path.read_text()
    with lock(path):
        pass


@pytest.mark.parametrize("remove", [False, True])
def test_waiting_for_a_lock(tmp_path, remove):
    path = tmp_path / ".lock"
    process = holder(path, 0.5, remove)
    started = time.perf_counter()
    with lock(path, wait=True):
        assert time.perf_counter() - started > 0.2
        # Held for real, also when the last holder removed the file that we waited at.
        with pytest.raises(UserError), lock(path):
            pass
    process.wait()


def test_inside():
    root = Path(__file__).parent
    assert inside(root, "a/b.png") == root / "a" / "b.png"
    assert inside(root, "a/../b.png") == root / "b.png"
    for path in ("../x.png", "a/../../x", "/etc/passwd", f"{root}x/y"):
        with pytest.raises(UserError, match="leaves the data folder"):
            inside(root, path)


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "..a"]), min_size=1, max_size=6))
def test_nothing_climbs_out(parts):
    root = Path("/data/root")
    try:
        assert root in (found := inside(root, "/".join(parts))).parents or found == root
    except UserError:
        assert ".." in parts


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.png").write_text("")
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="leaves"):
        inside(tmp_path / "root", "link.png")


def test_sync_folder(tmp_path):
    files.sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.sync_folder(tmp_path / "gone")
