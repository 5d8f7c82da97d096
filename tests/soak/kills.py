"""The long test of kills: SIGKILL at random moments, checkpoint writes among them, until the count is reached.

    python -m tests.soak.kills --trainer PLOT --kills 30         # CoOp and CoCoOp: --kills 10
    python -m tests.soak.kills --trainer CoOp --kills 3 --exec OPTIM.MAX_EPOCH 4

On symbols with few pictures a class. Each kill is followed by the same command again. A run that comes to its end is
compared with one that nothing has killed (context and predictions, bit for bit; files and processes left behind) and
begun anew. Each start is a new process, forked from this one after the imports; with --exec it is a new interpreter,
which takes seconds more. Exit code 0: all equal.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dassl.utils import load_checkpoint
from runs.directory import REPOSITORY
from tests import children
from tests.soak import symbols

Start = Callable[[list[str], Path], Any]  # (arguments of train.py, log file) -> a process, leader of its own group


def start_interpreter(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(REPOSITORY / "train.py"), *argv]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def exit_code(process: Any) -> int | None:
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def writing(directory: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(directory.glob("prompt_learner/*.tmp-*"))


def kill_once(start: Start, argv: list[str], directory: Path, within: float, rng: random.Random, log: Path) -> bool:
    """Whether it was killed before its end: at a random moment or, every other time, as a checkpoint is written."""
    at_a_write = rng.random() < 0.5
    end = time.monotonic() + rng.uniform(0, within)
    process = start(argv, log)
    while exit_code(process) is None:
        if time.monotonic() > end and (writing(directory) or not at_a_write):
            process.kill()
            break
        time.sleep(0.0005 if at_a_write else 0.01)
    while (code := exit_code(process)) is None:
        time.sleep(0.001)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"exit code {code}:\n{log.read_text()[-2000:]}")
    limit = time.monotonic() + 10  # workers see within a second that their parent is gone
    while left := children.processes_of(process.pid):
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
    """What came of it, in a line. Raises SystemExit where something differs."""
    whole, other, log = (folder / name for name in ("whole", "killed", "log"))
    start: Start = start_interpreter if args.exec else children.start
    argv = [*symbols(args.trainer, folder / "data", args.shots), *args.opts]
    rng, begun = random.Random(args.seed), time.monotonic()
    kill_once(start, ["--output-dir", str(whole), *argv], whole, 1e9, rng, log)
    seconds = time.monotonic() - begun
    kills = finished = at_writes = resumed = 0
    moments = seconds  # within which a kill comes; on a busy machine runs get slower or faster
    while kills < args.kills or not finished:
        # Once the count is reached, the last run is left to its end.
        within = moments if kills < args.kills else 1e9
        if kill_once(start, ["--output-dir", str(other), *argv], other, within, rng, log):
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
    parser.add_argument("--exec", action="store_true", help="a new interpreter for each start")
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
