"""How much a training run slows down beside busy processes.

    python -m benchmarks.busy [--epochs 3] [--repeats 1]

Times `bash scripts/plot/main.sh symbols 16` with one seed, start included, beside 0, 1 and 2 pure Python loops. One
uncounted run draws the pictures and fills the feature cache. The cases take turns; seconds are medians, a ratio is to
the row without busy processes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.report import parser_of, save, seconds_of, show

COMMAND = ("bash", "scripts/plot/main.sh", "symbols", "16")
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


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    command = [*COMMAND, "OPTIM.MAX_EPOCH", str(options.epochs)]
    seconds_of(command, SEEDS="1")
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(options.repeats):
        for count, found in seconds.items():
            with busy(count):
                found.append(seconds_of(command, SEEDS="1"))
    medians = {count: statistics.median(found) for count, found in seconds.items()}
    rows = [{"busy processes": count, "s": s, "ratio": s / medians[0]} for count, s in medians.items()]
    show(f"{options.epochs} epochs, {os.cpu_count()} cores, medians of {options.repeats}", rows)
    save(options, rows=rows, seconds=seconds)


if __name__ == "__main__":
    main()
