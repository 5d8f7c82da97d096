"""The soak: short runs in a row in one process. Memory, open files and threads stay flat.

    python -m tests.soak.many_runs --runs 200

The runs use symbols with few pictures a class. Every run's resident memory, open files and threads are printed. Exit
code 1: the mean of the last quarter exceeds that of the second quarter, for memory by more than 5%.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import train
from tests.soak import symbols

SHORT = ["OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "1"]
Measure = tuple[float, int, int]


def one_run(argv: list[str], directory: Path) -> Measure:
    """Makes a run and removes its directory.

    Returns:
        Resident memory in MB, open files and threads of this process.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        code = train.main(["--output-dir", str(directory), *argv])
    if code:
        raise SystemExit(f"a run ended with exit code {code}")
    shutil.rmtree(directory)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads


def growth(measured: list[Measure]) -> list[str]:
    """The measures that have grown between the second and the last quarter of the runs."""
    quarter = max(1, len(measured) // 4)
    early, late = measured[quarter : 2 * quarter] or measured[:1], measured[-quarter:]
    means = [[statistics.fmean(column) for column in zip(*part, strict=True)] for part in (early, late)]
    names, allowed = ("memory (MB)", "open files", "threads"), (1.05, 1.0, 1.0)
    return [
        f"{name}: {before:.1f} -> {after:.1f}"
        for name, before, after, most in zip(names, *means, allowed, strict=True)
        if after > before * most
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args()
    measured: list[Measure] = []
    with tempfile.TemporaryDirectory() as folder:
        argv = [*symbols("CoOp", Path(folder, "data"), 1), *SHORT]
        for made in range(1, args.runs + 1):
            memory, files, threads = one_run(argv, Path(folder, "run"))
            measured.append((memory, files, threads))
            print(f"run {made}: {memory:.1f} MB, {files} open files, {threads} threads", flush=True)
    grown = growth(measured)
    print("grown: " + "; ".join(grown) if grown else "flat")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
