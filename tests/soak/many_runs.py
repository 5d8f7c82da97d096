"""The soak: short runs in a row, in one Python process and then through the shell; memory and open files stay flat.

    python -m tests.soak.many_runs --runs 200 --shell 200

On symbols with few pictures a class. Through the shell: one main.sh whose seeds are as many processes of train.py, one
after the other. Prints every tenth run's resident memory and open files, of the process that makes the runs; exit code
1 if the last quarter's mean has grown by more than 5% in memory over the second quarter's, or by any open file or
thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import train
from runs.directory import REPOSITORY
from tests.soak import symbols

SHORT = ["OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "1"]
Measure = tuple[float, int, int]


def measure(pid: int | str = "self") -> Measure:
    """Resident memory in MB, open files, threads of a process."""
    process = Path("/proc") / str(pid)
    pages = int((process / "statm").read_text().split()[1])
    files, threads = len(os.listdir(process / "fd")), len(os.listdir(process / "task"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads


def one_run(argv: list[str], directory: Path) -> Measure:
    """What the process holds after a run, whose directory is removed again."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = train.main(["--output-dir", str(directory), *argv])
    if code:
        raise SystemExit(f"a run ended with exit code {code}")
    shutil.rmtree(directory)
    return measure()


def growth(measured: list[Measure]) -> list[str]:
    """What has grown between the second and the last quarter of the runs."""
    quarter = max(1, len(measured) // 4)
    early, late = measured[quarter : 2 * quarter] or measured[:1], measured[-quarter:]
    means = [[statistics.fmean(column) for column in zip(*part, strict=True)] for part in (early, late)]
    names, allowed = ("memory (MB)", "open files", "threads"), (1.05, 1.0, 1.0)
    return [
        f"{name}: {before:.1f} -> {after:.1f}"
        for name, before, after, most in zip(names, *means, allowed, strict=True)
        if after > before * most
    ]


def show(made: int, begun: float, measured: Measure) -> None:
    if made % 10 == 0:
        memory, files, threads = measured
        print(f"[{time.monotonic() - begun:6.1f} s] run {made}: {memory:.1f} MB, {files} open files, {threads} threads")
        sys.stdout.flush()


def in_one_process(count: int, folder: Path) -> list[Measure]:
    argv, begun = [*symbols("CoOp", folder / "data", 1), *SHORT], time.monotonic()
    measured: list[Measure] = []
    for made in range(1, count + 1):
        measured.append(one_run(argv, folder / "run"))
        show(made, begun, measured[-1])
    return measured


def through_the_shell(count: int, folder: Path) -> list[Measure]:
    """Of the process that starts the runs, after each of them."""
    symbols("CoOp", folder / "data", 1)
    shell = ["bash", str(REPOSITORY / "scripts/coop/main.sh"), "symbols", "1", *SHORT]
    seeds = " ".join(map(str, range(1, count + 1)))
    environment = {"DATA": str(folder / "data"), "OUT": str(folder / "out"), "SEEDS": seeds, "PYTHON": sys.executable}
    measured: list[Measure] = []
    begun = time.monotonic()
    with subprocess.Popen(shell, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if len(list((folder / "out").glob("*/*/*/*/seed*/result.json"))) > len(measured):
                with contextlib.suppress(OSError):  # it has just ended
                    measured.append(measure(process.pid))
                    show(len(measured), begun, measured[-1])
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"main.sh ended with exit code {process.returncode}")
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--shell", type=int, default=200)
    args = parser.parse_args()
    grown = []
    with tempfile.TemporaryDirectory() as folder:
        for count, where, make in (
            (args.runs, "in one process", in_one_process),
            (args.shell, "through the shell", through_the_shell),
        ):
            if count:
                print(f"{count} runs {where}")
                measured = make(count, Path(folder))
                grown += [f"{what} {where}" for what in growth(measured)]
    print(
        "grown: " + "; ".join(grown) if grown else f"flat: {args.runs} runs in one process, {args.shell} by the shell"
    )
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
