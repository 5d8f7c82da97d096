"""Weights of open_clip and Hugging Face in each of their formats compute here what they compute there."""

from __future__ import annotations

import json
from pathlib import Path

import clip
import pytest
import torch
from torch import Tensor

from dassl.utils import UserError
from trainers.clip.configs import ARCHITECTURES, named
from trainers.clip.formats import converted
from trainers.clip.weights import load_clip

from .libraries import (
    check,
    config,
    enliven,
    of_open_clip,
    of_transformers,
    open_clip,
    save_open_clip,
    save_transformers,
)

OPEN_CLIP_FORMS = ("safetensors", "bin", "module", "model_state_dict", "lightning", "text")
HF_FORMS = ("safetensors", "bin", "sharded", "sharded bin")
# Small pictures leave the widths and heads as they are. The depth of None is the architecture's own.
SIZES = {"RN50": 64, "RN50x4": 64, "ViT-B-32": 64, "ViT-B-16": 64, "ViT-L-14": 56, "ViT-H-14": 56, "ViT-g-14": 56}
QUICK = ("RN50", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14")


def cases(*quick: str) -> list[object]:
    """Architecture and depth: 2, and all at their full depth."""
    slow = [(arch, depth) for arch in SIZES for depth in (2, None) if arch not in quick or depth is None]
    return [(arch, 2) for arch in quick] + [pytest.param(*case, marks=pytest.mark.slow) for case in slow]


@pytest.mark.medium
@pytest.mark.parametrize(("arch", "depth"), cases(*QUICK))
def test_open_clips_models_give_their_own_features(arch: str, depth: int | None, tmp_path: Path) -> None:
    size = SIZES[arch] if depth else None
    model, cfg = of_open_clip(arch, depth, size)
    check(save_open_clip(model, cfg, tmp_path, "safetensors"), model, size or cfg["vision_cfg"]["image_size"])


@pytest.mark.medium
@pytest.mark.parametrize(("arch", "depth"), cases(*QUICK[1:]))
def test_transformers_models_give_their_own_features(arch: str, depth: int | None, tmp_path: Path) -> None:
    if arch.startswith("RN"):
        pytest.skip("transformers has no ResNets of CLIP")
    size = SIZES[arch] if depth else 224
    model = of_transformers(arch, depth, size)
    check(save_transformers(model, tmp_path, "safetensors"), model, size)


def _tensors(path: object, **backbone: object) -> dict[str, Tensor]:
    return load_clip(config(path, **backbone)).state_dict()


@pytest.mark.medium
@pytest.mark.parametrize("arch", ["RN50", "ViT-B-32"])
def test_each_format_of_open_clip_holds_the_same_model(
    arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, cfg = of_open_clip(arch, 1, 64)
    expected = model.state_dict()
    for form in OPEN_CLIP_FORMS:
        found = _tensors(save_open_clip(model, cfg, tmp_path / form, form))
        assert ("1 tensors are left out" in capsys.readouterr().out) == (form == "lightning")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], x) for name, x in expected.items()), form


@pytest.mark.medium
def test_each_format_of_hugging_face_holds_the_same_model(tmp_path: Path) -> None:
    model = of_transformers("ViT-B-32", 1, 64)
    saved = {form: _tensors(save_transformers(model, tmp_path / form, form)) for form in HF_FORMS}
    for found in saved.values():
        assert all(torch.equal(found[name], x) for name, x in saved["safetensors"].items())
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    assert _tensors(index).keys() == saved["sharded"].keys()  # the file, in place of its folder


@pytest.mark.medium
def test_a_mistaken_activation_would_be_noticed(tmp_path: Path) -> None:
    """The config, the name and the option each say it, and the features of the two differ by more than 1e-2."""
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    tokens = clip.tokenize(["a photo of a cat", "dogs"])
    for arch, own, other in (("ViT-B-32", "gelu", "quickgelu"), ("ViT-B-32-quickgelu", "quickgelu", "gelu")):
        model, cfg = of_open_clip(arch, 1, 64)
        path = save_open_clip(model, cfg, tmp_path / arch, "safetensors")
        expected = model.encode_image(image), model.encode_text(tokens)
        alone = path.rename(tmp_path / f"{arch}.safetensors")
        others = [save_open_clip(model, cfg, tmp_path / form, form) for form in ("bin", "module", "model_state_dict")]
        for other_form in others:
            (other_form.parent / "open_clip_config.json").unlink()
        for silent in (alone, *others):
            with pytest.raises(UserError, match="does not say its activation, and there is no open_clip_config"):
                load_clip(config(silent))
        beside = tmp_path / arch / "weights.safetensors"
        beside.symlink_to(alone)

        def errors(name: Path, **backbone: object) -> list[Tensor]:
            ours = load_clip(config(name, **backbone))
            found = ours.encode_image(image), ours.encode_text(tokens)
            return [(mine - theirs).abs().max() for mine, theirs in zip(found, expected, strict=True)]  # noqa: B023

        assert max(*errors(beside), *errors(alone, ARCH=arch), *errors(alone, ACTIVATION=own)) < 1e-4
        assert min(errors(alone, ACTIVATION=other)) > 1e-2
        with pytest.raises(UserError, match=rf"is \('{own}', .* by .*config\.json', and \('{other}', .*ARCH"):
            load_clip(config(beside, ARCH="ViT-B-32" if own == "quickgelu" else "ViT-B-32-quickgelu"))


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    """H/14 has heads of 80. Neither its shapes nor its activation are taken for them."""
    cfg = {"embed_dim": 64, "vision_cfg": {"width": 1280, "layers": 1, "head_width": 80, "patch_size": 32,
           "image_size": 32, "mlp_ratio": 0.1}, "text_cfg": {"width": 64, "heads": 1, "layers": 1}}  # fmt: skip
    model = open_clip.model.CLIP(**cfg).eval()
    path = save_open_clip(model, cfg, tmp_path, "bin")
    image = torch.randn(2, 3, 32, 32)
    ours = load_clip(config(path))
    assert (ours.encode_image(image) - model.encode_image(image)).abs().max() < 1e-5
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"does not say its heads, which above a width of 1024 .*ARCH"):
        load_clip(config(path, ACTIVATION="gelu"))
    with pytest.raises(UserError, match=r"are 1280 and 64 wide, but MODEL\.BACKBONE\.ARCH ViT-H-14 says 1280 and 1024"):
        load_clip(config(path, ARCH="ViT-H-14"))


