"""Runs that are killed, interrupted or damaged resume to the bit, and a directory has one writer."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from dassl.extras.interrupts import interruptible
from dassl.utils import list_checkpoints, load_checkpoint
from experiments import jobs
from runs.directory import REPOSITORY
from runs.result import read_result
from tests import children

from .test_train import SMALL, command

pytestmark = pytest.mark.medium

SHORT = [*SMALL, "OPTIM.MAX_EPOCH", "3", "DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]
CONFIG = {"PLOT": "rn50", "CoOp": "rn50_ep50", "CoCoOp": "rn50_c4_ep10_batch1_ctxv1"}


def argv_of(run_args: list[str], trainer: str, directory: Path, *extra: str) -> list[str]:
    return ["--output-dir", str(directory), *command(run_args, trainer, CONFIG[trainer]), *SHORT, *extra]


def outcome(directory: Path) -> tuple[dict[str, Any], Any, str]:
    last = load_checkpoint(str(directory / "prompt_learner/model.pth.tar-3"))
    result = read_result(directory)
    assert result is not None
    return last, result["accuracy"], (directory / "predictions.json").read_text()


def assert_same_bits(one: Path, other: Path) -> None:
    (first, *one_rest), (second, *other_rest) = outcome(one), outcome(other)
    assert one_rest == other_rest
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(first["state_dict"][k], second["state_dict"][k]) for k in first["state_dict"])
    assert first["scheduler"] == second["scheduler"]
    slots = [checkpoint["optimizer"]["state"] for checkpoint in (first, second)]
    assert all(torch.equal(slots[0][i]["momentum_buffer"], slots[1][i]["momentum_buffer"]) for i in slots[0])


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if "tfevents" not in p.name}


@pytest.fixture
def whole(run_args: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An uninterrupted run of the parametrized trainer."""
    assert train.main(argv_of(run_args, request.param, tmp_path / "whole")) == 0
    return tmp_path / "whole"


@pytest.mark.parametrize(("whole", "trainer"), [(name, name) for name in CONFIG], indirect=["whole"])
def test_killed_anywhere_it_ends_at_the_same_bits(
    whole: Path, trainer: str, run_args: list[str], tmp_path: Path
) -> None:
    """Each start is killed after some events: in a step, or within the write of a checkpoint."""
    argv, log = argv_of(run_args, trainer, tmp_path / "killed"), tmp_path / "log"
    codes = [children.run(argv, log, children.killed_at(event)) for event in (2, 7, 9, 12)]
    assert codes == [-signal.SIGKILL] * 4
    assert children.run(argv, log) == 0
    assert "Found checkpoint" in log.read_text()
    assert_same_bits(whole, tmp_path / "killed")
    assert files(tmp_path / "killed") == files(whole)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_order_and_its_line_resumes_it(
    signum: int, run_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are loader workers, and the signal goes to the whole group, as a terminal or a scheduler sends it."""
    assert train.main(argv_of(run_args, "PLOT", tmp_path / "whole")) == 0
    argv = argv_of(run_args, "PLOT", tmp_path / "run", "DATALOADER.NUM_WORKERS", "2", "TRAIN.PRINT_FREQ", "1")
    log = tmp_path / "log"

    process = children.start(argv, log, _wait_for_a_signal_in_epoch_2)
    children.wait_for(lambda: "waits for a signal" in log.read_text())
    assert len(children.processes_of(process.pid or 0)) == 3
    begun = time.monotonic()
    os.killpg(process.pid or 0, signum)
    process.join(timeout=30)
    assert process.exitcode == 128 + signum and time.monotonic() - begun < 5
    children.wait_for(lambda: not children.processes_of(process.pid or 0), seconds=3)
    printed = log.read_text()
    assert (
        "Traceback" not in printed and f"interrupted by {signal.Signals(signum).name}; what is saved of it" in printed
    )
    (saved,) = (tmp_path / "run/prompt_learner").glob("interrupted*")
    assert saved.name == "interrupted.pth.tar-1-1"
    torch.load(saved, weights_only=True)
    *_, line = printed.splitlines()
    words = shlex.split(line)
    assert f"OUT={os.environ['OUT']}" in words and words[words.index(sys.executable) + 1].endswith("/train.py")
    assert train.main(words[words.index(sys.executable) + 2 :]) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    "program",
    [
        *(["train.py"], ["sweep.py"], ["predict.py"]),
        *(["-m", f"experiments.{name}"] for name in ("compare", "tables", "figures")),
    ],
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports(signum: int, program: list[str], tmp_path: Path) -> None:
    """Here the import of torch never ends."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("import time; print('importing', flush=True); time.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, *program],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert said.strip() == f"interrupted by {signal.Signals(signum).name} before anything was begun"


