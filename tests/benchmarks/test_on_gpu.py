"""`benchmarks/on_gpu.sh` with stand-ins for nvidia-smi and Python, which fails in the part that runs pytest."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from runs.directory import REPOSITORY


@pytest.mark.parametrize("gpu", [True, False])
def test_on_gpu(gpu: bool, tmp_path: Path) -> None:
    python, folder = tmp_path / "python", tmp_path / "folder"
    python.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *"-m pytest"*) exit 1;; esac\n')
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho GPU\nexit {0 if gpu else 9}\n")
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(python)}

    def on_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(REPOSITORY / "benchmarks/on_gpu.sh"), *arguments, str(folder)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    plan = on_gpu("--dry-run")
    assert plan.returncode == 0 and not folder.exists()
    limits = re.findall(r"^== \w+: timeout (\d+) ", plan.stdout, re.MULTILINE)
    assert len(limits) == plan.stdout.count("\n") == 9
    assert sum(int(limit) + 5 for limit in limits) <= 8 * 60  # 5 s between SIGTERM and SIGKILL
    done = on_gpu()
    if gpu:
        last = done.stdout.splitlines()[-1]
        assert done.returncode == 1 and last.startswith("passed: versions step_fp16 ")
        assert last.endswith(" several_runs grid; failed: cuda_tests (1)")
        assert "--fused" in (folder / "step_fp16.txt").read_text()
        assert f"{folder}/step_fp16_batch_8.json" in (folder / "grid.txt").read_text()
        assert "PLOT symbols 16" in (folder / "symbols.txt").read_text()
        assert len(list(folder.iterdir())) == 9
    else:
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: nvidia-smi finds no GPU here\n")
