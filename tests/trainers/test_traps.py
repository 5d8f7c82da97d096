"""Caches of features are right for every learned parameter, wherever it reaches; the towers' doors are exact."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import train
import trainers.prompt_trainer
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.extras.distributed import local_device
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.recipes import config_file, recipe
from tests.oracle import make_cfg, plain_layernorms, random_images, tiny_clip
from tests.runs.test_train import SMALL
from tests.trainers.custom_clip import LABEL, NAMES, error
from tests.trainers.toys import TextScale, VisualToken
from trainers import plot
from trainers.clip.encoders import Extra, ImageEncoder, TextEncoder
from trainers.clip.prompts import PromptBuilder, UserError
from trainers.clip.weights import load_clip
from trainers.method import Option, add_options
from trainers.prompt_trainer import PromptTrainer


def trainer_of(name: str, run_args: list[str], vit: Path, out: Path, *opts: str) -> Any:
    flags = [*run_args[:-1], str(vit), "--output-dir", str(out), "--trainer", name]
    flags += ["--dataset-config-file", "configs/datasets/caltech101.yaml"]
    args = build_parser().parse_args([*flags, *SMALL, "DATASET.NUM_SHOTS", "2", *opts])
    cfg, _ = setup_cfg(args)
    cfg.OUTPUT_DIR = str(out)
    return build_trainer(cfg)


@pytest.mark.parametrize("name", ["ToyVisualToken", "ToyTextScale"])
def test_trained_and_tested_with_the_caches_on(
    name: str, run_args: list[str], vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last image: each test, before and after learning, gives the logits of a fresh computation."""
    monkeypatch.chdir(Path(train.__file__).parent)
    opts = ("OPTIM.LR", "5.0", "OPTIM.WARMUP_EPOCH", "-1", "TRAINER.COOP.PREC", "fp32", "OPTIM.NAME", "sgd")
    trainer = trainer_of(name, run_args, vit, tmp_path / "run", *opts)
    learned = dict(trainer.model.prompt_learner.named_parameters())
    assert len(learned) == 2
    seen = []
    infer = trainer.model_inference
    trainer.model_inference = lambda input: seen.append(infer(input)) or seen[-1]
    for _ in range(2):
        seen.clear()
        trainer.test()
        cached = torch.cat(seen)
        with torch.no_grad():
            images = torch.cat([batch["img"] for batch in trainer.test_loader])
            fresh = trainer.custom_clip(trainer.cfg, trainer.dm.dataset.classnames, fresh_clip(trainer.cfg))
            fresh.prompt_learner.load_state_dict(trainer.model.prompt_learner.state_dict())
            torch.testing.assert_close(cached, fresh.eval()(images), atol=1e-3, rtol=1e-4)
        before = {key: p.detach().clone() for key, p in learned.items()}
        trainer.epoch, trainer.max_epoch = 0, 1
        trainer.set_epoch(0)
        trainer.run_epoch()
        assert all((p - before[key]).abs().max() > 1e-4 for key, p in learned.items()), "each of them learns"
    assert (seen[0] - infer(trainer.parse_batch_test(next(iter(trainer.test_loader)))[0])).abs().max() > 1e-2


def fresh_clip(cfg: Any) -> Any:
    return load_clip(cfg).float()


def test_views_of_an_image_tower_that_learns_are_refused(
    run_args: list[str], vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(train.__file__).parent)
    with pytest.raises(UserError, match="no frozen image encoder"):
        trainer_of("ToyVisualToken", run_args, vit, tmp_path, "DATALOADER.CACHED_VIEWS", "2")
    assert local_device(False).type == "cpu"


def test_features_that_a_constant_changes_are_not_kept() -> None:
    """Under CLIP's own key every other method would read them."""
    model = VisualToken(make_cfg("COOP", 64, N_CTX=4), NAMES, tiny_clip("ViT"))
    trainer = SimpleNamespace(model=model)
    assert PromptTrainer.feature_key(trainer) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["parse_input", "parse_batch_test", "model_inference", "encode_images"])
def test_features_are_not_kept_where_a_trainer_changes_the_way(
    step: str, run_args: list[str], vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(train.__file__).parent)
    trainer = trainer_of("CoOp", run_args, vit, tmp_path)
    assert trainer.feature_key() is not None
    own = type("Own", (type(trainer),), {step: lambda self, *args: None})
    trainer.__class__ = own
    vars(own)[step].__module__ = "my_method"
    assert trainer.feature_key() is None


