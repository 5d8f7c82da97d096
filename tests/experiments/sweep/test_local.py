"""Sweeps on this machine: what is done, in what order it ends, and what is left when something dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.sweep import command, local
from experiments.sweep.execute import next_free, settle
from experiments.sweep.progress import Progress
from experiments.sweep.task import Outcome
from experiments.sweep.times import Times
from runs.directory import LOCK
from runs.process import REPOSITORY
from tests.children import alive
from tests.children import wait_for as until
from tests.experiments.sweep.conftest import Driver, Place, plan

pytestmark = pytest.mark.medium

SIX = ("--trainers", "PLOT,CoOp", "--datasets", "symbols", "--shots", "1", "--seeds", "1,2,3")


def test_all_is_done_once_and_kept(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--trainers", "PLOT,zsclip", "--datasets", "symbols", "--shots", "1,2", "--seeds", "1,2"]
    assert command.main(argv) == 0
    text = capsys.readouterr().out
    assert [start[:3] for start in place.starts] == [
        *(["PLOT", shots, seed] for shots in "12" for seed in "12"),
        ["ZeroshotCLIP", "0", "1"],
    ]
    assert len(place.results) == 5 and not list(place.out.glob("sweeps/**/*.txt"))
    assert "[5/5] ZeroshotCLIP, symbols: 50.00%" in text and "to go" not in text.partition("[5/5]")[2]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| symbols")]
    assert [[word.strip() for word in row] for row in rows] == [
        ["symbols", "PLOT", "50.00 ± 0.00", "50.00 ± 0.00"],
        ["symbols", "zero-shot CLIP", "50.00", "50.00"],
    ]
    assert (place.out / "tables/sweep_symbols_trainersPLOT-zsclip_shots1-2_seeds1-2.csv").is_file()
    place.results[0].unlink()
    assert command.main(argv) == 0
    assert len(place.starts) == 6 and len(place.results) == 5
    assert command.main(argv) == 0 and len(place.starts) == 6


def test_a_run_that_another_process_is_at_is_waited_for(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """It comes last, when that one has ended; what it has finished by then is kept."""
    directory = plan(*SIX).runs[0].directory
    lock = FileLock(directory / LOCK, thread_local=False)
    lock.acquire()
    timer = threading.Timer(3, lock.release)
    timer.start()
    assert command.main(list(SIX)) == 0
    timer.join()
    text = capsys.readouterr().out
    assert text.count("PLOT, symbols, 1 shot, seed 1: another process is at it") == 1
    assert len(place.starts) == 6 and place.starts[-1][:3] == ["PLOT", "1", "1"] and len(place.results) == 6


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_another_process_took_as_it_started_is_waited_for(
    ended: bool, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was free when asked, and ends with code 2, as of one writer too many: no failure of its own."""
    order, answers = place.orders / "seed2", iter([True, False])
    order.write_text("exit 2")

    def is_free(lock: Path) -> bool:
        directory = lock.parent
        if directory.name != "seed2" or next(answers, True):
            return True
        order.unlink()  # it is the other process's now
        if ended:
            directory.mkdir(parents=True, exist_ok=True)
            result = (directory.with_name("seed1") / "result.json").read_text()
            (directory / "result.json").write_text(result)
        return ended

    monkeypatch.setattr("experiments.sweep.execute.is_free", is_free)
    assert command.main([*SIX[2:], "--trainers", "PLOT"]) == 0
    assert (
        len(place.starts) == (3 if ended else 4) and len(place.results) == 3 and "failed" not in capsys.readouterr().out
    )


def test_a_run_starts_after_those_that_it_needs(place: Place) -> None:
    """At several at once; a needed run that has failed is left no more, and holds nothing up."""
    runs = plan("--trainers", "PLOT,PLOTAdapter", "--datasets", "symbols", "--shots", "1", "--seeds", "1,2").runs
    waiting, left = deque(runs), {run.directory: run for run in runs}
    started = [next_free(waiting, set(), left) for _ in range(4)]
    assert started == [*runs[:2], None, None] and [*waiting] == runs[2:]
    del left[runs[0].directory]
    assert next_free(waiting, set(), left) is runs[2] and next_free(waiting, set(), left) is None
    runs[1].directory.mkdir(parents=True)
    (runs[1].directory / "result.json").write_text("{}")  # by another process
    assert next_free(waiting, set(), left) is runs[3]


def test_where_no_log_can_be_written_each_run_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.out.mkdir()
    (place.out / "sweeps").write_text("no folder")
    assert command.main(list(SIX)) == 1
    error = capsys.readouterr().err
    assert "6 of 6 runs failed:" in error and error.count("sweeps") >= 6 and not place.starts


