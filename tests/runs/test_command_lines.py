"""Command lines and configs: every fault a line of its own, exit code 2, no file written; bases; upstream's keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import train
import trainers
from dassl.config import KEYS, Key, flatten, get_cfg_default
from dassl.utils import UserError
from runs.command_line import build_parser
from runs.config import read_yaml, setup_cfg

from .test_train import CONFIGS, command

# The keys of other types than bool that take any value of their type.
FREE = {"OUTPUT_DIR", "RESUME", "DATASET.ROOT", "DATASET.NAME", "MODEL.BACKBONE.NAME", "TRAINER.NAME"}
FREE |= {"MODEL.HEAD.NAME", "MODEL.HEAD.ACTIVATION", "TEST.FEATURE_CACHE_DIR"}

PAIRS = [  # KEY, VALUE, what is said of them
    ("SEED", "0", "SEED is 0; it must be a positive integer"),
    ("SEED", "1.5", "SEED takes a value of type int, not '1.5'"),
    ("INPUT.SIZE", "(64,)", "INPUT.SIZE is .* height and width"),
    ("INPUT.SIZE", "(64, -1)", "INPUT.SIZE is"),
    ("INPUT.SIZE", "('a', 'b')", "INPUT.SIZE is"),
    ("INPUT.INTERPOLATION", "bicubix", "the nearest is 'bicubic'"),
    ("INPUT.TRANSFORMS", "['random_flop']", "the nearest is 'random_flip'"),
    ("INPUT.PIXEL_STD", "[0.5, 0.5, 0]", "three positive numbers"),
    ("INPUT.RRCROP_SCALE", "(0.9, 0.1)", "smallest <= largest"),
    ("INPUT.TRANSFORMS", "['cutout']", "one of random_flip, random_resized_crop, normalize, center_crop"),
    ("INPUT.NO_TRANSFORM", "True", "NO_TRANSFORM is True; it must be False, the only value supported"),
    ("DATASET.NUM_SHOTS", "-2", "NUM_SHOTS is -2"),
    ("DATASET.NUM_SHOTS", "True", "NUM_SHOTS takes a value of type int"),
    ("DATASET.SUBSAMPLE_CLASSES", "old", "'old' is none of all, base, new"),
    ("DATASET.NAME", "Caltech\n101", r"'Caltech\\n101'; did you mean 'Caltech101'"),
    ("TRAINER.PLOT.CTX_INIT", "a\x1b[31m photo\n|of", r"CTX_INIT has 2 texts for 4 prompts"),
    ("DATALOADER.NUM_WORKERS", "-1", "0 or more"),
    ("DATALOADER.TRAIN_X.BATCH_SIZE", "0", "1 or more"),
    ("DATALOADER.TEST.SAMPLER", "RandomClassSampler", "TEST.SAMPLER is"),
    ("INPUT.MAX_PIXELS", "1000", "INPUT.MAX_PIXELS is 1000; it must be 178956970 or more"),
    ("MODEL.BACKBONE.ACTIVATION", "relu", "ACTIVATION is 'relu'; it must be quickgelu, gelu or empty"),
    ("MODEL.BACKBONE.NAME", "RN5O", "unknown backbone 'RN5O'.*the nearest is 'RN50'"),
    ("MODEL.INIT_WEIGHTS", "nowhere.pt", "MODEL.INIT_WEIGHTS is 'nowhere.pt'; it must be a file"),
    ("OPTIM.LR", "1e999", "OPTIM.LR is inf; it must be finite"),
    ("OPTIM.LR", "nan", "OPTIM.LR takes a value of type float"),
    ("OPTIM.LR", "__import__('os').mkdir('ran')", "OPTIM.LR takes a value of type float"),
    ("OPTIM.LR", "(" * 5000, "OPTIM.LR takes a value of type float"),
    ("OPTIM.MOMENTUM", "1.0", "from 0 to under 1"),
    ("OPTIM.SGD_NESTEROV", "yes", "SGD_NESTEROV takes a value of type bool"),
    ("OPTIM.NEW_LAYERS", "('head',)", "OPTIM.NEW_LAYERS is .*'head'.*; it must be \\(\\), the only value supported"),
    ("OPTIM.STEPSIZE", "()", "one integer"),
    ("OPTIM.MAX_EPOCH", "99999999999999999999", "it must be under 2147483648"),
    ("TEST.SPLIT", "train", "one of val, test"),
    ("TRAINER.PLOT.N_CTX", "100", "from 1 to 74"),
    ("TRAINER.PLOT.EPS", "0.0", "TRAINER.PLOT.EPS is 0.0"),
    ("TRAINER.PLOT.NCTX", "4", "unknown config key 'TRAINER.PLOT.NCTX'; the nearest is 'TRAINER.PLOT.N_CTX'"),
    ("OPTIM", "5", "unknown config key 'OPTIM'"),
]

FLAGS = [
    (["--sead", "1"], "--sead"),
    (["--seed", "one"], "invalid int value: 'one'"),
    (["--trainer", "PLOTT"], "did you mean 'PLOT'"),
    (["--config-file", "nowhere.yaml"], "no config 'nowhere'"),
    (["--recipe", "OPTIM.LR 'x"], "cannot be read: No closing quotation"),
    (["--recipe", "OPTIM.LR"], "--recipe: KEY VALUE pairs expected"),
    (["--resume", "nowhere"], "nothing to resume from in 'nowhere'"),
    (["OPTIM.LR"], "'OPTIM.LR' has no value"),
]

YAMLS = [
    ("a: [", "is no YAML"),
    ("- a\n- b", "it should be a mapping"),
    ("2001-99-99", "is no YAML"),
    ("OPTIM: {LR: null}", "OPTIM.LR takes a value of type float, not None"),
    ("OPTIM: {1: 2}", "unknown config key 'OPTIM.1'"),
    ("&a {OPTIM: *a}", "unknown config key 'OPTIM.OPTIM'"),
    ("INPUT: {SIZE: [[1, 2], {}]}", "INPUT.SIZE takes a value of type list"),
    ("OPTIM: !!python/object/apply:os.mkdir [ran]", "is no YAML"),
    ("_BASE_: nowhere.yaml", r"no config 'nowhere': looked for 'nowhere.yaml' \(_BASE_ of 'bad.yaml'\)"),
    ("_BASE_: bad.yaml", r"'bad.yaml' \(_BASE_ of 'bad.yaml'\) is a base of itself"),
    ("_BASE_: {OPTIM: 1}", "'bad.yaml': _BASE_ takes a path"),
]


def bomb(pair: str) -> str:
    """Some lines of YAML that stand for 2 ** 40 leaves."""
    levels = ["l0: &l0 [1]"] + [f"l{i}: &l{i} {pair % ((f'*l{i - 1}',) * 2)}" for i in range(1, 40)]
    return "\n".join(levels) + "\nOPTIM: {LR: *l39}\nINPUT: {SIZE: *l39}\n"


def faults_of(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    there = sorted(tmp_path.rglob("*"))
    assert train.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and sorted(tmp_path.rglob("*")) == there
    assert err.replace("\n", "").isprintable()
    lines = err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), err
    return lines


@pytest.mark.parametrize(("words", "says"), [*((p[:2], p[2]) for p in PAIRS), *FLAGS], ids=lambda v: "".join(v)[:30])
def test_a_bad_pair_or_flag(
    words: list[str], says: str, run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = faults_of([*command(run_args, "PLOT"), *words], tmp_path, capsys)
    assert re.search(says, line), line


@pytest.mark.parametrize(("text", "says"), YAMLS)
def test_a_bad_config(
    text: str, says: str, run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    lines = faults_of([*command(run_args, "PLOT"), "--config-file", "bad.yaml"], tmp_path, capsys)
    assert any(re.search(says, line) for line in lines), lines


def test_a_directory_whose_config_is_a_bomb(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(bomb("{x: %s, y: %s}"))
    (line,) = faults_of(["--output-dir", str(tmp_path / "run"), *command(run_args, "PLOT")], tmp_path, capsys)
    assert "holds a run with another config" in line and len(line) < 600


def test_all_faults_are_reported_at_once(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [("SEED", "0"), ("OPTIM.LR", "0"), ("OPTIM.MAX_EPOCH", "many"), ("TRAINER.PLOT.NN", "1")]
    pairs += [("TRAINER.PLOT.PREC", "fp8"), ("TRAINER.PLOT.MATCH", "x"), ("MODEL.BACKBONE.NAME", "RN5O")]
    pairs += [("DATASET.NAME", "Caltech"), ("DATASET.SUBSAMPLE_CLASSES", "x")]
    argv = [*command(run_args, "PLOT"), *(word for pair in pairs for word in pair)]
    lines = faults_of(argv, tmp_path, capsys)
    assert len(lines) == len(pairs)
    for _, value in pairs:
        assert any(value in line for line in lines)


@pytest.mark.parametrize("pair", ["{x: %s, y: %s}", "[%s, %s]"])
def test_a_bomb_of_aliases_is_refused_at_once(
    pair: str, run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bomb.yaml").write_text(bomb(pair))
    lines = faults_of([*command(run_args, "PLOT"), "--config-file", "bomb.yaml"], tmp_path, capsys)
    assert len(lines) == 42 and any("OPTIM.LR takes a value of type float" in line for line in lines)
    assert all(len(line) < 300 for line in lines)


def test_bases_are_merged_lowest_first(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "low.yaml").write_text("OPTIM: {NAME: sgd, LR: 1, GAMMA: 1}\nINPUT: {PIXEL_STD: [1, 1, 1]}\n")
    (tmp_path / "sub/middle.yaml").write_text("_BASE_: ../low.yaml\nOPTIM: {LR: 2, GAMMA: 2}\n")
    (tmp_path / "high.yaml").write_text("OPTIM: {GAMMA: 3}\nINPUT: {PIXEL_STD: [2]}\n_BASE_: sub/middle.yaml\n")
    expected = {"OPTIM.NAME": "sgd", "OPTIM.LR": 2, "OPTIM.GAMMA": 3, "INPUT.PIXEL_STD": [2]}
    assert read_yaml(tmp_path / "high.yaml") == expected
    (tmp_path / "low.yaml").write_text("_BASE_: sub/../sub/middle.yaml")
    with pytest.raises(UserError, match="is a base of itself"):
        read_yaml(tmp_path / "high.yaml")


def test_each_config_is_what_its_name_says() -> None:
    backbones = {"rn50": "RN50", "rn101": "RN101", "vit_b16": "ViT-B/16", "vit_b32": "ViT-B/32"}
    backbones |= {"symbols": "assets/symbols_clip.pt", "symbols_vit": "assets/symbols_vit_clip.pt", "photo": "photo"}
    paths = [*(CONFIGS / "trainers").glob("*/*.yaml")]
    assert len(paths) >= 52
    for path in paths:
        values, node = read_yaml(path), f"TRAINER.{path.parent.name.upper()}"
        name = re.fullmatch(
            r"(symbols_vit|[a-z]+(?:_b)?\d*)(?:_c(\d+))?(?:_ep(\d+))?(?:_batch(\d+))?(_ctxv1)?", path.stem
        )
        assert name and values["MODEL.BACKBONE.NAME"] == backbones[name[1]], path
        keys = (f"{node}.N_CTX", "OPTIM.MAX_EPOCH", "DATALOADER.TRAIN_X.BATCH_SIZE")
        for key, number in zip(keys, name.groups()[1:4], strict=True):
            assert number is None or values[key] == int(number), path
        words = name[5] or (name[1] == "photo" and "CoCoOp" in path.parent.name)  # by its recipe's config
        assert values.get(f"{node}.CTX_INIT", "") == ("a photo of a" if words else ""), path


def test_the_printed_config_is_one_for_upstream(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded by yacs into upstream's keys and those of ``extend_cfg``, it gives the same values; it needs no data."""
    words = ["--root", "nowhere", "--recipe", "OPTIM.MAX_EPOCH 7", "TRAINER.PLOT.EPS", "0.2", "OPTIM.LR", "1e-4"]
    words += ["DATALOADER.CACHED_VIEWS", "3", "TRAINER.CUDA_GRAPHS", "False", "INPUT.SIZE", "(64, 64)"]
    argv = ["--print-config", *command(run_args, "PLOT"), *words]
    cfg, _ = setup_cfg(build_parser().parse_args(argv))
    assert train.main(argv) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert not (tmp_path / "output").exists()
    theirs = get_cfg_default()
    del theirs.DATALOADER["CACHED_VIEWS"], theirs.DATALOADER["DECODED_GB"], theirs.DATALOADER["ON_DEVICE"]
    del theirs.TEST["FEATURE_CACHE"], theirs.INPUT["MAX_PIXELS"], theirs.INPUT["CROP_SHARE"]
    del theirs.TEST["FEATURE_CACHE_DIR"], theirs.TEST["FEATURE_CACHE_GB"], theirs.TRAIN["LOGGERS"]
    assert len([*flatten(theirs)]) == 88, "all of Dassl.pytorch c61a1b5; a new key of ours needs ours=True"
    trainers.extend_cfg(theirs)
    theirs.merge_from_file(str(tmp_path / "printed.yaml"))
    values = dict(flatten(cfg))
    assert [key for key, value in flatten(theirs) if value != values[key]] == []
    assert theirs.OPTIM.MAX_EPOCH == 7 and theirs.TRAINER.PLOT.EPS == 0.2 and theirs.INPUT.SIZE == (64, 64)
    printed = yaml.safe_load((tmp_path / "printed.yaml").read_text())["TRAINER"]
    assert [name for name, node in printed.items() if isinstance(node, dict)] == ["PLOT"]


def test_every_key_has_a_range() -> None:
    for key, entry in flatten(KEYS):
        assert isinstance(entry, (Key, bool)) or key in FREE, key


def test_the_defaults_and_a_name_of_digits_are_fine(run_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = build_parser().parse_args([*command(run_args, "PLOT"), "MODEL.HEAD.NAME", "2024", "OPTIM.LR", "1"])
    args.seed = 2**40
    cfg, _ = setup_cfg(args)
    assert (cfg.MODEL.HEAD.NAME, cfg.OPTIM.LR, cfg.SEED) == ("2024", 1.0, 2**40)
