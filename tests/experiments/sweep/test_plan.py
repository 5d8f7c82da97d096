"""What a sweep is made of, what its plan says, and the mistakes that it finds before anything starts."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dassl.utils import UserError
from experiments.sweep import command
from experiments.sweep.progress import Progress
from experiments.sweep.spec import read_file, spec_of
from experiments.sweep.task import Run
from experiments.sweep.times import Time, Times
from experiments.tables.suite import DATASETS
from runs.directory import REPOSITORY
from tests.experiments.sweep.conftest import Place, plan
from tests.experiments.trees import write_run

SWEEPS = REPOSITORY / "configs/sweeps"


@pytest.mark.medium
def test_the_papers_grid(place: Place) -> None:
    file = str(SWEEPS / "paper.yaml")
    assert spec_of(command.build_parser(None).parse_args(["--file", file])).seeds == [1, 2, 3]
    found = plan("--file", file, "--seeds", "3")
    zero_shot = [run for run in found.runs if run.trainer == "ZeroshotCLIP"]
    learned = [run for run in found.runs if run not in zero_shot]
    assert len(zero_shot) + 3 * len(learned) == 506 and len({run.directory for run in found.runs}) == len(found.runs)
    assert list(dict.fromkeys(run.dataset for run in found.runs)) == list(DATASETS)  # a dataset's, one behind the other
    configs = {run.task.arguments[run.task.arguments.index("--config-file") + 1] for run in found.runs}
    assert {Path(path).stem for path in configs if "CoCoOp" in path} == {"rn50_c4_ep10_batch1_ctxv1"}
    (imagenet,) = {run.epochs for run in found.runs if run.dataset == "imagenet" and run.trainer == "PLOT"}
    assert imagenet == 50
    assert len(plan("--file", str(SWEEPS / "symbols.yaml")).runs) == 46


def test_flags_win_over_the_file(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "trainers: PLOT\ndatasets: [dtd]\nshots: [1, 2]\noptions: {OPTIM.LR: 0.1, INPUT.SIZE: '(64, 64)'}\n"
    )
    monkeypatch.setenv("SEEDS", "7 8")
    found = plan("--file", str(path), "--shots", "4,8", "OPTIM.LR", "0.2")
    assert [(run.trainer, run.shots) for run in found.runs] == [("PLOT", shots) for shots in (4, 4, 8, 8)]
    assert [run.directory.name for run in found.runs] == ["seed7", "seed8"] * 2
    assert all("OPTIM.LR0.2" in str(run.directory) for run in found.runs)
    assert found.table().name == "sweep_mine_shots4-8_OPTIM.LR0.2_SEEDS7-8"
    assert plan("--file", str(path), "--shots", "4").table().name == "sweep_mine_shots4_SEEDS7-8"


def test_variants_follow_the_files_own_runs(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the file's lists where they leave one out, and one variant is made of each of their options."""
    path = tmp_path / "mine.yaml"
    options = "[{TRAINER.PLOT.N: 1}, {TRAINER.PLOT.EPS: 0.3}, {}]"
    path.write_text(
        "config: photo\ntrainers: CoOp\ndatasets: [eurosat, caltech101]\nshots: [1, 2]\nseeds: 1\n"
        f"variants: [{{trainers: PLOT, shots: 2, options: {options}}}, {{datasets: eurosat, seeds: [1, 2]}}]\n"
    )
    found = plan("--file", str(path))
    both = ("eurosat", "caltech101")
    own = [("CoOp", dataset, shots, "default", 1) for dataset in both for shots in (1, 2)]
    settings = ("n1", "n4", "n4")
    plots = [("PLOT", dataset, 2, folder, 1) for folder in settings for dataset in both]
    further = [("CoOp", "eurosat", shots, "default", 2) for shots in (1, 2)]  # its seed 1 is the file's own

    def what(run: Run) -> tuple[str, str, int, str, int]:
        folder = run.directory.parent.name.split("_")[0] if run.trainer == "PLOT" else "default"
        return run.trainer, run.dataset, run.shots, folder, int(run.directory.name.removeprefix("seed"))

    assert [what(run) for run in found.runs] == own + plots + further
    assert sum("EPS0.3" in str(run.directory) for run in found.runs) == 2
    assert all("/photo_" in run.directory.as_posix() for run in found.runs)
    assert found.describe(Times(found.spec.out)).splitlines()[-1].split()[:2] == ["all", "12"]
    assert {key[1] for key in found.cells} == {"CoOp"}
    narrowed = plan("--file", str(path), "--datasets", "caltech101,dtd", "--shots", "2,4", "--seeds", "7").runs
    assert {what(run) for run in narrowed if run.trainer == "PLOT"} == {
        ("PLOT", "caltech101", 2, folder, 7) for folder in settings
    }
    assert {run.trainer for run in plan("--file", str(path), "--trainers", "coop").runs} == {"CoOp"}
    monkeypatch.setenv("CFG", "rn50")
    assert all("/rn50_" in run.directory.as_posix() for run in plan("--file", str(path)).runs)


