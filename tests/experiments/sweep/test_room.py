"""`--jobs auto`: as many runs at once as the machine's free memory holds. The GPUs are a stand-in for nvidia-smi."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.sweep import command, room
from tests.experiments.sweep.conftest import Place, plan
from tests.experiments.trees import write_run

ARGV = ["--trainers", "PLOT,CoOp", "--datasets", "symbols", "--shots", "1", "--seeds", "1,2,3,4,5", "--jobs", "auto"]
Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """machine(cores, GB, *GB of each GPU): what is free."""

    def make(cores: int, gigabytes: float, *gpus: float, visible: str | None = None) -> None:
        monkeypatch.setattr(room, "available_cpus", lambda: cores)
        monkeypatch.setattr(room, "free_memory", lambda: 1e9 * gigabytes)
        lines = "".join(f"echo '{i}, GPU-{'abc'[i]}4e1, {math.ceil(1e9 * gb / 2**20)}'\n" for i, gb in enumerate(gpus))
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin/nvidia-smi").write_text(f"#!/bin/sh\n{lines or 'exit 9'}\n")
        (tmp_path / "bin/nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


def finished(place: Place, gpu: float | None) -> None:
    """A run of each method: PLOT's took 2 GB of memory and ``gpu`` GB of a GPU, CoOp's 1 GB and half of that."""
    backbone = {"name": plan(*ARGV[:-2]).runs[0].backbone}
    for trainer, part in (("PLOT", 1.0), ("CoOp", 0.5)):
        fields = {"seconds": {"total": 3.0, "train_seconds": 1.0}, "backbone": backbone}
        peaks = {"peak_memory_bytes": int(2e9 * part), "peak_gpu_memory_bytes": gpu and int(1e9 * gpu * part)}
        write_run(place.out, trainer, "symbols", 1, 9, **fields, **peaks)


@pytest.mark.parametrize(
    ("gpu", "of_machine", "visible", "says"),
    [
        (3.0, (16, 64, 20.0), None, "5 at once, by 20.0 GB free on the GPU at 4.0 GB a run"),
        (3.0, (16, 64, 9.0, 20.0), None, "4 at once, by 9.0 GB free on each GPU at 4.0 GB a run"),
        (3.0, (16, 64, 9.0, 20.0), "1", "5 at once, by 20.0 GB free on the GPU at 4.0 GB a run"),
        (3.0, (16, 64, 9.0, 20.0), "GPU-b4", "5 at once, by 20.0 GB free on the GPU at 4.0 GB a run"),
        (3.0, (16, 64, 3.0), None, "1 at once, by 3.0 GB free on the GPU at 4.0 GB a run"),
        (3.0, (16, 7, 90.0), None, "3 at once, by 7.0 GB free at 2.0 GB a run"),
        (3.0, (2, 64, 90.0), None, "2 at once, by 2 cores"),
        (None, (16, 64, 5.0), None, "10 at once, by 10 runs"),
        (3.0, (16, 64), None, "1 at once, by GPUs whose free memory is unknown"),
    ],
)
def test_the_plan_chooses_by_what_is_free(
    gpu: float | None,
    of_machine: tuple[int, ...],
    visible: str | None,
    says: str,
    machine: Machine,
    place: Place,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine(*of_machine, visible=visible)
    finished(place, gpu)
    assert command.main([*ARGV, "--dry-run"]) == 0
    assert f"--jobs auto: {says}\n" in capsys.readouterr().out and not place.starts


@pytest.mark.medium
def test_without_a_finished_run_of_each_method_it_is_one(
    machine: Machine, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(16, 64, 90.0)
    assert command.main([*ARGV[:6], "--seeds", "1,2", "--jobs", "auto"]) == 0
    out = capsys.readouterr().out
    says = "--jobs auto: 1 at once, as not each method has a run on this backbone; start again when it has\n"
    assert says in out and "1 at once: " in out
    assert len(place.results) == 4


@pytest.mark.medium
def test_the_chosen_number_run_at_once(machine: Machine, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    machine(2, 64, 90.0)
    finished(place, 3.0)
    assert command.main([*ARGV[:6], "--seeds", "1,2", "--jobs", "auto"]) == 0
    assert "2 at once: " in capsys.readouterr().out and len(place.results) == 6
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {start[4] for start in place.starts} == {str(cores)}


def test_a_number_or_auto(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for word, fault in (("0", "--jobs is 0; it must be 1 or more"), ("-1", "--jobs is -1"), ("all", "'all'")):
        assert command.main([*ARGV[:-1], word]) == 2
        assert fault in capsys.readouterr().err
    assert not place.starts
