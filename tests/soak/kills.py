"""The long test of kills: SIGKILL at random moments, checkpoint writes among them, until the count is reached.

    python -m tests.soak.kills --trainer PLOT --kills 30         # CoOp and CoCoOp: --kills 10

The runs use symbols with few pictures a class. After each kill the same command starts again, in a child process
forked after the imports. A finished run is compared with one that was never killed: context and predictions bit for
bit, and the files and processes left behind. Exit code 0: all are equal.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from dassl.utils import load_checkpoint
from tests import children
from tests.soak import symbols


def writing(directory: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(directory.glob("prompt_learner/*.tmp-*"))


def kill_once(argv: list[str], directory: Path, within: float, rng: random.Random, log: Path) -> bool:
    """Whether the run was killed before its end: at a random moment or, every other time, in a checkpoint's write."""
    at_a_write = rng.random() < 0.5
    end = time.monotonic() + rng.uniform(0, within)
    process = children.start(argv, log)
    while process.exitcode is None:
        if time.monotonic() > end and (writing(directory) or not at_a_write):
            process.kill()
            break
        time.sleep(0.0005 if at_a_write else 0.01)
    process.join()
    if (code := process.exitcode) not in (0, -signal.SIGKILL):
        raise SystemExit(f"exit code {code}:\n{log.read_text()[-2000:]}")
    limit = time.monotonic() + 10  # workers see within a second that their parent is gone
    while left := children.processes_of(process.pid or 0):
        if time.monotonic() > limit:
            raise SystemExit(f"processes left behind: {left}")
        time.sleep(0.05)
    return code != 0


def compare(whole: Path, other: Path) -> None:
    """Raises SystemExit where two finished runs differ."""
    names = [{str(p.relative_to(d)) for p in d.rglob("*") if "tfevents" not in p.name} for d in (whole, other)]
    if names[0] != names[1]:
        raise SystemExit(f"files left behind, or missing: {names[0] ^ names[1]}")
    if (whole / "predictions.json").read_bytes() != (other / "predictions.json").read_bytes():
        raise SystemExit("the predictions differ")
    last = max((whole / "prompt_learner").glob("model.pth.tar-*"), key=lambda path: int(path.suffix[5:])).name
    one, two = (load_checkpoint(str(d / "prompt_learner" / last)) for d in (whole, other))
    for part in ("state_dict", "optimizer", "scheduler"):
        try:
            torch.testing.assert_close(two[part], one[part], rtol=0, atol=0)
        except AssertionError as error:
            raise SystemExit(f"the checkpoints' {part} differs: {error}") from None


def kill_and_resume(args: argparse.Namespace, folder: Path) -> str:
    """Returns a summary of one line. Raises SystemExit where something differs."""
    whole, other, log = (folder / name for name in ("whole", "killed", "log"))
    argv = [*symbols(args.trainer, folder / "data", args.shots), *args.opts]
    rng, begun = random.Random(args.seed), time.monotonic()
    kill_once(["--output-dir", str(whole), *argv], whole, 1e9, rng, log)
    seconds = time.monotonic() - begun
    kills = finished = at_writes = resumed = 0
    moments = seconds  # a kill comes within this time; on a busy machine the length of a run varies
    while kills < args.kills or not finished:
        # After the last kill, the run finishes.
        within = moments if kills < args.kills else 1e9
        if kill_once(["--output-dir", str(other), *argv], other, within, rng, log):
            kills += 1
            moments *= 1.1
            at_writes += writing(other)
            names = sorted(p.name for p in other.glob("prompt_learner/*"))
            print(f"[{time.monotonic() - begun:6.1f} s] kill {kills} of {args.kills}, left: {names}", flush=True)
        else:
            compare(whole, other)
            finished += 1
            moments *= 0.7
            print(f"[{time.monotonic() - begun:6.1f} s] run {finished} has ended, equal bit for bit", flush=True)
            shutil.rmtree(other)
        resumed += "Found checkpoint" in log.read_text()
    writes = f"{at_writes} within a checkpoint's write"
    ended = f"{finished} runs ended, all equal to the one of {seconds:.1f} s without a kill"
    took = f"{time.monotonic() - begun:.0f} s"
    return f"{args.trainer}: {kills} kills ({writes}), {resumed} starts resumed, {ended}; {took}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="PLOT", choices=("PLOT", "CoOp", "CoCoOp"))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(kill_and_resume(args, Path(folder)))
        except SystemExit as failure:
            print(f"FAILED: {failure}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