def test_a_variants_options_come_on_top_of_the_files(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "trainers: PLOT\ndatasets: dtd\nshots: 1\nseeds: 1\noptions: {OPTIM.MAX_EPOCH: 5, OPTIM.LR: 1.0}\n"
        "variants: [{trainers: PLOTAdapter}, {options: {OPTIM.LR: 2.0}}]\n"
    )
    own, adapter, other = plan("--file", str(path)).runs
    assert (own.epochs, adapter.epochs, other.epochs) == (5, 5, 5) and adapter.trainer == "PLOTAdapter"
    assert "OPTIM.LR1.0" in str(own.directory) and "OPTIM.LR2.0" in str(other.directory)


def test_the_photographs(place: Place) -> None:
    argv = ["--file", str(SWEEPS / "photographs.yaml"), "--shots", "1", "--seeds", "1", "--datasets"]
    found = plan(*argv, "eurosat")
    count = Counter(run.trainer for run in found.runs)
    assert count["PLOT"] == 1 + 1 + 16 and count["CoCoOp"] == count["PLOTCoCoOp"] == count["PLOTAdapter"] == 1
    caltech = plan(
        "--file", str(SWEEPS / "photographs.yaml"), "--datasets", "caltech101", "--shots", "1", "--seeds", "1"
    )
    assert sum(run.trainer == "PLOT" for run in caltech.runs) == 2 and "CoCoOp" not in {r.trainer for r in caltech.runs}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("variants: {shots: 1}", "'variants' should be a list of mappings"),
        ("variants: [1]", "'variants' should be a list of mappings"),
        ("variants: [{shot: 1}]", "'shot' is none of .*; the nearest is 'shots'"),
        ("variants: [{config: photo}]", "'config' is none of"),  # all of a sweep is on one backbone
        ("variants: [{options: [1]}]", "'options' should be a mapping .*, not 1"),
        ("options: [{N: 1}]", "'options' should be a mapping"),
    ],
)
def test_a_mistake_in_a_file(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_file(path)


def test_finished_resumable_and_to_do(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--trainers", "PLOT,CoOp", "--datasets", "symbols", "--shots", "1,2", "--seeds", "1,2"]
    found = plan(*argv)
    folder = found.runs[0].directory.parent.name
    fields = {"seconds": {"total": 30.0, "train_seconds": 20.0}, "backbone": {"name": found.runs[0].backbone}}
    write_run(place.out, "PLOT", "symbols", 1, 1, folder=folder, **fields)
    (found.runs[1].directory / "prompt_learner").mkdir(parents=True)
    (found.runs[1].directory / "prompt_learner/model.pth.tar-3").touch()
    assert command.main([*argv, "--dry-run"]) == 0
    lines = {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert lines["PLOT"] == ["4", "1", "1", "2", "~0:03:30"]  # 10 s, and 0.4 s a shot and epoch, of 50 and 100
    for name, counts in (("CoOp", "4 0 0 4"), ("all", "8 1 1 6")):
        assert " ".join(lines[name]) == f"{counts} unknown until each method has a run on this backbone"
    assert not place.starts


def timed(run: Run, training: float, **fields: object) -> dict[str, object]:
    """A result of the run's method, of 2 s beside its training at one shot."""
    place = {"trainer": run.trainer, "dataset": run.dataset, "backbone": {"name": run.backbone}}
    work = {"shots": 1, "epochs": run.epochs, "seconds": {"total": training + 2, "train_seconds": training}}
    return {**place, **work, **fields}


def test_times(tmp_path: Path) -> None:
    times = Times(tmp_path)
    run = plan("--trainers", "PLOT", "--datasets", "symbols", "--shots", "4", "--seeds", "1").runs[0]
    assert times.estimate(run).seconds is None and str(times.of([run])).startswith("unknown until each method has")
    times.add(timed(run, 0.0, epochs=0, shots=0))
    assert times.estimate(run).seconds is None  # a test says nothing of training
    times = Times(tmp_path)
    times.add(timed(run, 8.0, trainer="CoOp"))
    times.add(timed(run, 8.0, backbone={"name": "RN50"}))
    assert times.estimate(run).seconds is None
    for training in (16.0, 32.0):
        times.add(timed(run, training))
    times.add({"trainer": "PLOT", "dataset": "symbols"})
    times.add(timed(run, 13.0, seconds={"total": 4.0, "train_seconds": 13.0}))  # resumed
    times.add(timed(run, 500.0, tested="of a checkpoint, whose times these are", seconds={"total": 2.0}))
    times.add(None)
    assert times.estimate(run).seconds == pytest.approx(2 + 24 * 4) and str(times.of([run])) == "~0:01:38"
    elsewhere = replace(run, dataset="dtd")
    assert str(times.of([elsewhere, run])) == "~0:03:16 (by other datasets)"
    assert times.estimate(replace(run, shots=0)).seconds is None  # all images
    times.add(timed(run, 60.0, shots=0))
    assert times.estimate(replace(run, shots=0)).seconds == pytest.approx(2 + 60)


def test_the_time_of_a_method_without_epochs(tmp_path: Path) -> None:
    """Its plan has the config's epochs, its result none: all of its time is fixed."""
    times = Times(tmp_path)
    first, second = plan("--trainers", "TipAdapter", "--datasets", "symbols", "--shots", "4", "--seeds", "1,2").runs
    times.add(timed(first, 0.0, epochs=0, tested="of a checkpoint"))
    assert first.epochs > 0 and times.estimate(second).seconds is None
    times.add(timed(first, 0.0, epochs=0, seconds={"total": 7.0}))
    times.add(timed(first, 0.0, epochs=0, seconds={"total": 9.0}))
    assert str(times.of([second])) == "~0:00:06"  # the test alone took 2 s


@pytest.mark.medium
def test_the_papers_grid_is_not_estimated_by_runs_of_a_toy(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor by another method; but by another dataset, which is said."""
    toy = {"backbone": {"name": "assets/symbols_clip.pt"}}
    for trainer in ("ZeroshotCLIP", "CoOp", "CoCoOp", "PLOT"):
        write_run(place.out, trainer, "symbols", 1, 1, seconds={"total": 30.0, "train_seconds": 20.0}, **toy)
    write_run(place.out, "CoOp", "dtd", 1, 1, seconds={"total": 30.0, "train_seconds": 20.0})
    argv = ["--file", str(SWEEPS / "paper.yaml"), "--datasets", "dtd,eurosat", "--seeds", "1", "--dry-run"]
    assert command.main(argv) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for trainer in ("ZeroshotCLIP", "CoCoOp", "PLOT", "all"):
        assert lines[trainer].endswith("unknown until each method has a run on this backbone")
    assert re.search(r"CoOp +10 .* ~\d+:\d+:\d+ \(by other datasets\)$", lines["CoOp"])


@pytest.mark.parametrize(
    "text", ["[1, 2]", "shots: {", "options: [1]\ndatasets: dtd", "shotz: 1", "shots:", "datasets: {dtd: 1}"]
)
def test_a_file_that_is_no_sweep(text: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert command.main(["--file", str(tmp_path / "bad.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "bad.yaml" in error


def test_a_damaged_result_is_named_before_anything_starts(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--trainers", "zsclip", "--datasets", "symbols"]
    (run,) = plan(*argv).runs
    run.directory.mkdir(parents=True)
    (run.directory / "result.json").write_text("{")
    assert command.main(argv) == 2
    assert f"'{run.directory / 'result.json'}' is damaged" in capsys.readouterr().err and not place.starts


def test_without_ray_it_is_said_how_to_install_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # an import of it fails
    argv = ["--trainers", "zsclip", "--datasets", "symbols"]
    assert command.main([*argv, "--engine", "ray"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install -e '.[ray]'" in error and not place.starts
    assert command.main(argv) == 0 and len(place.results) == 1


def test_the_time_to_go_leaves_finished_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [SimpleNamespace(name=f"seed {i}", finished=i == 2) for i in (1, 2, 3)]
    times = SimpleNamespace(of=lambda left, slots: Time(60.0 * len(left)))
    Progress(3, times).line(runs[0], "50.00%", runs[1:])
    assert f"; {Time(60.0)} to go" in capsys.readouterr().out
