"""The command line from end to end: runs, resuming, tests of a trained prompt, and the user's mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import train
import trainers.clip_trainer
from dassl.extras.cli import guarded
from dassl.utils import UserError
from runs.command_line import build_parser
from runs.config import read_cfg, setup_cfg
from runs.directory import REPOSITORY, run_directory
from runs.result import read_result
from trainers.clip_trainer import AMP_DTYPES

CONFIGS = REPOSITORY / "configs"
SMALL = ["INPUT.SIZE", "(64, 64)", "DATALOADER.NUM_WORKERS", "0"]
SHORT = [*SMALL, "OPTIM.MAX_EPOCH", "2", "DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]


def command(run_args: list[str], trainer: str, config: str = "rn50", *flags: str) -> list[str]:
    return [
        *run_args,
        *("--trainer", trainer),
        *("--dataset-config-file", str(CONFIGS / "datasets/caltech101.yaml")),
        *("--config-file", str(CONFIGS / f"trainers/{trainer}/{config}.yaml")),
        *flags,
    ]


def one_result(output: Path, below: str = "*/*/*/*/seed1") -> tuple[Path, dict]:
    (path,) = output.glob(f"{below}/result.json")
    return path.parent, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("trainer", "config", "options", "parameters"),
    [
        ("PLOT", "rn50", ["TRAINER.PLOT.N", "2", "TRAINER.PLOT.PREC", "amp"], 2 * 16 * 64),
        ("CoOp", "rn50_ep50", ["TRAINER.COOP.CSC", "True", "TRAINER.COOP.PREC", "bf16"], 5 * 16 * 64),
        ("CoCoOp", "rn50_c4_ep10_batch1_ctxv1", ["TRAINER.COCOOP.PREC", "fp32"], 4 * 64 + 65 * 4 + 5 * 64),
        ("PLOTCoCoOp", "rn50_c4_ep10_batch1_ctxv1", ["TRAINER.PLOTCOCOOP.N", "2"], 2 * 4 * 64 + 65 * 4 + 5 * 64),
        ("ZeroshotCLIP", "rn50", [], 0),
    ],
)
def test_a_run(
    trainer: str,
    config: str,
    options: list[str],
    parameters: int,
    run_args: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainers.clip_trainer, "cpu_has_bf16", lambda: True)
    argv = [*command(run_args, trainer, config), *SHORT, *options]
    assert train.main(argv) == 0
    directory, result = one_result(tmp_path / "output")
    counts = {"classes": 5, "train": 10, "val": 10, "test": 35}
    assert (result["counts"], result["trainer"], result["seed"], result["shots"]) == (counts, trainer, 1, 2)
    assert result["accuracy"] + result["error_rate"] == pytest.approx(100)
    assert result["accuracy"] * 35 / 100 == pytest.approx(round(result["accuracy"] * 35 / 100), abs=1e-3)
    assert result["parameters"] == parameters
    if parameters:
        saved = torch.load(directory / "prompt_learner/model.pth.tar-2", weights_only=True)
        assert result["parameters"] == sum(v.numel() for v in saved["state_dict"].values())
        assert saved["epoch"] == 2 and "ctx" in saved["state_dict"]
    capsys.readouterr()
    assert train.main(argv) == 0
    assert "Finished before, kept" in capsys.readouterr().out


@pytest.mark.medium
@pytest.mark.parametrize("trainer", ["PLOT", "CoOp", "CoCoOp"])
def test_fp16_with_its_loss_scaled(
    trainer: str, run_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU computes as a GPU does. The context equals float32's up to rounding, and the scale is saved."""
    monkeypatch.setattr(trainers.clip_trainer, "cpu_has_bf16", lambda: True)
    monkeypatch.setitem(AMP_DTYPES, "cpu", torch.float16)
    # At the default initial scale of 65,536 some of these gradients overflow, and the scaler skips their step.
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=1024.0))
    config = {"PLOT": "rn50", "CoOp": "rn50_ep50", "CoCoOp": "rn50_c4_ep10_batch1_ctxv1"}[trainer]
    saved = []
    for name, prec, lr in (("start", "fp32", "1e-12"), ("fp32", "fp32", "1e-5"), ("amp", "amp", "1e-5")):
        more = ["OPTIM.LR", lr, "OPTIM.WARMUP_CONS_LR", lr, f"TRAINER.{trainer.upper()}.PREC", prec]
        argv = ["--output-dir", str(tmp_path / name), *command(run_args, trainer, config), *SHORT, *more]
        assert train.main(argv) == 0
        saved.append(torch.load(tmp_path / name / "prompt_learner/model.pth.tar-2", weights_only=True))
    start, exact, scaled = (checkpoint["state_dict"]["ctx"] for checkpoint in saved)
    assert 0 < (scaled - exact).norm() < 0.05 * (exact - start).norm()
    assert saved[2]["trainer"]["scaler"]["scale"] == 1024.0 and not saved[1]["trainer"]["scaler"]


