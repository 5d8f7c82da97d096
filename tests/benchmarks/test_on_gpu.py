"""`benchmarks/on_gpu.sh` as far as a machine without a GPU allows, and with stand-ins for nvidia-smi and Python."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from runs.directory import REPOSITORY


def on_gpu(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(REPOSITORY / "benchmarks/on_gpu.sh"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def stand_in(path: Path, code: str) -> str:
    path.write_text(f"#!/usr/bin/env bash\n{code}\n")
    path.chmod(0o755)
    return str(path)


def test_all_parts_together_take_at_most_eight_minutes(tmp_path: Path) -> None:
    done = on_gpu("--dry-run", str(tmp_path / "folder"))
    assert done.returncode == 0 and not (tmp_path / "folder").exists()
    limits = re.findall(r"timeout (\d+) ", done.stdout)
    assert len(limits) == len(done.stdout.splitlines()) and sum(int(limit) + 5 for limit in limits) <= 480
    for command in ("benchmarks.step", "benchmarks.image_loading", "test_cuda.py", "plot/main.sh symbols 16"):
        assert command in done.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    stand_in(tmp_path / "nvidia-smi", "exit 9")
    done = on_gpu(str(tmp_path / "folder"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: nvidia-smi finds no GPU here\n")


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    stand_in(tmp_path / "nvidia-smi", "echo GPU 1")
    python = stand_in(tmp_path / "python", 'echo "$@ OUT=$OUT"; [[ "$*" != *pytest* ]]')
    folder = tmp_path / "folder"
    done = on_gpu(str(folder), PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHON=python)
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("passed: versions step_fp16 ")
    assert last.endswith(" step_bf16; failed: cuda_tests (1)")
    assert "--trainer PLOT --dataset symbols --shots 16" in (folder / "symbols.txt").read_text()
    assert len(list(folder.iterdir())) == done.stdout.count("\n== ") and str(folder) not in done.stdout
