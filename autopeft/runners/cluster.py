"""Ray itself: a cluster on this machine, or an existing one; and what its nodes can hold."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read by Ray when it is imported: nothing about a run leaves the machine.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives its workers nice 15: beside any other program they would get a few percent of a core.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray

from autopeft.errors import RunError, UserError

_STORE_BYTES = 200 * 2**20  # jobs and outcomes are a few kB; the setup is the largest object
_KNOCK_SECONDS = 5.0
_ANSWER_SECONDS = 20.0  # Ray itself tries a silent address for minutes
_FLAG = "--address"

# Asked in a process of its own: it can be given up, and what Ray prints stays there.
_ASK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
_FIND = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


def cores(workers: int, cpus: int) -> int:
    """CPU cores that a cluster on this machine says it has, so that its workers fit.

    Args:
        workers: as many will fit, whatever the machine has; 0 = as many as it has cores for.
        cpus: of one worker.
    """
    return max(max(1, workers) * cpus, len(os.sched_getaffinity(0)))


def start(count: int) -> str:
    """A cluster on this machine, with its dashboard on the loopback interface.

    Args:
        count: of CPU cores, see ``cores``.

    Returns:
        Address of the dashboard, empty where there is none.

    Raises:
        RunError: Ray does not start.
    """
    try:
        with _own_packages():
            context = ray.init(
                address="local",
                num_cpus=count,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except Exception as error:  # Ray raises plain exceptions, e.g. on a machine that is too busy
        ray.shutdown()
        raise RunError(f"Ray did not start: {last_line(error)}") from error
    return _joined(context)


def share(asked: float, workers: int) -> float:
    """GPUs of a worker: as asked, or all of one, or what many workers leave each other.

    Args:
        asked: by the settings; 0 = decided here.
        workers: how many are wanted; 0 = as many as fit.
    """
    gpus = float(ray.cluster_resources().get("GPU", 0))
    return asked or (min(1.0, gpus / (workers or 1)) if gpus else 0.0)


@contextmanager
def _own_packages() -> Iterator[None]:
    """Processes started here find the driver's packages, from whatever folder it was started in.

    By the environment that Ray's node inherits, and its workers from it: a ``runtime_env`` would
    make each worker wait for an agent that starts later than the node.
    """
    paths, before = [str(Path(path).resolve()) for path in sys.path], os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def connect(address: str) -> str:
    """Joins an existing cluster as its driver. Authentication stays as the user has set it.

    Args:
        address: ``auto``, or host:port of the head.

    Returns:
        Address of the dashboard, empty where there is none.

    Raises:
        UserError: there is no such cluster, or it does not let us in.
    """
    check(address)
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        ray.shutdown()
        raise _refused(address, last_line(error)) from None
    return _joined(context)


def check(address: str) -> None:
    """Finds out within seconds whether a cluster answers; Ray alone takes minutes to say no.

    Raises:
        UserError: it does not, or it wants a token.
    """
    if address != "auto":
        _knock(address)
    code = _FIND if address == "auto" else _ASK
    ask = [sys.executable, "-c", code, address]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired as silent:
        said = str(silent.stderr or "")
        raise _refused(address, "InvalidAuthToken" if "InvalidAuthToken" in said else "") from None
    lines = done.stderr.strip().splitlines() or [""]
    # Another version of Ray may not have this way to ask: then `ray.init` is the judge.
    if done.returncode and "ImportError" not in lines[-1]:
        raise _refused(address, done.stderr if "InvalidAuthToken" in done.stderr else lines[-1])


def _knock(address: str) -> None:
    """Does anything listen there?"""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{address!r} is no address", _FLAG, "Write auto, or host:port.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nothing listens at {address} ({getattr(error, 'strerror', None) or error})",
            _FLAG,
            "Give the head's host:port; `ray start --head` prints it.",
        ) from None


def _refused(address: str, said: str) -> UserError:
    where = f"{_FLAG} {address}"
    if "InvalidAuthToken" in said or "AuthenticationError" in said:
        return UserError(
            "the cluster refuses the token that Ray found here, or found none",
            where,
            "Run `ray get-auth-token` on its head, save that as ~/.ray/auth_token here, and "
            "start autopeft with RAY_AUTH_MODE=token.",
        )
    if "Could not find any running Ray instance" in said:
        return UserError(
            "no Ray cluster runs on this machine",
            where,
            "Give the head's host:port, or start a cluster with `ray start --head`.",
        )
    known = f" ({said[:200]})" if said else ""
    return UserError(
        f"no Ray cluster answers there{known}",
        where,
        "This machine must be a node of the cluster: `ray start --address=HOST:PORT` on it first.",
    )


def _joined(context: Any) -> str:
    # Ray prints what happens to nodes on stdout, where results go, whatever `log_to_driver` says.
    # The switch is private to Ray; without it the lines come, and nothing else changes.
    printer = sys.modules.get("ray._private.worker")
    if hasattr(printer, "_worker_logs_enabled"):
        printer._worker_logs_enabled = False  # type: ignore[union-attr]
    return context.dashboard_url or ""


def capacity(nodes: Iterable[Mapping[str, Any]], cpus: int, gpus: float) -> int:
    """How many workers the live nodes can hold, if nobody else uses them.

    Args:
        nodes: as ``ray.nodes()`` gives them.
        cpus: of one worker.
        gpus: share of one worker; a share below 1 lies on one GPU.
    """
    count = 0
    for node in nodes:
        if not node["Alive"]:
            continue
        fits = math.floor(node["Resources"].get("CPU", 0) / cpus)
        if gpus:
            there = node["Resources"].get("GPU", 0)
            shares = there // gpus if gpus >= 1 else math.floor(there) * math.floor(1 / gpus)
            fits = min(fits, int(shares))
        count += fits
    return count


def room(cpus: int, gpus: float) -> int:
    """How many workers the cluster can hold now, see ``capacity``."""
    return capacity(ray.nodes(), cpus, gpus)


def last_line(error: Exception) -> str:
    """The end of a long text: what went wrong, without the class of our own errors."""
    text = str(error)
    if "No module named 'autopeft" in text:  # that line is deep inside
        found = re.search(r"\bip: (\S+)", text)
        node = f"node {found[1]}" if found else "a node"
        return f"{node} has no autopeft, or another version; install the same one on every node"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.removeprefix("autopeft.errors.RunError: ")[:300]