def test_the_key_of_kept_features_is_of_the_tower_in_use(
    run_args: list[str], vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods share features, unless one changes CLIP's weights before it builds its model."""
    monkeypatch.chdir(Path(train.__file__).parent)
    coop, plot_ = (trainer_of(name, run_args, vit, tmp_path / name) for name in ("CoOp", "PLOT"))
    assert coop.feature_key() == plot_.feature_key()

    def changed(cfg: Any) -> Any:
        clip_model = load_clip(cfg)
        with torch.no_grad():
            clip_model.visual.conv1.weight.mul_(1.5)
        return clip_model

    monkeypatch.setattr(trainers.prompt_trainer, "load_clip", changed)
    other = trainer_of("CoOp", run_args, vit, tmp_path / "other")
    assert other.weights_sha256 == coop.weights_sha256 and other.feature_key() != coop.feature_key()


def test_methods_that_share_a_node_agree_on_defaults() -> None:
    kind = type("Halved", (plot.PLOT,), {"options": (Option("N", 2, "prompts a class", 1),)})
    TRAINER_REGISTRY.register(kind, force=True)
    try:
        with pytest.raises(UserError, match=r"TRAINER.PLOT.N is 4 in PLOT and 2 in Halved; give one its own node"):
            add_options(make_cfg("PLOT", 64))
    finally:
        del TRAINER_REGISTRY._objects["Halved"]


def test_a_variant_has_the_configs_of_what_it_derives_from() -> None:
    TRAINER_REGISTRY.register(type("Sibling", (plot.PLOT,), {"node": "SIBLING"}), force=True)
    try:
        config, _ = recipe("Sibling", "caltech101", 16)
        assert config_file("Sibling", config) == config_file("PLOT", "rn50") and config_file("PLOT", "rn50").is_file()
    finally:
        del TRAINER_REGISTRY._objects["Sibling"]


def test_a_variant_has_a_node_of_its_own() -> None:
    cfg = make_cfg("PLOT", 64, N=4)
    cfg.defrost()
    kind = type("Variant", (plot.PLOT,), {"node": "variant"})
    TRAINER_REGISTRY.register(kind, force=True)
    add_options(cfg)
    cfg.TRAINER.NAME, cfg.TRAINER.variant.N, cfg.TRAINER.variant.N_CTX = "Variant", 2, 3
    model = plot.CustomCLIP(cfg, NAMES, tiny_clip("RN"))
    assert model.prompt_learner.ctx.shape[:2] == (2, 3)
    assert "TRAINER.variant.GLOBAL_LOGITS" in kind.recipe("imagenet", 16).options
    del TRAINER_REGISTRY._objects["Variant"]


def test_kept_text_features_follow_every_parameter_and_buffer() -> None:
    clip_model = tiny_clip("ViT")
    model = TextScale(make_cfg("COOP", 64, N_CTX=4), NAMES, clip_model).eval()
    with torch.no_grad():
        first = model.text_features().clone()
        assert model.text_features() is model.text_features()
        model.prompt_learner.deep.neg_()
        assert (model.text_features() - first).abs().max() > 1e-3
        second = model.text_features().clone()
        model.prompt_learner.prompts.embedding.mul_(2)
        assert (model.text_features() - second).abs().max() > 1e-3


def plain_vit(clip_model: Any, image: Tensor, tokens: Tensor | None, deep: dict[int, Tensor]) -> Tensor:
    """CLIP's own modules, with the tokens put in by hand."""
    v = clip_model.visual
    x = v.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], dim=1) + v.positional_embedding
    x = x if tokens is None else torch.cat([x, tokens.expand(len(x), -1, -1)], dim=1)
    x = v.ln_pre(x).transpose(0, 1)
    for i, block in enumerate(v.transformer.resblocks):
        if i in deep:
            x = torch.cat([x[: -len(deep[i])], deep[i][:, None].expand(-1, x.shape[1], -1)])
        x = block(x)
    return v.ln_post(x[0]) @ v.proj


