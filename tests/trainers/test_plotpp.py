"""PLOT++: logits and gradients against the plain oracle, initial texts, and what each of the two stages learns."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clip.simple_tokenizer import SimpleTokenizer

import train
import trainers.clip.encoders
from dassl.engine import TrainerX, build_trainer
from dassl.utils import list_checkpoints, load_checkpoint
from experiments.pictures import visualize, words
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.directory import REPOSITORY
from runs.loaded import load
from runs.prediction import main as predict_main
from runs.result import read_result
from tests import children
from tests.experiments.test_main_sh import bash
from tests.oracle import embed_text, make_cfg
from tests.runs.test_interrupted import assert_same_bits, files
from tests.runs.test_train import SMALL
from tests.trainers.custom_clip import LABEL, NAMES, build, error, get_clip, get_oracle
from tests.trainers.test_exactness import TOLERANCE, check, run_oracle
from tests.trainers.test_paths import CountOps
from trainers.plotpp import TEXTS_OF, PromptLearner

# Four, three, six and four tokens, where the first has four words.
UNEVEN = "a photo of a|this is a|one blurry picture of my dog|a photo of a"


@pytest.mark.parametrize("global_logits", [False, True])
@pytest.mark.parametrize(("n", "m", "n_ctx_v"), [(4, 4, 2), (2, 3, 1), (1, 1, 2)])
def test_both_stages_logits_and_gradients(n: int, m: int, n_ctx_v: int, global_logits: bool) -> None:
    options = {"N": n, "M": m, "N_CTX_V": n_ctx_v, "GLOBAL_LOGITS": global_logits}
    check("PLOTPP", "ViT", oracle_options={"global_logits": global_logits}, **options)


@pytest.mark.parametrize("text", [UNEVEN, TEXTS_OF["imagenet"], TEXTS_OF["eurosat"]])
@pytest.mark.parametrize("published", [False, True])
def test_texts_of_uneven_lengths(published: bool, text: str) -> None:
    """As published, longer texts have a frozen rest, and shorter ones cut the names."""
    options = {"texts": text.split("|")} if published else {}
    check("PLOTPP", "ViT", oracle_options=options, CTX_INIT=text, TEXTS_AS_PUBLISHED=published)


def test_stage_1_encodes_the_texts_once() -> None:
    """Its visual prompts have the same gradients as where the texts are encoded at each step."""
    model, oracle = build("PLOTPP", "ViT", GLOBAL_LOGITS=True), get_oracle("ViT")
    learner = model.prompt_learner
    learner.ctx.requires_grad_(False)
    counts = []
    for step in range(3):
        reference = {name: p.detach().clone().requires_grad_() for name, p in learner.named_parameters()}
        logits = run_oracle("PLOTPP", oracle, reference, global_logits=True)
        F.cross_entropy(logits, LABEL).backward()
        learner.zero_grad()
        with CountOps() as ops:
            ours = model(oracle.image)
        counts.append(ops.count)
        F.cross_entropy(ours, LABEL).backward()
        assert error(ours, logits) < TOLERANCE[torch.float64], step
        assert error(learner.ctx_vision.grad, reference["ctx_vision"].grad) < TOLERANCE[torch.float64], step
        assert learner.ctx.grad is None
        with torch.no_grad():
            learner.ctx_vision -= 10 * learner.ctx_vision.grad
    assert counts[0] > counts[1] == counts[2]
    with torch.no_grad():
        learner.ctx.neg_()
        assert (model(oracle.image) - ours).abs().max() > 1e-3


def learner(text: str, **options: Any) -> PromptLearner:
    torch.manual_seed(0)
    return PromptLearner(make_cfg("PLOTPP", CTX_INIT=text, **options), NAMES, get_clip("ViT", torch.float64))


def test_initial_texts_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """The longest has six tokens. Shorter ones have noise in front, and so is the second of two equal ones shifted."""
    clip_model, ctx = get_clip("ViT", torch.float64), learner(UNEVEN).ctx.detach()
    assert ctx.shape[:2] == (4, 6)
    for own, text in zip(ctx[:3], UNEVEN.split("|")[:3], strict=True):
        words = embed_text(clip_model, text)
        assert torch.equal(own[6 - len(words) :], words)
        assert (own[: 6 - len(words)].abs() < 0.1).all() and (own[: 6 - len(words)] != 0).all()
    noise = ctx[3, 2:] - embed_text(clip_model, "a photo of a")
    assert 0.015 < noise.std() < 0.025
    said = capsys.readouterr().out
    assert "'this is a' has 3 tokens of 6: random vectors in front" in said
    assert said.count("'a photo of a' came before: this time shifted by noise") == 1
    assert "dog" not in said


def test_fewer_and_more_prompts_than_texts() -> None:
    assert learner("a photo of a|this is a", N=1).ctx.shape[:2] == (1, 4)
    six = learner("a photo of a|this is a", N=6).ctx.detach()
    assert len({tuple(own.flatten().tolist()) for own in six}) == 6
    assert learner("", N=2, N_CTX=7).ctx.shape[:2] == (2, 7)


def test_initial_texts_as_published() -> None:
    """The first has four words: EOT stands for a missing token, the rest of a longer one is fixed, twins stay equal."""
    clip_model, made = get_clip("ViT", torch.float64), learner(UNEVEN, TEXTS_AS_PUBLISHED=True)
    ctx = made.ctx.detach()
    assert ctx.shape[:2] == (4, 4) and torch.equal(ctx[0], ctx[3])
    eot = SimpleTokenizer().encoder["<|endoftext|>"]
    assert torch.equal(ctx[1, 3], clip_model.token_embedding.weight[eot])
    assert torch.equal(ctx[2], embed_text(clip_model, "one blurry picture of"))
    assert made.groups == [[0, 3], [1], [2]]
    lengths = [[len(own) for own in builder.suffixes] for builder in made.builders]
    assert [n - 1 for n in lengths[0]] == lengths[1] and [n + 2 for n in lengths[0]] == lengths[2]


def test_as_published_alone_leaves_the_texts_whole() -> None:
    """It starts as with seed 1, whatever the seed."""
    torch.manual_seed(5)
    cfg, clip_model = make_cfg("PLOTPP", CTX_INIT=UNEVEN, AS_PUBLISHED=True), get_clip("ViT", torch.float64)
    made, other = PromptLearner(cfg, NAMES, clip_model), learner(UNEVEN, AS_PUBLISHED=True)
    assert made.ctx.shape[:2] == (4, 6) and made.groups == [[0, 1, 2, 3]]
    assert torch.equal(made.ctx, other.ctx) and torch.equal(made.ctx_vision, other.ctx_vision)


def argv_of(run_args: list[str], vit: Path, directory: Path, *opts: str, seed: int = 1) -> list[str]:
    configs = REPOSITORY / "configs"
    return [
        *("--output-dir", str(directory), *run_args[:2], "--seed", str(seed), "--backbone", str(vit)),
        *("--trainer", "PLOTPP", "--config-file", str(configs / "trainers/PLOTPP/vit_b16.yaml")),
        *("--dataset-config-file", str(configs / "datasets/caltech101.yaml"), *SMALL, "DATASET.NUM_SHOTS", "2"),
        *("OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "TRAIN.CHECKPOINT_FREQ", "1", *opts),
    ]


def state(directory: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_checkpoint(str(directory / f"prompt_learner/model.pth.tar-{epoch}"))["state_dict"]


@pytest.mark.medium
def test_the_stages_of_a_run(
    run_args: list[str], vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage 1 leaves the texts as they are; stage 2 begins from its visual prompts, with a new optimizer and rate."""
    assert train.main(argv_of(run_args, vit, tmp_path / "run", "OPTIM.WARMUP_CONS_LR", "1e-3")) == 0
    said = capsys.readouterr().out
    assert said.index("Stage 1: learns the visual prompts") < said.index("Stage 2: learns the visual and the text")
    words = torch.stack([embed_text(get_tiny(vit), t) for t in ("a photo of a", "this is a photo")])
    states = [state(tmp_path / "run", epoch) for epoch in (1, 2, 3, 4)]
    assert torch.equal(states[0]["ctx"][:2], words) and torch.equal(states[1]["ctx"], states[0]["ctx"])
    assert not torch.equal(states[2]["ctx"], states[1]["ctx"])
    for before, after in itertools.pairwise(states):
        assert not torch.equal(before["ctx_vision"], after["ctx_vision"])
    schedules = [load_checkpoint(str(tmp_path / f"run/prompt_learner/model.pth.tar-{e}")) for e in (1, 2, 3, 4)]
    assert [s["scheduler"]["last_epoch"] for s in schedules] == [1, 2, 1, 2]
    result = read_result(tmp_path / "run")
    assert result and result["parameters"] == 4 * 4 * 64 + 4 * 2 * 64 and result["epochs"] == 2


