"""A mistake in a command of many runs: one line that says what is wrong, exit code 2, nothing started or written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from experiments import compare, figures, jobs, protocols
from experiments.sweep import command as sweep
from experiments.tables import __main__ as tables
from runs.directory import REPOSITORY

PROGRAMS = {
    "compare": compare.main,
    "jobs": jobs.main,
    "figures": figures.main,
    "protocols": protocols.main,
    "sweep": sweep.main,
    "tables": tables.main,
}
DTD = "sweep --datasets dtd"
NO_SWEEP = REPOSITORY / "configs/datasets/dtd.yaml"


@pytest.mark.parametrize(
    ("line", "environment", "says"),
    [
        ("jobs plot caltech101 1", {"SEEDS": "1 two"}, "SEEDS is '1 two'"),
        ("jobs plot caltech101 1", {"N": "2 3"}, "N is '2 3'; it must be one"),
        ("jobs plot caltech101 1", {"CFG": "rn55"}, "no config 'rn55': .*'rn50'"),
        ("jobs Plott caltech101 1", {}, "TRAINER: 'Plott' is none of .*; the nearest is 'PLOT'"),
        ("jobs plot,coop caltech101 1", {}, "TRAINER is 'plot,coop'; it must be one method"),
        ("jobs PLOTAdapter symbols 1 TRAINER.PLOT.COST standardized", {}, "TRAINER.PLOT.COST is 'standardized'"),
        ("jobs PLOTAdapter symbols 1 TRAINER.PLOT.MATCH uniform", {}, "MATCH is 'uniform'; PLOTAdapter needs .* 'ot'"),
        ("jobs --import nowhere.py plot caltech101 1", {}, "--import: there is no file 'nowhere.py'"),
        ("compare caltech101", {}, "SHOTS"),
        ("compare caltech102 1", {}, "no config 'caltech102'"),
        ("compare caltech101 1 OPTIM.LRR 1", {}, "unknown config key 'OPTIM.LRR'"),
        ("compare caltech101 1 TRAINER.PLOT.EPSS 1", {"TRAINERS": "coop"}, "'TRAINER.PLOT.EPSS'.*'TRAINER.PLOT.EPS'"),
        ("compare caltech101 1 OPTIM.LRR 1", {"TRAINERS": "zsclip"}, "'OPTIM.LRR'; the nearest is 'OPTIM.LR'"),
        (f"{DTD} --trainers CoOp TRAINER.COCOOP.CSC True", {}, "unknown config key 'TRAINER.COCOOP.CSC'"),
        ("compare caltech101 1 --mixed yes", {}, "'--mixed' is no config key; options come before KEY VALUE pairs"),
        ("compare caltech101 1", {"TRAINERS": "mine"}, "'mine' is none of .*, and --import FILE brings a method of"),
        ("jobs plot caltech101 1", {"BACKBONE": "ViT-L/14"}, "no config 'vit_l14'"),
        ("protocols few_shot caltech101 '1 x'", {}, "SHOTS is '1 x'"),
        ("protocols base_to_new caltech101 '1 all'", {}, "takes one positive integer"),
        ("compare caltech101 '1 all'", {}, "SHOTS is '1 all'; it must be one positive integer, or all"),
        ("tables variants", {}, "--variant NODE.KEY.*, options of a method"),
        ("tables variants --variant PLOT.EPSS", {}, "no option of a method; the nearest is 'PLOT.EPS'"),
        ("tables domain --overrides", {}, "--overrides is for few-shot and cost"),
        ("compare caltech101 1", {"TRAINERS": "PLOT coopp"}, "TRAINERS: 'coopp' is none of .*'CoOp'"),
        ("protocols base_to_new caltech101 '1 2'", {}, "takes one positive integer"),
        ("protocols domain_generalization caltech101 1", {}, "has no shifted sets"),
        ("protocols cross_dataset caltech101 1 OPTIM.LR", {}, "'OPTIM.LR' has no value"),
        ("protocols cross_dataset symbols 16", {"TARGETS": "symbols"}, "TARGETS is 'symbols'; it must name other"),
        ("protocols few_shot caltech101 1", {"TRAINERS": ","}, "TRAINERS is ','; it must name"),
        ("figures --backbone nope", {}, "--backbone 'nope'"),
        ("tables few-shot --dataset caltech102", {}, "no dataset 'caltech102'"),
        ("tables domain --dataset dtd", {}, "one of imagenet, symbols"),
        ("tables domain --shots 1 2", {}, "one number of --shots"),
        ("tables poems", {}, "poems"),
        ("tables cost --out nowhere", {}, "no folder of runs at 'nowhere'"),
        ("sweep", {}, "no datasets"),
        (f"{DTD} --trainers PLOTT", {}, "'PLOTT' is none of .*'PLOT'"),
        (f"{DTD} --shots 1,x", {}, "--shots is '1,x'"),
        (f"{DTD} --seeds 0", {}, "--seeds is '0'"),
        (f"{DTD} --jobs 0", {}, "--jobs is 0"),
        (f"{DTD} --engine slurm", {}, "--engine"),
        (f"{DTD} --gpus 1", {}, "for --engine ray"),
        (f"{DTD} --engine ray --cpus nan", {}, "--cpus is nan"),
        (f"{DTD} --engine ray --gpus 1.5", {}, "--gpus is 1.5"),
        (f"{DTD} SEED 7", {}, "SEED follows from the seeds"),
        (f"{DTD} DATASET.NUM_SHOTS 7", {}, "DATASET.NUM_SHOTS follows from the shots"),
        ("sweep --file nowhere.yaml", {}, "no sweep's file at 'nowhere.yaml'"),
        (f"sweep --file {NO_SWEEP}", {}, "'DATASET' is none of .*'datasets'"),
    ],
)
def test_a_mistake_gives_one_line(
    line: str,
    environment: dict[str, str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key in ("BACKBONE", "CFG", "DATA", "N", "SEEDS", "TARGETS", "TRAINERS"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {"OUT": str(tmp_path / "out"), **environment}.items():
        monkeypatch.setenv(key, value)
    program, *arguments = shlex.split(line)
    assert PROGRAMS[program](arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(says, error), error
    assert not (tmp_path / "out").exists()
