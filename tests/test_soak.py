"""A short soak: after the first runs, each further one leaves the process's open files and threads as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.many_runs import growth, one_run

from .runs.test_interrupted import argv_of

pytestmark = pytest.mark.medium


def test_runs_in_a_row_leave_nothing_open(run_args: list[str], tmp_path: Path) -> None:
    argv = argv_of(run_args, "CoOp", tmp_path / "unused", "OPTIM.MAX_EPOCH", "1")[2:]
    measured = [one_run(argv, tmp_path / "run") for _ in range(8)]
    assert len({(files, threads) for _, files, threads in measured[2:]}) == 1
    assert growth([(100.0, 5, 1)] * 8) == [] and len(growth([(100.0, 5, 1)] * 4 + [(200.0, 6, 1)] * 4)) == 2