def get_tiny(vit: Path) -> Any:
    from yacs.config import CfgNode

    from trainers.clip.weights import load_clip

    return load_clip(CfgNode({"MODEL": {"BACKBONE": {"NAME": str(vit)}}})).float()


@pytest.mark.medium
@pytest.mark.parametrize("published", [False, True])
def test_the_shots_of_stage_1(published: bool, run_args: list[str], vit: Path, tmp_path: Path) -> None:
    """By default each seed's own; as published those of seed 1, from seed 1's start, for every seed."""
    for seed in (1, 2):
        opts = ("TRAINER.PLOTPP.AS_PUBLISHED", str(published))
        assert train.main(argv_of(run_args, vit, tmp_path / str(seed), *opts, seed=seed)) == 0
    for epoch, same in ((2, published), (4, False)):
        one, other = (state(tmp_path / str(seed), epoch) for seed in (1, 2))
        assert torch.equal(one["ctx_vision"], other["ctx_vision"]) == same


@pytest.mark.medium
def test_the_workers_of_stage_1_end_with_it(run_args: list[str], vit: Path, tmp_path: Path) -> None:
    opts = ("TRAINER.PLOTPP.AS_PUBLISHED", "True", "DATALOADER.NUM_WORKERS", "1")
    argv = argv_of(run_args, vit, tmp_path / "run", *opts, seed=2)
    trainer = build_trainer(setup_cfg(build_parser().parse_args(argv))[0])
    trainer.set_epoch(0)
    next(iter(trainer.train_loader_x))
    (worker,) = trainer.loaders[0]._iterator._workers
    assert trainer.train_loader_x is trainer.loaders[0] and worker.is_alive()
    trainer.set_epoch(2)
    assert trainer.train_loader_x is trainer.loaders[1] and not worker.is_alive()


