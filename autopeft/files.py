"""Files that survive a crash: atomic writes, one-writer locks, paths inside their root."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from autopeft.errors import UserError

_TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "writing is not permitted",
    errno.EPERM: "writing is not permitted",
}


def disk_trouble(error: BaseException) -> str:
    """What is wrong with the disk, in words; empty where it is something else.

    Libraries written in other languages pass the system's message on as text only.
    """
    if isinstance(error, OSError):
        return _TROUBLE.get(error.errno or 0, "")
    text = str(error)
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    found = (number for number in known if f"os error {number})" in text)
    return next((_TROUBLE[number] for number in found), "")


def reserve(path: Path) -> None:
    """Takes the disk space of a sparse file: a full disk is said now, not by a signal later.

    A memory map that meets a full disk ends its process (SIGBUS), with no word to anyone.
    """
    if hasattr(os, "posix_fallocate"):  # Linux
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a file so that a crash leaves either the old content or the new one.

    Args:
        path: the file; its folder is made when absent.
        data: the whole content.
        mode: permission bits, set before the file gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes a text file atomically (UTF-8)."""
    write_bytes(path, text.encode(), mode)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Writes JSON atomically; NaN is refused because it is not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", mode)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_empty(*folders: Path) -> None:
    """Takes away folders that hold nothing: bad input leaves nothing behind."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fills a folder under a temporary name and gives it its name at the end.

    An existing folder of that name is replaced. On an exception nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_file():
                with item.open("rb") as stream:
                    os.fsync(stream.fileno())
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds an exclusive lock on a file for as long as the block runs.

    The kernel drops the lock when the process dies, so nothing stale can remain.

    Args:
        path: the file; its folder is made when absent.
        wait: wait until another process lets go of it.

    Raises:
        UserError: another process drives this run; the message names pid, host and time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, wait) as stream:
        stream.seek(0)
        stream.truncate()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        stream.write(f"pid {os.getpid()} on {os.uname().nodename} since {now}\n")
        stream.flush()
        yield


def _locked(path: Path, wait: bool) -> IO[str]:
    """The file, opened and locked."""
    while True:
        stream = path.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            stream.close()
            raise UserError(
                f"this run is being driven by {owner}",
                str(path.parent),
                "Wait for it to finish, or stop it, or take a new --name.",
            ) from None
        # While we waited, its holder may have removed the file: then it locks nothing any more.
        if path.exists() and path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
            return stream
        stream.close()


def inside(root: Path, relative: str) -> Path:
    """Joins a path that came from data to its root and refuses one that leaves it.

    Raises:
        UserError: the path is absolute or climbs out of ``root``.
    """
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UserError(
            f"path {relative!r} leaves the data folder",
            str(root),
            "Paths must stay below it, links followed: give the folder that holds all.",
        )
    return path
