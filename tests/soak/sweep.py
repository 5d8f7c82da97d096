"""A sweep on three Ray nodes of which one is killed, and then the driver, against the same sweep on this machine.

    python -m tests.soak.sweep [--runs 24] [--keep FOLDER]

Short runs on symbols: after a third of them a node is killed, at a run, after two thirds the driver, which is started
again. Prints one line; exit code 1 unless that run was lost, and every result is there, once, and equal to that of
--engine local to the last bit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dassl.utils import load_checkpoint
from runs.directory import REPOSITORY
from runs.result import load_result
from tests.experiments.sweep.cluster import Cluster, cluster

SHOTS = (1, 2, 4, 8)


def sweep(out: Path, count: int, *more: str) -> subprocess.Popen[bytes]:
    """``sweep.py`` with one thread a run; what it prints is in OUT's driver.txt."""
    seeds = ",".join(str(seed) for seed in range(1, 1 + count // (2 * len(SHOTS))))
    shots = ",".join(map(str, SHOTS))
    command = [sys.executable, "sweep.py", "--trainers", "CoOp,PLOT", "--datasets", "symbols"]
    command += ["--shots", shots, "--seeds", seeds, *more, "OPTIM.MAX_EPOCH", "1"]
    data = Path(os.environ.get("DATA") or "data").absolute()
    env = {**os.environ, "OUT": str(out), "DATA": str(data), "OMP_NUM_THREADS": "1"}
    out.mkdir(parents=True, exist_ok=True)
    with (out / "driver.txt").open("a") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=file, stderr=file)


def results(out: Path) -> dict[Path, int]:
    """By the run's path under OUT, when its result.json was written."""
    return {path.parent.relative_to(out): path.stat().st_mtime_ns for path in out.rglob("result.json")}


def until(out: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    while len(results(out)) < count:
        if driver.poll() is not None:
            sys.exit(f"the driver ended early:\n{(out / 'driver.txt').read_text()}")
        time.sleep(0.1)


def with_faults(out: Path, count: int, made: Cluster) -> tuple[int, str]:
    """How many finished runs were done again, and what the drivers printed."""
    ray = ("--engine", "ray", "--address", made.address)
    driver = sweep(out, count, *ray)
    until(out, count // 3, driver)
    made.kill(2)
    until(out, 2 * count // 3, driver)
    driver.kill()
    driver.wait()
    before = results(out)
    if code := sweep(out, count, *ray).wait():
        sys.exit(f"the second driver ended with {code}:\n{(out / 'driver.txt').read_text()}")
    after = results(out)
    again = sum(after.get(path) != written for path, written in before.items())
    return again, (out / "driver.txt").read_text()


def outcome(directory: Path) -> dict[str, Any]:
    """What may not depend on where and how often a run was started."""
    result = load_result(directory / "result.json")
    (checkpoint,) = directory.glob("prompt_learner/model.pth.tar-1")
    return {
        **{key: result[key] for key in ("accuracy", "macro_f1", "counts", "options", "diagnostics")},
        "predictions": (directory / "predictions.json").read_bytes(),
        **load_checkpoint(str(checkpoint))["state_dict"],
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else bool(x == y)

    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)


def compare(folder: Path, count: int) -> int:
    start = time.perf_counter()
    if code := sweep(folder / "local", count).wait():
        sys.exit(f"--engine local ended with {code}:\n{(folder / 'local/driver.txt').read_text()}")
    local_seconds = time.perf_counter() - start
    with cluster(3) as made:
        start = time.perf_counter()
        again, text = with_faults(folder / "ray", count, made)
        ray_seconds = time.perf_counter() - start
    expected, found = results(folder / "local"), results(folder / "ray")
    common = expected.keys() & found.keys()
    equal = sum(same(outcome(folder / "local" / path), outcome(folder / "ray" / path)) for path in common)
    lost = text.count("lost (")
    print(
        f"{len(found)} of {count} results with Ray, {equal} equal to --engine local bit for bit; a node was killed "
        f"after {count // 3}, the driver after {2 * count // 3}: {lost} lost runs tried again, {again} finished ones "
        f"done again; {local_seconds:.0f} s one after another, {ray_seconds:.0f} s on three nodes"
    )
    return 0 if len(expected) == len(found) == equal == count and lost and not again else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24, help="a multiple of 8 (default: 24)")
    parser.add_argument("--keep", type=Path, help="an empty folder for the two OUTs (default: a temporary one)")
    args = parser.parse_args()
    if args.runs < 8 or args.runs % 8:
        parser.error("--runs must be a multiple of 8")
    if args.keep:
        return compare(args.keep.absolute(), args.runs)
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), args.runs)


if __name__ == "__main__":
    sys.exit(main())
