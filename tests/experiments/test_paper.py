"""``paper.sh``: every command that a table lists for a blank cell, once and in order, then every table and picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.tables import __main__ as tables
from runs.directory import REPOSITORY
from tests.experiments.test_main_sh import bash
from tests.experiments.test_tables import show
from tests.experiments.trees import write_run


@pytest.mark.slow
def test_all_commands_then_all_tables_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python is a stub that notes its arguments, and makes tables all the same."""
    out, calls, stub = tmp_path / "out", tmp_path / "calls", tmp_path / "python"
    run = write_run(out, "PLOT", "symbols", 16, 1, folder="n4_nctx16_cscFalse_ctpend")
    other = out / "symbols/PLOT/symbols_vit_16shots" / run.parent.name / run.name  # of another config
    other.mkdir(parents=True)
    real = f'case "$2$1" in experiments.tables*|*-c) exec {sys.executable} "$@";; esac'
    stub.write_text(f'#!/bin/sh\necho "$SEEDS $@" >> {calls}\n{real}\n')
    stub.chmod(0o755)
    monkeypatch.setenv("SEEDS", "1")
    expected = show(capsys, "all", "--dataset", "symbols", "--shots", "1", "16", "--commands", "--out", str(out))
    done = bash("protocols/paper.sh", "symbols", PYTHON=str(stub), OUT=str(out), DATA=str(tmp_path), SEEDS="")
    assert done.returncode == 0, done.stderr
    assert [
        line.removeprefix("$ ") for line in done.stdout.splitlines() if line.startswith("$ ")
    ] == expected.splitlines()
    lines = [line.split() for line in calls.read_text().splitlines()]
    assert {line[0] for line in lines} == {"1"}
    runs = [line for line in lines if line[2] in ("experiments.jobs", "experiments.protocols")]
    assert len(runs) == len(expected.splitlines()) + 1 and lines[1 : 1 + len(runs)] == runs
    assert runs[-1][3:] == ["few_shot", "symbols", "1", "16"]  # the linear probe's
    after = [line[2] for line in lines[1 + len(runs) :]]
    assert after == ["experiments.tables", "experiments.figures", *PICTURES] and "# Published" in done.stdout
    image = Path(lines[-3][4])  # of the dataset, wherever it is: DATA has none
    assert lines[-3][3] == str(run) and image.is_file() and "symbols" in image.parts
    assert lines[-1][4] == str(image.parent)
    assert set(tables.TABLES) >= {"ablation", "adapters", "base-to-new", "time", "leaks"}


PICTURES = ("import", *(f"experiments.pictures.{name}" for name in ("visualize", "words", "tsne")))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("paper", [], "DATASET is missing"),
        ("paper", ["symbols", "--fast"], "'--fast' is no option"),
        ("paper", ["symbols", "--full", "OPTIM.LR", "1"], "'OPTIM.LR' is one argument too many"),
        ("paper", ["nothing"], "no dataset 'nothing'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(script: str, arguments: list[str], says: str, tmp_path: Path) -> None:
    command = ["bash", str(REPOSITORY / f"scripts/protocols/{script}.sh"), *arguments]
    env = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stdout == ""
    assert says in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert not list(tmp_path.rglob("result.json"))