@pytest.mark.medium
def test_what_a_cpu_lacks_is_computed_in_fp32(
    run_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def learned(prec: str, bf16: bool) -> tuple[torch.Tensor, str]:
        monkeypatch.setattr(trainers.clip_trainer, "cpu_has_bf16", lambda: bf16)
        output = tmp_path / f"{prec}{bf16}"
        words = command(run_args, "PLOT")
        assert train.main(["--output-dir", str(output), *words, *SHORT, "TRAINER.PLOT.PREC", prec]) == 0
        saved = torch.load(output / "prompt_learner/model.pth.tar-2", weights_only=True)
        return saved["state_dict"]["ctx"], capsys.readouterr().out

    exact, text = learned("fp32", bf16=True)
    assert "computing in fp32" not in text
    for prec, needs in (("fp16", "a GPU"), ("amp", "a CPU with bf16 products"), ("bf16", "a CPU with bf16 products")):
        found, text = learned(prec, bf16=False)
        assert torch.equal(found, exact) and f"PREC {prec} needs {needs}: computing in fp32" in text
    found, text = learned("amp", bf16=True)
    assert not torch.equal(found, exact) and "computing in fp32" not in text


@pytest.mark.medium
def test_a_test_is_kept_for_the_checkpoints_it_was_made_of(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is made anew for another epoch, another run in the same place, and a run that has continued."""
    runs_of = {}
    for seed, name in ((1, "one"), (2, "two")):
        argv = ["--output-dir", str(tmp_path / name), *command(run_args, "CoOp"), "--seed", str(seed)]
        assert train.main([*argv, *SHORT, "TRAIN.CHECKPOINT_FREQ", "1"]) == 0
        runs_of[name] = tmp_path / name / "prompt_learner"

    def test(name: str, *flags: str) -> str:
        capsys.readouterr()
        argv = command(run_args, "CoOp", "rn50", "--eval-only", "--model-dir", str(tmp_path / name), *flags)
        assert train.main([*argv, *SMALL]) == 0
        return capsys.readouterr().out

    first = ("--load-epoch", "1")
    assert "(epoch 1)" in test("one", *first) and "(epoch 2)" in test("one")
    assert "kept" in test("one", *first) and "kept" in test("one")
    assert {p.name for p in (tmp_path / "one/eval").iterdir()} == {"caltech101", "caltech101_epoch1"}
    place = ("--output-dir", str(tmp_path / "place"))
    assert "one/prompt_learner" in test("one", *place)
    assert "two/prompt_learner" in test("two", *place) and "kept" in test("two", *place)
    (runs_of["one"] / "model.pth.tar-2").unlink()
    assert "(epoch 1)" in test("one") and "kept" in test("one")


def test_a_test_has_the_runs_seed(run_args: list[str], tmp_path: Path) -> None:
    run, without_seed = tmp_path / "run", [word for word in run_args if word not in ("--seed", "1")]
    argv = [*command(without_seed, "CoOp"), *SHORT]
    assert train.main(["--output-dir", str(run), "--seed", "7", *argv]) == 0
    assert train.main(["--eval-only", "--model-dir", str(run), *argv]) == 0
    assert one_result(run / "eval", "caltech101")[1]["seed"] == 7
    assert train.main(["--eval-only", "--model-dir", str(run), "--seed", "8", "--output-dir", f"{run}8", *argv]) == 0
    assert one_result(tmp_path, "run8")[1]["seed"] == 8


def test_class_specific_contexts_belong_to_classes(
    run_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of four classes learn; the other two, as many, are neither tested, nor resumed, nor started from them."""
    for i, name in enumerate(("ant", "bee", "cat", "dog")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for k in range(10):
            Image.new("RGB", (64, 64), (60 * i, 5 * k, 9)).save(tmp_path / "own" / name / f"{k}.png")
    argv = [*command(["--root", str(tmp_path / "own"), "--seed", "1", *run_args[-2:]], "CoOp"), *SHORT]
    argv[argv.index(str(CONFIGS / "datasets/caltech101.yaml"))] = str(CONFIGS / "datasets/image_folder.yaml")
    argv += ["TRAINER.COOP.CSC", "True", "DATASET.SUBSAMPLE_CLASSES"]
    run = tmp_path / "run"
    assert train.main(["--output-dir", str(run), *argv, "base"]) == 0
    assert train.main(["--eval-only", "--model-dir", str(run), *argv, "base"]) == 0
    others = ["--output-dir", str(tmp_path / "other"), *argv, "new"]
    checkpoint = str(run / "prompt_learner/model.pth.tar-2")
    monkeypatch.chdir(run)
    for _ in ("by the result", "by the checkpoint, as after an interruption or without a test"):
        for flags, more in (
            (["--eval-only", "--model-dir", str(run)], []),
            (["--resume", str(run)], []),
            ([], ["MODEL.INIT_WEIGHTS", checkpoint]),
            ([], ["MODEL.INIT_WEIGHTS", "prompt_learner/model.pth.tar-2"]),
        ):
            capsys.readouterr()
            assert train.main([*flags, *others, *more]) == 2
            assert "for its own classes alone: 'ant' there, 'cat' here" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
        (run / "result.json").unlink(missing_ok=True)


@pytest.mark.parametrize(("eps", "max_iter", "said"), [("0.1", "100", False), ("0.001", "3", True), ("0.1", "1", True)])
def test_a_plan_that_is_not_converged_is_said(
    eps: str, max_iter: str, said: bool, run_args: list[str], tmp_path: Path
) -> None:
    argv = [*command(run_args, "PLOT"), *SHORT, "TRAINER.PLOT.EPS", eps, "TRAINER.PLOT.MAX_ITER", max_iter]
    assert train.main(["--output-dir", str(tmp_path / "run"), *argv]) == 0
    assert bool(one_result(tmp_path, "run")[1]["diagnostics"]["unconverged"]) == said
    log = (tmp_path / "run/log.txt").read_text()
    assert (f"MAX_ITER {max_iter} iterations" in log) == said and "e+" not in log.partition("Not converged")[2]


def test_another_config_is_neither_kept_nor_resumed(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that the stored config lacks counts as its default. Options of other methods are ignored."""
    argv = ["--output-dir", str(tmp_path / "run"), *command(run_args, "CoOp"), *SHORT]
    assert train.main(argv) == 0
    before = (tmp_path / "run/result.json").read_text()
    assert train.main([*argv, "OPTIM.LR", "0.1"]) == 2
    error = capsys.readouterr().err
    assert "another config (OPTIM.LR 0.002 there, 0.1 asked for)" in error
    assert (tmp_path / "run/result.json").read_text() == before

    path = tmp_path / "run/config.yaml"
    stored = yaml.safe_load(path.read_text())
    for section, key in (("DATALOADER", "CACHED_VIEWS"), ("TEST", "SPLIT"), ("TRAINER", "COCOOP")):
        del stored[section][key]
    stored["TRAINER"] |= {"METHOD_OF_MINE": {"DEPTH": 9}, "PLOT": {"N": 7, "GONE": True}}
    path.write_text(yaml.safe_dump(stored))
    assert train.main([*argv, "TRAINER.PLOT.N", "2"]) == 0
    assert "Finished before, kept" in capsys.readouterr().out
    assert read_cfg(tmp_path / "run").TRAINER.COOP.N_CTX == 16
    for section, key, there in (("DATALOADER", "CACHED_VIEWS", 4), ("TEST", "MINE", 1), ("TRAINER", "COOP", {"X": 1})):
        path.write_text(yaml.safe_dump({**stored, section: {**stored[section], key: there}}))
        assert train.main(argv) == 2
        assert f"another config ({section}.{key}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"unknown config key 'TRAINER\.COOP\.X'"):
        read_cfg(tmp_path / "run")


def test_all_images_are_one_run_whichever_number_says_so(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """-1 and 0. A run of before, in a folder of 0 shots, is kept."""
    argv = [*command(run_args, "CoOp"), *SHORT]
    assert train.main([*argv, "DATASET.NUM_SHOTS", "-1"]) == 0
    run, result = one_result(tmp_path / "output")
    assert run.parts[-3] == "rn50_allshots" and (result["shots"], result["counts"]["train"]) == (0, 30)
    capsys.readouterr()
    assert train.main([*argv, "DATASET.NUM_SHOTS", "0"]) == 0
    assert "Finished before, kept" in capsys.readouterr().out
    run.parents[1].rename(run.parents[1].with_name("rn50_0shots"))
    for shots in ("-1", "0"):
        assert train.main([*argv, "DATASET.NUM_SHOTS", shots]) == 0
        assert "rn50_0shots" in capsys.readouterr().out
    assert one_result(tmp_path / "output")[1] == result


def test_a_damaged_result_is_named_and_not_begun_again(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--output-dir", str(tmp_path / "run"), *command(run_args, "ZeroshotCLIP"), *SMALL]
    assert train.main(argv) == 0
    (tmp_path / "run/result.json").write_text("{")
    assert train.main(argv) == 2
    assert "result.json' is damaged" in capsys.readouterr().err
    assert (tmp_path / "run/result.json").read_text() == "{"


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: print(torch.empty(1 << 50))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory; smaller DATALOADER batches")
    with pytest.raises(RuntimeError, match="shapes"):
        guarded(lambda: print(torch.ones(2, 3) @ torch.ones(2, 3)))


@pytest.mark.parametrize(
    ("trainer", "extra", "says"),
    [
        ("PLOT", ["INPUT.SIZE", "(96, 96)"], r"INPUT.SIZE \(96, 96\) does not fit .*64 x 64"),
        ("PLOT", [*SMALL, "TRAINER.PLOT.N_CTX", "74"], "the prompt of class 'face' has 78 tokens"),
        ("ZeroshotCLIP", ["DATASET.TEMPLATE", "a photo"], "has no {}"),
    ],
)
def test_a_mistake_gives_one_line_and_nothing_is_written(
    trainer: str,
    extra: list[str],
    says: str,
    run_args: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main([*command(run_args, trainer), *extra]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert re.search(says, err), err
    assert not (tmp_path / "output").exists()


def test_flags_that_do_not_go_together_or_lead_nowhere(run_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for flags, says in (
        (["--eval-only", "--model-dir", "nowhere"], "no checkpoint in 'nowhere/prompt_learner'"),
        (["--eval-only"], "name it with --model-dir"),
        (["--load-epoch", "0"], "--model-dir and --load-epoch are for --eval-only"),
        (["--load-epoch", "7", "--eval-only", "--model-dir", "nowhere"], "no checkpoint of epoch 7"),
    ):
        assert train.main([*command(run_args, "CoOp", "rn50", *flags), *SHORT]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "checkpoint",
    [
        {},
        {"state_dict": None, "epoch": 1},
        {"state_dict": {"ctx": "no tensor"}},
        {"state_dict": {"ctx": torch.full((16, 64), float("nan"))}},
    ],
)
def test_a_checkpoint_of_something_else(
    checkpoint: dict, run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run/prompt_learner").mkdir(parents=True)
    torch.save(checkpoint, tmp_path / "run/prompt_learner/model.pth.tar-1")
    argv = command(run_args, "CoOp", "rn50", "--eval-only", "--model-dir", str(tmp_path / "run"))
    assert train.main([*argv, *SMALL]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "holds no prompt learner" in err and err.count("\n") == 1
    assert not (tmp_path / "run/eval").exists()


NO_DATASET = "error: --dataset-config-file is missing; see python train.py --help\n"


def test_what_is_missing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([]) == 2
    assert capsys.readouterr().err == "error: --trainer is missing; see python train.py --help\n" + NO_DATASET
    assert train.main(["--trainer", "CoOp"]) == 2
    assert capsys.readouterr().err.startswith(NO_DATASET + "error: no backbone: give --config-file, or --backbone ")


def test_several_processes_need_a_seed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert train.main(command([], "CoOp", "rn50")) == 2
    assert "--seed is missing" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_cannot_be_decoded_is_named(
    workers: str, run_args: list[str], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(data_root, root)
    bad = root / "caltech-101/101_ObjectCategories/face/test_0003.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    argv = command(run_args, "ZeroshotCLIP", "rn50", "--root", str(root))
    assert train.main([*argv, "INPUT.SIZE", "(64, 64)", "DATALOADER.NUM_WORKERS", workers]) == 2
    err = capsys.readouterr().err
    assert str(bad) in err and err.count("\n") == 1
    assert f"is found by: python -m datasets.prepare caltech101 --check --decode --root {root}\n" in err
    assert not list(tmp_path.rglob("result.json"))


def test_checkpoints_that_coop_and_plot_wrote_load(run_args: list[str], tmp_path: Path) -> None:
    """Upstream's checkpoints also hold the class tokens' embeddings and a pickled scheduler."""
    learner = tmp_path / "theirs" / "prompt_learner"
    learner.mkdir(parents=True)
    parameter = torch.nn.Parameter(torch.zeros(1))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([parameter], lr=0.1), 50)
    ctx = torch.randn(4, 16, 64)
    tokens = {"token_prefix": torch.zeros(20, 1, 64), "token_suffix": torch.zeros(20, 60, 64)}
    checkpoint = {"state_dict": {"ctx": ctx, **tokens}, "epoch": 50, "scheduler": {"successor": scheduler}}
    torch.save(checkpoint, learner / "model.pth.tar-50")
    argv = command(
        run_args, "PLOT", "rn50", "--eval-only", "--model-dir", str(tmp_path / "theirs"), "--load-epoch", "50"
    )
    assert train.main([*argv, *SMALL]) == 0
    assert read_result(tmp_path / "theirs/eval/caltech101_epoch50")
    assert train.main([*argv, *SMALL, "TRAINER.PLOT.N_CTX", "4"]) == 2


@pytest.mark.medium
def test_the_program_itself_exits_with_2() -> None:
    """A real process prints one line for each fault, without traceback or warning."""
    program = [sys.executable, str(REPOSITORY / "train.py"), "--trainer", "CoOpp"]
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and "'CoOp'" in lines[0] and lines[1] == NO_DATASET.strip()


def test_the_directory_spells_what_differs() -> None:
    def directory(*extra: str) -> str:
        args = ["--seed", "3", "--trainer", "PLOT", "--config-file", str(CONFIGS / "trainers/PLOT/rn50.yaml")]
        args += ["--dataset-config-file", str(CONFIGS / "datasets/caltech101.yaml")]
        parsed = build_parser().parse_args([*args, *extra])
        cfg, base = setup_cfg(parsed)
        return str(run_directory(cfg, base, "rn50", "out"))

    usual = "out/caltech101/PLOT/rn50_16shots/n4_nctx16_cscFalse_ctpend"
    shots = ["DATASET.NUM_SHOTS", "16"]
    assert directory(*shots) == f"{usual}/seed3"
    assert directory("--recipe", "OPTIM.MAX_EPOCH 200", *shots, "DATASET.ROOT", "x") == f"{usual}/seed3"
    assert directory(*shots, "OPTIM.LR", "0.01") == f"{usual}_OPTIM.LR0.01/seed3"
    assert directory(*shots, "TRAINER.PLOT.N", "1").endswith("n1_nctx16_cscFalse_ctpend/seed3")
    assert directory("DATASET.NUM_SHOTS", "0") == directory("DATASET.NUM_SHOTS", "-1") == directory()
    assert directory() == f"{usual.replace('16shots', 'allshots')}/seed3"
    zero_shot = ["--trainer", "ZeroshotCLIP", "--config-file", str(CONFIGS / "trainers/ZeroshotCLIP/rn50.yaml")]
    assert directory(*zero_shot) == "out/caltech101/ZeroshotCLIP/rn50_0shots/default/seed3"
    one, two = directory("TRAINER.PLOT.CTX_INIT", "a b"), directory("TRAINER.PLOT.CTX_INIT", "a_b")
    assert one != two and "/".join(one.split("/")[:-2]) == "/".join(two.split("/")[:-2])
    long = ["MODEL.HEAD.NAME", "x" * 300, "MODEL.HEAD.ACTIVATION", "y" * 300, "DATASET.TEMPLATE", "{}" * 150]
    assert len(Path(directory(*long)).parts[-2]) < 255