def test_the_image_towers_door() -> None:
    """Tokens, tokens per layer and weight deltas: values and gradients of CLIP's own modules."""
    clip_model = tiny_clip("ViT")
    plain_layernorms(clip_model)
    width, image = clip_model.visual.class_embedding.shape[0], random_images(3)
    encoder = ImageEncoder(clip_model.visual)
    tokens, deep, low = (torch.randn(2, width, dtype=torch.float64, requires_grad=True) for _ in range(3))
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    weight = clip_model.visual.get_parameter(name)
    delta = torch.randn(weight.shape[0], 2, dtype=torch.float64) @ low
    pooled, local = encoder(image, Extra(tokens, {1: deep}, {name: delta}))
    assert local.shape == encoder(image)[1].shape
    with torch.no_grad():
        weight.add_(delta)
    reference = plain_vit(clip_model, image, tokens, {1: deep})
    assert error(pooled.detach(), reference.detach()) < 1e-12
    grads = (torch.autograd.grad(x.square().sum(), [tokens, deep]) for x in (pooled, reference))
    for ours, theirs in zip(*grads, strict=True):
        assert error(ours, theirs) < 1e-10
    assert not encoder(image)[0].requires_grad


@pytest.mark.parametrize("tokens_at_once", [6144, 8])
def test_the_text_towers_door(tokens_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep tokens and deltas, in chunks too, whose recomputation must see the same weights."""
    monkeypatch.setattr("trainers.clip.encoders.MAX_TOKENS", tokens_at_once)
    clip_model = tiny_clip("ViT")
    plain_layernorms(clip_model)
    builder = PromptBuilder(NAMES, clip_model, 4)
    width = clip_model.ln_final.weight.shape[0]
    ctx, deep = (torch.randn(n, width, dtype=torch.float64, requires_grad=True) for n in (4, 2))
    name = "transformer.resblocks.0.attn.in_proj_weight"
    delta = 0.1 * torch.randn(3 * width, width, dtype=torch.float64)
    delta.requires_grad_()
    text = TextEncoder(clip_model)(*builder(ctx[None]), builder.layout, Extra(deep={1: deep}, deltas={name: delta}))[0]

    def plain() -> Tensor:
        found = []
        for k, own in enumerate(builder.suffixes):
            x = torch.cat([builder.embedding[:1], ctx, builder.embedding[own]])
            x = (x + clip_model.positional_embedding[: len(x)])[:, None]
            mask = torch.full((len(x), len(x)), -torch.inf, dtype=torch.float64).triu(1)
            for i, block in enumerate(clip_model.transformer.resblocks):
                x = x if i != 1 else torch.cat([x[:1], deep[:, None], x[3:]])
                block.attn_mask = mask
                change = {"attn.in_proj_weight": block.attn.in_proj_weight + delta} if i == 0 else {}
                x = torch.func.functional_call(block, change, (x,))
            found.append(clip_model.ln_final(x[-1, 0]) @ clip_model.text_projection)
            assert k < len(NAMES)
        return torch.stack(found)

    reference = plain()
    assert error(text.detach(), reference.detach()) < 1e-12
    grads = (torch.autograd.grad(x.square().sum(), [ctx, deep, delta]) for x in (text, reference))
    for ours, theirs in zip(*grads, strict=True):
        assert error(ours, theirs) < 1e-10


def test_what_the_doors_refuse() -> None:
    resnet, vit = tiny_clip("RN"), tiny_clip("ViT")
    tokens = torch.zeros(1, 64, dtype=torch.float64)
    with pytest.raises(UserError, match="need a ViT"):
        ImageEncoder(resnet.visual)(random_images(1), Extra(tokens))
    with pytest.raises(UserError, match="no weight 'conv9"):
        ImageEncoder(vit.visual)(random_images(1), Extra(deltas={"conv9.weight": tokens}))
    with pytest.raises(UserError, match=r"no weight 'transformer\.resblocks\.0\.attn\.nope'"):
        ImageEncoder(vit.visual)(random_images(1), Extra(deltas={"transformer.resblocks.0.attn.nope": tokens}))
    for extra, says in ((Extra(deep={1: tokens}), "0 tokens to replace"), (Extra(tokens, {9: tokens}), "at block 9")):
        with pytest.raises(UserError, match=says):
            ImageEncoder(vit.visual)(random_images(1), extra)
    model = TextScale(make_cfg("COOP", 64, N_CTX=4, CLASS_TOKEN_POSITION="front"), NAMES, vit)
    with pytest.raises(UserError, match="0 tokens to replace"):
        model.text_features()
    learns = VisualToken(make_cfg("COOP", 64, N_CTX=4), NAMES, vit)
    F.cross_entropy(learns(random_images(3)), LABEL).backward()
    assert learns.prompt_learner.visual.grad.abs().max() > 1e-6
