"""How much a training run slows down beside busy processes.

    python -m benchmarks.busy [--epochs 3] [--repeats 1]

Times `bash scripts/plot/main.sh symbols 16` with one seed, start included, beside 0, 1 and 2 pure Python loops: once as
it is, once with OMP_WAIT_POLICY=PASSIVE in the environment. OpenMP's threads spin while they wait for each other; on a
busy core that takes the time slice of the thread they wait for. One uncounted run draws the pictures and fills the
feature cache. The cases take turns; seconds are medians, a ratio is to the same row without busy processes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.report import parser_of, save, show
from runs.directory import REPOSITORY

COMMAND = ("bash", str(REPOSITORY / "scripts/plot/main.sh"), "symbols", "16")
POLICIES: dict[str, dict[str, str]] = {"as it is": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
COUNTS = (0, 1, 2)
LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10**5))"  # ends with its parent


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keeps ``count`` processes busy for the duration of the block."""
    processes = [subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_seconds(epochs: int, policy: str) -> float:
    """Wall seconds of one run in a fresh OUT."""
    with tempfile.TemporaryDirectory() as out:
        env = {**os.environ, **POLICIES[policy], "SEEDS": "1", "OUT": out}
        start = time.perf_counter()
        code = subprocess.call([*COMMAND, "OPTIM.MAX_EPOCH", str(epochs)], env=env, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    if code:
        sys.exit(code)
    return seconds


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    run_seconds(options.epochs, "as it is")
    seconds: dict[str, dict[int, list[float]]] = {policy: {count: [] for count in COUNTS} for policy in POLICIES}
    for _ in range(options.repeats):
        for count in COUNTS:
            for policy, found in seconds.items():
                with busy(count):
                    found[count].append(run_seconds(options.epochs, policy))
    rows = [
        {"OpenMP waits": policy, "busy processes": count, "s": statistics.median(found[count]),
         "ratio": statistics.median(found[count]) / statistics.median(found[0])}
        for policy, found in seconds.items() for count in COUNTS
    ]  # fmt: skip
    show(f"{options.epochs} epochs, {os.cpu_count()} cores, medians of {options.repeats}", rows)
    save(options, rows=rows, seconds=seconds)


if __name__ == "__main__":
    main()