def kill_at(step: tuple[int, int]) -> None:
    """The process kills itself before that step, an epoch and its batch."""
    do = TrainerX._step

    def killed(self: Any, batch: Any) -> Any:
        if (self.epoch, self.batch_idx) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(self, batch)

    TrainerX._step = killed  # type: ignore[method-assign]


@pytest.mark.medium
@pytest.mark.parametrize("published", [False, True])
def test_killed_in_either_stage_it_ends_at_the_same_bits(
    published: bool, run_args: list[str], vit: Path, tmp_path: Path
) -> None:
    """Epochs 1 and 2 are stage 1. It is killed in both, before and in the first epoch of stage 2, and in its second."""
    opts = ("TRAINER.PLOTPP.AS_PUBLISHED", str(published), "TEST.FINAL_MODEL", "best_val")

    def argv(name: str) -> list[str]:
        return argv_of(run_args, vit, tmp_path / name, *opts, seed=2)

    assert train.main(argv("whole")) == 0
    learner = str(tmp_path / "killed/prompt_learner")
    for epochs, step in zip((0, 0, 2, 2, 3), ((0, 1), (2, 0), (2, 1), (3, 0), (3, 1)), strict=True):
        assert max(list_checkpoints(learner), default=(0, 0)) == (epochs, 0)
        assert children.run(argv("killed"), tmp_path / "log", lambda step=step: kill_at(step)) == -signal.SIGKILL
    assert children.run(argv("killed"), tmp_path / "log") == 0
    for epoch in (1, 2, 4):
        one, other = (state(tmp_path / name, epoch) for name in ("whole", "killed"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.slow
def test_by_its_script_and_what_reads_a_run(
    vit: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"DATA": str(data_root), "OUT": str(tmp_path), "SEEDS": "1", "N": "2"}
    opts = [*SMALL, "OPTIM.MAX_EPOCH", "1", "MODEL.BACKBONE.NAME", str(vit)]
    done = bash("plotpp/main.sh", "caltech101", "1", *opts, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "PLOTPP on caltech101, 1 shot, config vit_b16" in done.stdout
    (path,) = tmp_path.glob("caltech101/PLOTPP/vit_b16_1shots/n2_*/seed1/result.json")
    picture = next((data_root / "caltech-101/101_ObjectCategories/face").iterdir())
    assert predict_main(["--run", str(path.parent), str(picture), "--classes", "cat,dog"]) == 0
    assert words.main([str(path.parent), "--top", "1"]) == 0
    assert capsys.readouterr().out.count("prompt ") == 2
    assert visualize.main([str(path.parent), str(picture)]) == 2
    assert "the plans of PLOTPP are not of places" in capsys.readouterr().err


@pytest.mark.medium
@pytest.mark.parametrize("module", ["", "module."])
def test_a_released_checkpoint_is_tested(module: str, run_args: list[str], vit: Path, tmp_path: Path) -> None:
    """The published code saves all of CLIP under the prompt learner's name; some of it was wrapped for several GPUs."""
    assert train.main(argv_of(run_args, vit, tmp_path / "run")) == 0
    own = state(tmp_path / "run", 4)
    whole = {f"prompt_learner.{key}": value for key, value in own.items()}
    whole |= {f"prompt_learner.token_{part}": torch.zeros(20, 3, 64) for part in ("prefix", "suffix")}
    tower = get_tiny(vit).state_dict()
    whole |= {key.replace("visual.", "image_encoder."): value for key, value in tower.items() if "visual." in key}
    whole |= {f"text_encoder.{module}{key}": value for key, value in tower.items() if "visual." not in key}
    folder = tmp_path / "released/prompt_learner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": whole, "epoch": 50}, folder / "model.pth.tar-50")
    test = argv_of(run_args, vit, tmp_path / "test", "--eval-only")
    flags = [*test[:2], "--eval-only", "--model-dir", str(tmp_path / "released"), *test[2:-1]]
    assert train.main(flags) == 0
    results = [read_result(tmp_path / name) for name in ("run", "test")]
    assert results[0] and results[1] and results[0]["accuracy"] == results[1]["accuracy"]
    assert (tmp_path / "run/predictions.json").read_text() == (tmp_path / "test/predictions.json").read_text()


@pytest.mark.medium
@pytest.mark.parametrize("published", [False, True])
def test_a_released_checkpoint_shows_its_options(published: bool, vit: Path, tmp_path: Path) -> None:
    """The numbers and lengths of its prompts; as published, CTX_INIT says what is fixed between ctx and the names."""
    learner = tmp_path / "released/prompt_learner"
    learner.mkdir(parents=True)
    noise = {"ctx": torch.randn(3, 6 - published, 64), "ctx_vision": torch.randn(5, 1, 64)}
    whole = {f"prompt_learner.{key}": value for key, value in noise.items()}
    torch.save({"state_dict": whole, "epoch": 50}, learner / "model.pth.tar-50")
    texts = "a photo of a dog|this is a|one blurry picture of my dog"
    (tmp_path / "small.yaml").write_text(
        f"_BASE_: {REPOSITORY}/configs/trainers/PLOTPP/vit_b16.yaml\nINPUT: {{SIZE: [64, 64]}}\n"
        f"TRAINER: {{PLOTPP: {{TEXTS_AS_PUBLISHED: {published}, CTX_INIT: {texts}}}}}\n"
    )
    flags = ["--trainer", "PLOTPP", "--config-file", str(tmp_path / "small.yaml")]
    run = load(tmp_path / "released", ["cat", "dog"], str(vit), flags)
    own = run.trainer.model.prompt_learner
    assert torch.equal(own.ctx, noise["ctx"]) and torch.equal(own.ctx_vision, noise["ctx_vision"])
    assert own.groups == ([[0], [1], [2]] if published else [[0, 1, 2]])
    found = [run.trainer.method_cfg[key] for key in ("N", "M", "N_CTX_V", "CTX_INIT")]
    assert found == [3, 5, 1, texts if published else ""]


@pytest.mark.parametrize("name", ["RN50", ""])
def test_a_resnet_is_refused_with_a_line(
    name: str, run_args: list[str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenAI's by its name, before anything is downloaded, and a file by what it holds."""
    assert train.main(argv_of(run_args, Path(name or weights), tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "PLOTPP learns tokens of a ViT" in said and (name or str(weights)) in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("PLOTPP.CTX_INIT", "a photo||of", "TRAINER.PLOTPP.CTX_INIT has a text of 0 tokens"),
        ("PLOTPP.CTX_INIT", "a " * 75, "TRAINER.PLOTPP.CTX_INIT has a text of 75 tokens"),
        ("SPLIT_CLASSES", "True", "PLOTPP learns in the image tower: it needs TRAINER.SPLIT_CLASSES False"),
    ],
)
def test_options_that_cannot_be(
    key: str, value: str, says: str, run_args: list[str], vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(argv_of(run_args, vit, tmp_path / "run", f"TRAINER.{key}", value)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said and not (tmp_path / "run").exists()


def test_weights_are_cast_once_with_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast the frozen tower's copy is used, with the bits of autocast."""
    results = []
    for once in (False, True):
        with monkeypatch.context() as patch:
            if not once:
                patch.setattr(trainers.clip.encoders.Autocast, "__call__", lambda self, device: self.tower)
            model = build("PLOTPP", "ViT", torch.float32)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(get_oracle("ViT").image.float())
            F.cross_entropy(logits, LABEL).backward()
        results.append([logits.detach(), model.prompt_learner.ctx_vision.grad])
        assert len(model.image_encoder.cast.copies) == int(once)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
