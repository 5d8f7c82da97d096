"""A Ray cluster of several nodes on this machine, by ``ray start``, some of which are killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runs.directory import REPOSITORY

START = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
SMALL = ("--object-store-memory=80000000", "--include-log-monitor=false")


class Cluster:
    """``nodes`` are the ``ray start`` processes, the head first; ``address`` is for ``sweep.py``."""

    def __init__(self, folder: Path, cores: int) -> None:
        self.folder, self.cores, self.nodes = folder, cores, list[subprocess.Popen[bytes]]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def add(self) -> None:
        """One after another: two that start at once take each other's sockets."""
        port = self.address.partition(":")[2]
        # Paths of sockets have to be short: no temporary folder of pytest's.
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}")
        own = (f"--num-cpus={self.cores}", "--min-worker-port=0", "--max-worker-port=0")
        # A busy machine takes longer than Ray waits; and tests have another place for their imports than sweep.py has.
        more = {"RAY_raylet_start_wait_time_s": "120", "PYTHONPATH": str(REPOSITORY)}
        env = {**os.environ, **more}
        log = self.folder / f"node{len(self.nodes)}.txt"
        command = [*START, *SMALL, *own, *(head if not self.nodes else (f"--address={self.address}",))]
        with log.open("wb") as file:
            self.nodes.append(subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True))
        end = time.monotonic() + 300
        while b"Ray runtime started" not in log.read_bytes():
            assert self.nodes[-1].poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)

    def kill(self, node: int) -> None:
        """As when the power goes, while the node is at a run: its raylet and its workers, which may outlive it."""
        raylet = next(pid for pid in children(self.nodes[node].pid) if b"/raylet\0" in command_of(pid))
        end, workers = time.monotonic() + 120, list[int]()
        while not any(command_of(pid).startswith(b"ray::run") for pid in workers):  # the title that Ray gives them
            assert time.monotonic() < end, "the node was given no run"
            time.sleep(0.005)
            workers = children(raylet)
        for pid in (raylet, *workers):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes[node].kill()

    def stop(self) -> None:
        """At once: in order it takes Ray ten seconds. What is not in the folder's name dies with its raylet."""
        for node in self.nodes:
            node.kill()
            node.wait()
        for pid in started_below(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" (")
        except OSError:
            continue  # it has ended
        if int(rest.rpartition(")")[2].split()[1]) == parent:
            found.append(int(pid))
    return found


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def started_below(folder: Path) -> list[int]:
    """Processes that have the folder in their command line."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if str(folder).encode() in command_of(pid)]


@contextmanager
def cluster(nodes: int, cores: int = 1) -> Iterator[Cluster]:
    """Nodes of so many cores each."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    made = Cluster(folder, cores)
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # whatever token the user has: drivers and nodes are of one mind
    try:
        for _ in range(nodes):
            made.add()
        yield made
    finally:
        made.stop()
        if before is None:
            del os.environ["RAY_AUTH_MODE"]
        else:
            os.environ["RAY_AUTH_MODE"] = before
        shutil.rmtree(folder, ignore_errors=True)
