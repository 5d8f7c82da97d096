"""What the engines of a sweep cost: the same runs one after another, several at once, and on Ray with as many cores.

    python -m benchmarks.engines [--runs 24] [--cores 2] [--shots 4] [--json FILE] [KEY VALUE]...
    python -m benchmarks.engines --at-once 1 2 4 8 --runs 8 --shots 1 OPTIM.MAX_EPOCH 4      # on one GPU: runs a minute

Runs of CoOp on symbols by its recipe, each on one core: one thread, and no worker that loads images. On Ray twice: one
node for each core, all on this machine, and one node with all cores. The ideal is the first row's time divided by the
cores. A machine's speed drifts, so that row is the mean of a sweep before all others and one after them. Seconds are
from the start of ``sweep.py`` to its table; the cluster exists before.
"""

from __future__ import annotations

import sys

from benchmarks.report import parser_of, save, seconds_of, show
from tests.experiments.sweep.cluster import cluster


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--at-once", type=int, nargs="+", help="only --jobs with these numbers, on all cores and GPUs")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="for all runs")
    options = parser.parse_intermixed_args()

    def seconds(*engine: str, runs: int = options.runs) -> float:
        """Of a whole sweep in a fresh OUT."""
        seeds = ",".join(map(str, range(1, runs + 1)))
        command = [sys.executable, "sweep.py", "--trainers", "CoOp", "--datasets", "symbols", "--seeds", seeds]
        command += ["--shots", str(options.shots), *engine, "DATALOADER.NUM_WORKERS", "0", *options.opts]
        return seconds_of(command, **({} if options.at_once else {"OMP_NUM_THREADS": "1"}))

    seconds(runs=1)  # draws the pictures and fills the feature cache
    if options.at_once:
        took = {jobs: seconds("--jobs", str(jobs)) for jobs in options.at_once}
        rows = [{"at once": jobs, "s": s, "runs a minute": 60 * options.runs / s} for jobs, s in took.items()]
        show(f"{options.runs} runs of CoOp at {options.shots} shots", rows)
        save(options, rows=rows)
        return
    before = seconds()
    found = {f"--jobs {options.cores}": seconds("--jobs", str(options.cores))}
    for nodes, cores in ((options.cores, 1), (1, options.cores)):
        with cluster(nodes, cores) as made:
            name = f"--engine ray, nodes x cores: {nodes} x {cores}"
            found[name] = seconds("--engine", "ray", "--address", made.address)
    after = seconds()
    one = (before + after) / 2
    rows = [{"engine": f"one after another ({before:.1f} and {after:.1f})", "s": one, "over the ideal (%)": 0.0}]
    for name, s in found.items():
        rows.append({"engine": name, "s": s, "over the ideal (%)": 100 * (s * options.cores / one - 1)})
    show(f"{options.runs} runs of CoOp at {options.shots} shots", rows)
    save(options, rows=rows)


if __name__ == "__main__":
    main()
