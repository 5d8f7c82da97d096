"""The long test of kills: SIGKILL at random moments, checkpoint writes among them, until the count is reached.

    python -m tests.soak.kills --trainer PLOT --kills 30         # on symbols; CoOp and CoCoOp: --kills 10
    python -m tests.soak.kills --trainer CoOp --kills 3 --shots 1 OPTIM.MAX_EPOCH 4

Each kill is followed by the same command again. A run that comes to its end is compared with one that nothing has
killed (context and predictions, bit for bit; files and processes left behind) and begun anew. Exit code 0: all equal.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import runs
from dassl.utils import load_checkpoint


def command(args: argparse.Namespace, directory: Path) -> list[str]:
    configs = runs.REPOSITORY / "configs"
    return [
        *(sys.executable, str(runs.REPOSITORY / "train.py"), "--seed", "1", "--trainer", args.trainer),
        *("--dataset-config-file", str(configs / "datasets/symbols.yaml"), "--output-dir", str(directory)),
        *("--config-file", str(configs / f"trainers/{args.trainer}/symbols.yaml")),
        *("DATASET.NUM_SHOTS", str(args.shots), *args.opts),
    ]


def kill_once(start: list[str], directory: Path, within: float, rng: random.Random, log: Path) -> bool:
    """Whether it was killed before its end: at a random moment or, every other time, as a checkpoint is written."""
    writing = rng.random() < 0.5
    end = time.monotonic() + rng.uniform(0, within)
    with log.open("w") as file:
        process = subprocess.Popen(start, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    while process.poll() is None:
        if time.monotonic() > end and not (writing and not list(directory.glob("*/*.tmp-*"))):
            break
        time.sleep(0.0005 if writing else 0.01)
    killed = process.poll() is None
    if killed:
        process.kill()
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"exit code {code}:\n{log.read_text()[-2000:]}")
    time.sleep(2.5)  # workers see within a second that their parent is gone
    if left := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _session(pid) == process.pid]:
        raise SystemExit(f"processes left behind: {left}")
    return killed


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def compare(whole: Path, other: Path) -> None:
    """Raises SystemExit where two finished runs differ."""
    names = [{str(p.relative_to(d)) for p in d.rglob("*") if "tfevents" not in p.name} for d in (whole, other)]
    if names[0] != names[1]:
        raise SystemExit(f"files left behind, or missing: {names[0] ^ names[1]}")
    if (whole / "predictions.json").read_bytes() != (other / "predictions.json").read_bytes():
        raise SystemExit("the predictions differ")
    last = max((whole / "prompt_learner").glob("model.pth.tar-*"), key=lambda path: int(path.suffix[5:])).name
    states = [load_checkpoint(str(d / "prompt_learner" / last))["state_dict"] for d in (whole, other)]
    if not all(torch.equal(states[0][key], states[1][key]) for key in states[0]):
        raise SystemExit("what was learned differs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="PLOT", choices=("PLOT", "CoOp", "CoCoOp"))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, other, log = (Path(folder) / name for name in ("whole", "killed", "log"))
        begun = time.monotonic()
        subprocess.run(command(args, whole), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begun
        kills = finished = 0
        while kills < args.kills or not finished:
            # Once the count is reached, the last run is left to its end.
            within = seconds if kills < args.kills else 1e9
            if kill_once(command(args, other), other, within, rng, log):
                kills += 1
                print(f"kill {kills}: {sorted(p.name for p in other.glob('prompt_learner/*'))}", flush=True)
            else:
                compare(whole, other)
                finished += 1
                shutil.rmtree(other)
        print(f"{args.trainer}: {kills} kills, {finished} runs ended, all as the one of {seconds:.1f} s without a kill")
    return 0


if __name__ == "__main__":
    sys.exit(main())
