"""Without what Windows' Python lacks (``tests/no_posix``): the programs run, and give the same figures."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from runs.directory import REPOSITORY

from .test_train import SHORT, command

START = """
from runs import process
process.METHOD = "spawn"
if __name__ == "__main__":
    child = process.start(["--help"])
    assert child.wait() == 0
    slow = process.start(["60"], "time:sleep")
    slow.send_signal(process.KILL)
    assert slow.wait() < 0
"""


def python(*arguments: object, lacking: bool = True) -> str:
    paths = [str(REPOSITORY / "tests" / "no_posix")] * lacking + [str(REPOSITORY)]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_lacks_what_windows_lacks() -> None:
    python("-c", "import signal, os; assert not hasattr(os, 'fork') and not hasattr(signal, 'pthread_sigmask')")
    python("-c", "import importlib.util, sys; assert sys.modules['fcntl'] is None")


@pytest.mark.slow
def test_training_testing_and_predicting(run_args: list[str], data_root: Path, tmp_path: Path) -> None:
    found = []
    for lacking in (True, False):
        out = tmp_path / str(lacking)
        argv = [*command(run_args, "PLOT", "rn50"), *SHORT, "DATALOADER.NUM_WORKERS", "1"]
        python("train.py", "--output-dir", out, *argv, lacking=lacking)
        result = json.loads((out / "result.json").read_text())
        found.append((result.pop("peak_memory_bytes"), result["accuracy"], (out / "predictions.json").read_text()))
    assert found[0][0] is None and found[1][0] > 0
    assert found[0][1:] == found[1][1:]
    picture = next(data_root.rglob("*.jpg"))
    assert picture.name in python("predict.py", "--run", out, picture)


@pytest.mark.slow
def test_preparing_a_dataset(tmp_path: Path) -> None:
    for part, name, i in itertools.product(("train", "test"), ("blue", "red"), range(2)):
        path = tmp_path / part / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), name).save(path)
    assert "ready" in python("-m", "datasets.prepare", "image_folder", "--check", "--decode", "--root", tmp_path)


@pytest.mark.slow
def test_a_run_in_a_new_interpreter(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(START)
    python(program)
