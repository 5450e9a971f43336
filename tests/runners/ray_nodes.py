"""Ray nodes on this machine, each a child process of the test. For ``test_cluster.py``.

Every process is ended by its recorded id: never ``ray stop``, never by name.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
HERE = Path(__file__).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def may_unshare():
    """Whether a process may hide folders from itself."""
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def descendants(pid):
    """Ids of a process and all below it, as they are now."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def until(ready, seconds, what):
    """Waits until ``ready()`` is true, and gives what it said."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what()}"
        time.sleep(0.2)
    return found


class Nodes:
    """Nodes of one cluster, with a token of their own.

    Attributes:
        env: environment of the nodes and of drivers that may join.
        address: host:port of the head.
        dashboard: of the head, host:port.
    """

    def __init__(self, folder):
        # Ray's socket paths must be short, so not below pytest's own folder.
        self.folder = folder
        token = folder / "token"
        token.write_text("0123456789abcdef" * 4)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        }
        self.processes = {}
        self.recorded = set()
        port, dashboard = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"127.0.0.1:{dashboard}"
        self.start(
            "head", "--head", f"--port={port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", "--include-dashboard=true",
        )  # fmt: skip

    @property
    def token(self):
        return (self.folder / "token").read_text()

    def join(self, name, *flags, hide=(), **env):
        """One more node; the folders ``hide`` are empty for it."""
        self.start(name, f"--address={self.address}", *flags, hide=hide, env=env)

    def start(self, name, *flags, hide=(), env=None):
        log = self.folder / f"{name}.log"
        command = [
            str(RAY), "start", "--block", "--num-cpus=1", *flags,
            f"--temp-dir={self.folder / name}", "--object-store-memory=80000000",
            f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ]  # fmt: skip
        if hide:
            mounts = " && ".join(f"mount -t tmpfs none '{folder}'" for folder in hide)
            command = ["unshare", "-rm", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env={**self.env, **(env or {})}
            )
        self.processes[name] = process
        until(
            lambda: "Ray runtime started" in log.read_text() or process.poll() is not None,
            90,
            log.read_text,
        )
        assert process.poll() is None, log.read_text()
        self.recorded |= set(descendants(process.pid))

    def raylet(self, name):
        """Process id of a node's raylet."""
        for pid in descendants(self.processes[name].pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                    return pid
        raise AssertionError(f"{name} has no raylet")

    def lose(self, name):
        """A node goes without a word: its raylet is killed, and the processes below it."""
        raylet = self.raylet(name)
        self.recorded |= set(descendants(self.processes[name].pid))
        kill(descendants(raylet))

    def end(self):
        for process in self.processes.values():
            self.recorded |= set(descendants(process.pid))
        kill(self.recorded)
        for process in self.processes.values():
            process.wait(20)
