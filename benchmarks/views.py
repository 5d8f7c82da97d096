"""What DATALOADER.CACHED_VIEWS does to accuracy and time: whole runs with K views of each training image.

    python -m benchmarks.views [--views 1 2 4] [--shots 16] [--seeds 1 2 3] [--trainers PLOT CoOp CoCoOp] [--json FILE]

On symbols, each run by the recipe in a process of its own; 0 views, pictures augmented anew in each epoch, come first
of all. Each run with views starts from an empty folder, so that "train s" holds their encoding, and is then made again
with them kept ("again s"), as when another method follows. Accuracies are means over the seeds; the difference to 0
views is paired by seed, with its standard deviation.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.sweep import finish, keep_in, parse, parser_of, timed_run


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shots", type=int, default=16)
    options = parse(parser)
    runs, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        timed_run(options, "ZeroshotCLIP", 1, 1, ["TEST.FEATURE_CACHE", "False"])  # draws the data
        for trainer in options.trainers:
            found: dict[int, list[dict[str, Any]]] = {views: [] for views in (0, *options.views)}
            for seed in options.seeds:
                for views, done in found.items():
                    more = keep_in(options.folder / "kept", views)
                    run = timed_run(options, trainer, options.shots, seed, more)
                    run["again"] = timed_run(options, trainer, options.shots, seed, more)["train"] if views else None
                    shutil.rmtree(options.folder / "kept")
                    done.append({"views": views, **run})
                    print(f"{trainer}, seed {seed}, {views} views: {run['accuracy']:.2f}%, "
                          f"training {run['train']:.1f} s", flush=True)  # fmt: skip
            for views, done in found.items():
                runs += done
                rows.append(_row(trainer, views, done, found[0]))
    finish(options, rows, runs)


def _row(trainer: str, views: int, runs: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    differences = [run["accuracy"] - other["accuracy"] for run, other in zip(runs, plain, strict=True)]
    spread = statistics.stdev(differences) if len(differences) > 1 else None
    return {
        "trainer": trainer,
        "views": views,
        "accuracy (%)": statistics.fmean(run["accuracy"] for run in runs),
        "difference": statistics.fmean(differences),
        "std of it": spread,
        "train s": statistics.fmean(run["train"] for run in runs),
        "again s": statistics.fmean(run["again"] for run in runs) if views else None,
    }


if __name__ == "__main__":
    main()