def test_the_table_of_architectures_is_open_clips() -> None:
    for arch, (image, text) in ARCHITECTURES.items():
        for name in (arch, f"{arch}-quickgelu"):
            theirs = open_clip.get_model_config(name) or open_clip.get_model_config(arch)
            vision = theirs["vision_cfg"]
            resnet = isinstance(vision["layers"], list)
            heads = vision["width"] * (32 if resnet else 1) // vision.get("head_width", 64)
            assert image == (vision["width"], heads)
            assert text == (theirs["text_cfg"]["width"], theirs["text_cfg"]["heads"])
            assert named(name).activation == ("quickgelu" if name.endswith("quickgelu") else "gelu")
    assert named("ViT-S-32-alt").text == (256, 4)  # open_clip's own config
    with pytest.raises(UserError, match=r"unknown architecture 'ViT-B/33'.* the nearest is 'ViT-B-32'"):
        named("ViT-B/33")


@pytest.mark.medium
def test_layer_scale_logit_bias_and_other_widths(tmp_path: Path) -> None:
    """LayerScale is part of the weights; patch dropout, and a bias of all logits, change nothing in a test."""
    cfg = {"embed_dim": 48, "init_logit_bias": -10, "nonscalar_logit_scale": True,
           "vision_cfg": {"width": 96, "layers": 2, "head_width": 32, "patch_size": 16, "image_size": 64,
                          "ls_init_value": 0.3, "patch_dropout": 0.5, "mlp_ratio": 2.5},
           "text_cfg": {"width": 80, "heads": 5, "layers": 3, "ls_init_value": 0.2}}  # fmt: skip
    torch.manual_seed(0)
    model = enliven(open_clip.model.CLIP(**cfg))
    check(save_open_clip(model, cfg, tmp_path, "safetensors"), model, 64, 1e-7)  # the folded weights are float32
    assert "visual.transformer.resblocks.0.ls_1.gamma" in model.state_dict() and "logit_bias" in model.state_dict()


@pytest.mark.medium
def test_a_text_tower_that_is_not_causal_runs_plain(tmp_path: Path) -> None:
    model, cfg = of_open_clip("ViT-S-32-alt", 2, 64, no_causal_mask=True)
    path = save_open_clip(model, cfg, tmp_path, "safetensors")
    with pytest.raises(UserError, match=r"is not causal .*open_clip_config\.json'\).*PLAIN_TEXT True"):
        load_clip(config(path))
    check(path, model, 64, PLAIN_TEXT=True)
    causal, cfg = of_open_clip("ViT-S-32-alt", 2, 64)
    check(save_open_clip(causal, cfg, tmp_path / "causal", "safetensors"), causal, 64, PLAIN_TEXT=True)


def test_precision_is_the_files(tmp_path: Path) -> None:
    """float16 as CLIP has it, bfloat16 and float32 as float32."""
    model, cfg = of_open_clip("ViT-S-32-alt", 1, 64)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        path = save_open_clip(model.to(dtype), cfg, tmp_path / str(dtype), "safetensors")
        ours = load_clip(config(path))
        found[dtype] = ours.dtype, ours.ln_final.weight.dtype
    assert found[torch.float16] == (torch.float16, torch.float32)
    assert found[torch.bfloat16] == found[torch.float32] == (torch.float32, torch.float32)


def test_what_a_config_says_and_we_do_not_compute_is_refused(tmp_path: Path) -> None:
    model, cfg = of_open_clip("ViT-S-32-alt", 1, 64)
    path = save_open_clip(model, cfg, tmp_path, "safetensors")
    for part, key, value in (
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"),
        ("text_cfg", "hf_model_name", "xlm-roberta-base"),
        ("text_cfg", "norm_kwargs", {"eps": 1e-6}),
    ):
        changed = {**cfg, part: {**cfg[part], key: value}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": changed}))
        with pytest.raises(
            UserError, match=rf"open_clip_config\.json' says {part}\.{key} .*, which is not computed here"
        ):
            load_clip(config(path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg | {"vision_cfg": {"head_width": 0}}}))
    with pytest.raises(UserError, match=r"open_clip_config\.json' is no config of open_clip: ZeroDivisionError"):
        load_clip(config(path))


def test_names_are_recognised_by_tables() -> None:
    x = torch.zeros(2, 2)
    theirs = {f"module.model.{name}": x for name in ("token_embedding.weight", "text_projection.weight", "attn_mask")}
    _, prefix, ours = converted(theirs)
    assert prefix == "module.model." and ours.keys() == {"token_embedding.weight", "text_projection"}
    with pytest.raises(UserError, match=r"several models, under '', 'module\.'"):
        converted(theirs | {"visual.conv1.weight": x} | {"module.visual.conv1.weight": x})
