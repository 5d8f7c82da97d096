"""Sweeps of stubs, and drivers that can be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from experiments.sweep import command, task
from experiments.sweep.plan import Plan, plan_of
from experiments.sweep.spec import spec_of

Driver = Callable[..., BaseProcess]


@dataclass
class Place:
    """Where the stubs' sweep is: its OUT, and the folder of the stubs' orders."""

    out: Path
    orders: Path

    def slow(self, seconds: float) -> None:
        """How long each takes from now on."""
        (self.orders / "slow").write_text(str(seconds))

    @property
    def starts(self) -> list[list[str]]:
        """[trainer, shots, seed, process, threads] of each start so far."""
        path = self.orders / "starts"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def results(self) -> list[Path]:
        return sorted(self.out.rglob("result.json"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The runs are the stub's."""
    for key in ("CFG", "BACKBONE", "SEEDS", "N", "DATA", "OMP_NUM_THREADS"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(task, "PROGRAM", "tests.experiments.sweep.stub:main")
    place = Place(tmp_path / "out", tmp_path)
    place.slow(0)
    return place


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Driver]:
    """Starts ``sweep.py`` with arguments as a process that is spared the imports; what it prints is in driver.txt."""
    started: list[BaseProcess] = []

    def child(argv: tuple[str, ...]) -> None:
        multiprocessing.forkserver._forkserver.__init__()  # type: ignore[attr-defined, misc] -- ours is not its own
        with (tmp_path / "driver.txt").open("w") as file:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                code = command.main(list(argv))
            file.flush()
        os._exit(code)

    def start(*argv: str) -> BaseProcess:
        started.append(multiprocessing.get_context("fork").Process(target=child, args=(argv,)))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.join()


def plan(*argv: str) -> Plan:
    return plan_of(spec_of(command.build_parser(None).parse_args(list(argv))))