def test_a_failed_run_stops_no_other(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, what in (("2", "exit 2"), ("3", "traceback"), ("4", "kill"), ("5", "kill always")):
        (place.orders / f"seed{seed}").write_text(what)
    argv = ["--trainers", "PLOT", "--datasets", "symbols", "--shots", "1", "--seeds", "1,2,3,4,5,6", "--jobs", "2"]
    assert command.main(argv) == 1
    captured = capsys.readouterr()
    assert sorted(path.parent.name for path in place.results) == ["seed1", "seed4", "seed6"]
    tries = [start[2] for start in place.starts]
    assert {seed: tries.count(seed) for seed in "123456"} == {"1": 1, "2": 1, "3": 1, "4": 2, "5": 3, "6": 1}
    assert "3 of 6 runs failed:" in captured.err
    assert "PLOT, symbols, 1 shot, seed 2 (exit 2): error: no dataset here" in captured.err
    assert "seed 3 (exit 1): RuntimeError: not the user's" in captured.err
    assert "seed 5 (exit -9): killed by signal 9" in captured.err
    assert "seed 4: lost (killed by signal 9), try 2 of 3" in captured.out
    commands = [line for line in captured.err.splitlines() if "--seed 2" in line]
    assert len(commands) == 1 and f"OUT={place.out} {sys.executable} " in commands[0]
    logs = [line.partition(": ")[2] for line in captured.err.splitlines() if "its standard error: " in line]
    assert "Traceback" in Path(logs[1]).read_text() and len(logs) == 2
    for seed in "235":
        (place.orders / f"seed{seed}").unlink()
    assert command.main(argv) == 0 and len(place.results) == 6
    assert not list(place.out.glob("sweeps/**/*.txt"))


def test_several_at_once_share_the_cores(place: Place) -> None:
    cores = len(os.sched_getaffinity(0))
    assert command.main([*SIX, "--jobs", "2"]) == 0
    assert {start[4] for start in place.starts} == {str(max(1, cores // 2))}
    assert local.resources(0, 1, {}) == {}
    given = {"OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "4,6"}
    assert [local.resources(slot, 3, given) for slot in range(3)] == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "464"]
    assert local.resources(1, 3, given | {"CUDA_VISIBLE_DEVICES": ""}) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_runs_in_order(number: signal.Signals, place: Place, drive: Driver) -> None:
    place.slow(60)
    driver = drive(*SIX, "--jobs", "2")
    until(lambda: len(place.starts) == 2)
    os.kill(driver.pid or 0, number)
    driver.join(20)
    text = (place.orders / "driver.txt").read_text()
    assert driver.exitcode == 128 + number
    assert text.count("interrupted; what was done is kept") == 1 and f"OUT={place.out}" in text
    assert f"{sys.executable} " in text.splitlines()[-1] and " ".join(SIX) in text.splitlines()[-1]
    assert len(place.starts) == 2 and not place.results and not any(alive(start[3]) for start in place.starts)
    if number == signal.SIGINT:
        assert {path.name for path in place.orders.glob("left*")} == {"left1", "left2"}
    place.slow(0)
    assert command.main([*SIX]) == 0 and len(place.results) == 6


def test_a_reader_that_has_gone_ends_the_sweep(place: Place) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = ["--trainers", "CoOp", "--datasets", "symbols", "--shots", "1", "--seeds", "1"]
    program = [sys.executable, "-m", "tests.experiments.sweep.driver", *words]
    done = subprocess.run(program, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE and not place.starts
    assert done.stderr.startswith("error: its output was closed before its end; it goes on with: ")


def test_a_killed_driver_takes_its_runs_with_it(place: Place, drive: Driver) -> None:
    place.slow(1)
    driver = drive(*SIX)
    until(lambda: len(place.starts) == 3)
    assert os.getsid(int(place.starts[2][3])) == int(place.starts[2][3])  # no terminal reaches it
    before = {path: path.stat().st_mtime_ns for path in place.results}
    driver.kill()
    driver.join()
    until(lambda: not any(alive(start[3]) for start in place.starts), 5)
    assert len(before) == 2 and len(place.results) == 2
    place.slow(0)
    assert command.main([*SIX]) == 0
    assert len(place.results) == 6 and len(place.starts) == 3 + 4
    assert all(path.stat().st_mtime_ns == before[path] for path in before)


def test_real_runs_and_a_bad_one(tiny: list[str], tmp_path: Path) -> None:
    """By the program itself; caltech101 is there, dtd is not."""
    words = ["--trainers", "PLOT", "--datasets", "dtd,caltech101", "--shots", "1", "--seeds", "2", "--jobs", "2"]
    program = [sys.executable, str(REPOSITORY / "sweep.py"), *words, *tiny]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "1 of 2 runs failed:" in done.stderr and "PLOT, dtd, 1 shot, seed 2 (exit 2): error: " in done.stderr
    (path,) = (tmp_path / "out").rglob("result.json")
    result = json.loads(path.read_text())
    assert (result["dataset"], result["seed"], result["N"], result["epochs"]) == ("caltech101", 2, 2, 1)
    runs = plan(*words, *tiny).runs
    assert [run.finished for run in runs] == [False, True] and runs[1].directory == path.parent


def test_a_result_from_where_the_driver_does_not_see_is_written_here(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    six = plan(*SIX)
    run = six.runs[0]
    result = json.dumps({"accuracy": 12.5}).encode()
    files = {"prompt_learner/checkpoint": b"x", "result.json": result}
    left = {one.directory: one for one in six.runs}
    settle(run, Outcome(0, 3.0, files=files), Progress(6, Times(place.out)), left, 1)
    assert capsys.readouterr().out == "[1/6] PLOT, symbols, 1 shot, seed 1: 12.50% in 3 s\n"
    assert run.finished and (run.directory / "prompt_learner/checkpoint").read_bytes() == b"x" and len(left) == 5
