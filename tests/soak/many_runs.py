"""The soak: short runs in a row, in one Python process and then through the shell; memory and open files stay flat.

    python -m tests.soak.many_runs --runs 200 --shell 200

Prints every tenth run's resident memory and open files; exit code 1 if the last quarter's mean has grown by more than
5% in memory over the second quarter's, or by any open file or thread.
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
import threading
from pathlib import Path

import runs
import train

SHORT = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"]


def measure() -> tuple[float, int, int]:
    """Resident memory in MB, open files, threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count()


def one_run(argv: list[str], directory: Path) -> tuple[float, int, int]:
    """What the process holds after a run, whose directory is removed again."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = train.main(["--output-dir", str(directory), *argv])
    if code:
        raise SystemExit(f"a run ended with exit code {code}")
    shutil.rmtree(directory)
    return measure()


def growth(measured: list[tuple[float, int, int]]) -> list[str]:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--shell", type=int, default=200)
    args = parser.parse_args()
    configs = runs.REPOSITORY / "configs"
    argv = ["--seed", "1", "--trainer", "CoOp", "--config-file", str(configs / "trainers/CoOp/symbols.yaml")]
    argv += ["--dataset-config-file", str(configs / "datasets/symbols.yaml"), *SHORT]
    with tempfile.TemporaryDirectory() as folder:
        measured = []
        for i in range(args.runs):
            measured.append(one_run(argv, Path(folder) / "run"))
            if i % 10 == 9:
                print(f"run {i + 1}: %.1f MB, %d open files, %d threads" % measured[-1], flush=True)
        shell = ["bash", str(runs.REPOSITORY / "scripts/coop/main.sh"), "symbols", "1", *SHORT[2:]]
        environment = {**os.environ, "OUT": f"{folder}/out", "SEEDS": "1", "PYTHON": sys.executable}
        before = measure()
        for _ in range(args.shell):
            subprocess.run(shell, env=environment, check=True, stdout=subprocess.DEVNULL)
            shutil.rmtree(f"{folder}/out")
        grown = growth(measured) if measured else []
        if measure()[1:] != before[1:]:
            grown.append("open files or threads, through the shell")
    print("grown: " + "; ".join(grown) if grown else "flat")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