def test_the_programs_exit_code_and_the_scripts(weights: Path, data_root: Path, tmp_path: Path) -> None:
    """The signal goes to bash alone and is passed on. The line that resumes is the script's."""
    environment = {"DATA": str(data_root), "OUT": str(tmp_path / "out"), "SEEDS": "1", "PYTHON": sys.executable}
    arguments = ["plot/main.sh", "caltech101", "1", "MODEL.BACKBONE.NAME", str(weights), *SMALL]
    arguments += ["OPTIM.MAX_EPOCH", "100000", "TRAIN.PRINT_FREQ", "1"]
    script, *rest = arguments
    process = subprocess.Popen(
        ["bash", str(REPOSITORY / "scripts" / script), *rest],
        stdout=(tmp_path / "log").open("w"),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    children.wait_for(lambda: "epoch [2/" in (tmp_path / "log").read_text(), seconds=300)
    process.send_signal(signal.SIGTERM)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143
    children.wait_for(lambda: not children.processes_of(process.pid), seconds=10)
    said, line = error.strip().splitlines()
    assert said.startswith("interrupted by SIGTERM")
    words = shlex.split(line)
    assert {f"OUT={tmp_path / 'out'}", "SEEDS=1"} <= set(words) and words[-len(rest) :] == rest
    assert words[words.index("bash") :] == ["bash", str(REPOSITORY / "scripts" / script), *rest]  # what was typed
    assert list((tmp_path / "out").rglob("*.pth.tar-*"))


def test_a_run_that_a_signal_meets_at_its_very_end() -> None:
    """The run also receives Ctrl-C, and may no longer have a handler when the driver passes it on."""
    with interruptible():
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert jobs.run_to_its_end(lambda: subprocess.Popen(["sleep", "60"])) == 128 + signal.SIGINT


def test_damaged_checkpoints_are_reported_and_the_one_before_is_used(run_args: list[str], tmp_path: Path) -> None:
    argv, log = argv_of(run_args, "CoOp", tmp_path / "run"), tmp_path / "log"
    assert train.main(argv_of(run_args, "CoOp", tmp_path / "whole")) == 0
    assert children.run(argv, log, children.killed_at(27)) == -signal.SIGKILL  # in the third epoch
    learner = tmp_path / "run/prompt_learner"
    done, name = max(list_checkpoints(str(learner)).items())
    assert done == (2, 0)
    content = bytearray((learner / name).read_bytes())
    content[1000] ^= 1
    (learner / name).write_bytes(content)
    assert children.run(argv, log) == 0
    said = log.read_text()
    assert "Damaged: cannot read checkpoint" in said and name in said and "Previous epoch: 1" in said
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_an_unseeded_run_resumes_exactly(run_args: list[str], tmp_path: Path) -> None:
    """The checkpoint holds the random state: after epoch 1 both copies draw the same."""
    argv, log = argv_of(run_args, "CoOp", tmp_path / "a", "SEED", "-1"), tmp_path / "log"
    assert children.run(argv, log, children.killed_at(14)) == -signal.SIGKILL
    subprocess.run(["cp", "-r", str(tmp_path / "a"), str(tmp_path / "b")], check=True)
    for name in ("a", "b"):
        assert children.run(argv_of(run_args, "CoOp", tmp_path / name, "SEED", "-1"), log) == 0
        assert "Found checkpoint" in log.read_text()
    assert_same_bits(tmp_path / "a", tmp_path / "b")


def test_a_second_process_on_a_directory_stops_with_a_line(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = argv_of(run_args, "CoOp", tmp_path / "run")
    first = children.start(argv, tmp_path / "log", _stop_at_first_step)
    children.wait_for(lambda: "at its first step" in (tmp_path / "log").read_text())
    before = files(tmp_path / "run")
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"another process is writing to '{tmp_path / 'run'}'" in error
    assert files(tmp_path / "run") == before
    os.kill(first.pid or 0, signal.SIGKILL)  # this frees its lock
    first.join()
    assert train.main(argv) == 0


def _wait_for_a_signal_in_epoch_2() -> None:
    """Prints a line in the first step of the second epoch, which ends when a signal has come."""
    from dassl.engine import TrainerX
    from dassl.extras.interrupts import _State

    step = TrainerX._step

    def wait(self: Any, batch: Any) -> Any:
        if (self.epoch, self.batch_idx) == (1, 0):
            print("waits for a signal", flush=True)
            while _State.came is None:
                time.sleep(0.01)
        return step(self, batch)

    TrainerX._step = wait  # type: ignore[method-assign]


def _stop_at_first_step() -> None:
    """Prints a line at the first step and waits there."""
    from dassl.engine import TrainerX

    def wait(*args: object) -> None:
        print("at its first step", flush=True)
        time.sleep(600)

    TrainerX._step = wait  # type: ignore[assignment, method-assign]
