"""What the engines of a sweep cost: the same runs one after another, several at once, and on Ray with as many cores.

On Ray twice: with a node for each core, all of which run on this machine, and with one node that has all cores.

    python -m benchmarks.engines [--runs 24] [--cores 2] [--shots 4] [--epochs 0] [--sleep SECONDS]

Runs of CoOp on symbols by its recipe, each on one core: one thread, and no worker beside it that loads images. Or, with
--sleep, ones that do nothing but sleep, and do not slow each other down. Ideal: the first row's time through the cores,
the mean of a sweep before all others and one after them, since a machine's speed drifts. All of a sweep is timed, from
the start of ``sweep.py`` to its table; the cluster is there before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from runs.directory import REPOSITORY
from tests.experiments.sweep.cluster import cluster


def timed(out: Path, args: argparse.Namespace, count: int, *engine: str) -> float:
    """Seconds of a whole sweep of so many runs."""
    out.mkdir(parents=True)
    (out.parent / "slow").write_text(str(args.sleep))  # for the stub
    seeds = ",".join(map(str, range(1, count + 1)))
    program = ["-m", "tests.experiments.sweep.driver"] if args.sleep else ["sweep.py"]
    command = [sys.executable, *program, "--trainers", "CoOp", "--datasets", "symbols", "--shots", str(args.shots)]
    command += ["--seeds", seeds, *engine, "DATALOADER.NUM_WORKERS", "0"]
    command += ["OPTIM.MAX_EPOCH", str(args.epochs)] if args.epochs else []
    data = Path(os.environ.get("DATA") or "data").absolute()
    env = {**os.environ, "OUT": str(out), "DATA": str(data), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=0, help="default: the recipe's")
    parser.add_argument("--sleep", type=float, default=0, help="seconds (default: real runs)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def seconds(folder: Path, *engine: str) -> float:
            return timed(folder, args, args.runs, *engine)

        timed(out / "uncounted", args, 1)  # draws the pictures, and keeps the test features that all others read
        before = seconds(out / "before")
        several = seconds(out / "several", "--jobs", str(args.cores))
        with cluster(args.cores) as made:
            nodes = seconds(out / "nodes", "--engine", "ray", "--address", made.address)
        with cluster(1, args.cores) as made:
            node = seconds(out / "node", "--engine", "ray", "--address", made.address)
        after = seconds(out / "after")
    one = (before + after) / 2
    ideal = one / args.cores
    rows = [
        [f"one after another ({before:.1f} and {after:.1f})", one, 0],
        [f"--jobs {args.cores}", several, several / ideal - 1],
        [f"--engine ray, {args.cores} nodes of a core", nodes, nodes / ideal - 1],
        [f"--engine ray, a node of {args.cores} cores", node, node / ideal - 1],
    ]
    table = [[name, seconds, f"{100 * over:+.1f}%"] for name, seconds, over in rows]
    print(tabulate(table, headers=[f"{args.runs} runs", "s", "over the ideal"], tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
