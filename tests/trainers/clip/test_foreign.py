"""Models that open_clip alone computes, SigLIP among them: their own features, and PLOT's logits on these."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from benchmarks import plain
from dassl.utils import UserError
from tests.oracle import make_cfg, plain_layernorms
from tests.runs.test_train import CONFIGS, SHORT, command
from trainers import plot
from trainers.clip.weights import load_clip
from trainers.method import methods

from .libraries import N_CTX, N, config, contexts, each, enliven, open_clip, save_open_clip, transformers

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
NAMES = ("cat", "sea horse", "aircraft of glass")
WORDS = ("<s>", "</s>", "<pad>", "<unk>", "cat", "sea", "horse", "aircraft", "of", "glass", "a", "photo", ".")
ROWS = torch.arange(40, 40 + N * N_CTX).view(N, N_CTX)  # of the contexts in the token table: tokens of no word
PLAIN_VIT = {"width": 64, "layers": 2, "head_width": 32, "patch_size": 16, "image_size": 64}
SMALL = {"width": 48, "heads": 2, "layers": 2}
TEXT = {**SMALL, "context_length": 24, "vocab_size": 64, "hf_tokenizer_name": "some/name"}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
          "act_kwargs": {"approximate": "tanh"}}  # fmt: skip


def timm(name: str, pool: str, proj: str | None) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 160}


# Image and text config; what pools a position; the tokens around a text.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "SigLIP": (timm("test_vit3", "map", "none"), {**TEXT, **SIGLIP}, "$A </s>"),
    "EVA": (timm("test_vit", "token", None), SMALL, ""),
    "MobileCLIP": (timm("test_convnext", "avg", None), {**SMALL, "no_causal_mask": True}, ""),
    "PE": (timm("test_vit", "map", None), {**SMALL, "context_length": 24}, ""),
    "worldwide": (PLAIN_VIT, {**TEXT, "pool_type": "eos", "eos_id": 1}, "<s> $A </s>"),
    "RoBERTa": (PLAIN_VIT, {"hf_tokenizer_name": "some/name", "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp",
                            "context_length": 16}, "<s> $A </s>"),
    "T5": (PLAIN_VIT, {"hf_tokenizer_name": "some/name", "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear",
                       "context_length": 16}, "$A </s>"),
}  # fmt: skip


def save_tokenizer(folder: Path, template: str) -> None:
    """Lower-case words, padded with </s> where nothing stands in front, as SigLIP's."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(word, vocabulary[word]) for word in ("<s>", "</s>")]
    own.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=special)
    pad = "<pad>" if template.startswith("<s>") else "</s>"
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, pad_token=pad, eos_token="</s>").save_pretrained(folder)


def make(kind: str, folder: Path, form: str = "safetensors") -> tuple[nn.Module, Path]:
    """A random model of open_clip, and its weights beside its config and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    image, text, template = copy.deepcopy(MODELS[kind])
    if template:
        save_tokenizer(folder, template)
    if kind in ("RoBERTa", "T5"):
        small = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 2,
                 "intermediate_size": 64, "max_position_embeddings": 20, "pad_token_id": 2}  # fmt: skip
        t5 = {"vocab_size": 64, "d_model": 48, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 3,
              "pad_token_id": 1}  # fmt: skip
        theirs = transformers.MT5Config(**t5) if kind == "T5" else transformers.XLMRobertaConfig(**small)
        theirs.save_pretrained(folder / "text")
        text["hf_model_name"] = str(folder / "text")
    width = {"test_vit3": 96}.get(image.get("timm_model_name", ""), 32)
    cfg = {"embed_dim": width, "vision_cfg": image, "text_cfg": text, "init_logit_bias": -10, "custom_text": True}
    torch.manual_seed(0)
    text = {**text, "hf_model_pretrained": False}
    model = open_clip.model.CustomTextCLIP(width, image, text, init_logit_bias=-10.0)
    return enliven(model), save_open_clip(model, cfg, folder, form)


def locals_of(model: nn.Module, image: Tensor) -> Tensor:
    """[batch, M, d]: what pooling and projection make of each position, written out."""
    visual = model.visual
    if not hasattr(visual, "trunk"):
        seen: list[Tensor] = []
        handle = visual.transformer.register_forward_hook(lambda module, args, output: seen.append(output))
        visual(image)
        handle.remove()
        return visual.ln_post(seen[0][:, 1:]) @ visual.proj
    trunk, x = visual.trunk, visual.trunk.forward_features(image)
    if x.dim() == 4:
        return trunk.head.fc(trunk.head.norm(x).flatten(2).transpose(1, 2))
    x = x[:, trunk.num_prefix_tokens :]
    if trunk.attn_pool is None:
        return trunk.head(x)
    pool = trunk.attn_pool  # attention to one position is its value
    value = pool.proj(pool.kv(x).chunk(2, dim=-1)[1])
    return trunk.head(trunk.fc_norm(value + pool.mlp(pool.norm(value))))


def tokens_of(kind: str, path: Path, texts: list[str], row: Tensor | None = None) -> Tensor:
    """The library's own tokens; ``row`` [n_ctx] is put behind the token in front, and what falls off is padding."""
    _, text, template = MODELS[kind]
    length = text.get("context_length", 77)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(path.parent), length) if template else (
        open_clip.tokenizer.SimpleTokenizer(context_length=length))  # fmt: skip
    tokens, start = tokenizer(texts, context_length=length), int(not template or template.startswith("<s>"))
    if row is None:
        return tokens
    return torch.cat([tokens[:, :start], row.expand(len(texts), -1), tokens[:, start : -len(row)]], dim=1)


@torch.no_grad()
def check(kind: str, model: nn.Module, path: Path) -> None:
    """Features and PLOT's logits are the library's, to 1e-5 in float32 and 1e-10 in float64."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model, ours = model.to(dtype), load_clip(config(path, PLAIN_TEXT=True)).to(dtype)
        if dtype == torch.float64:
            plain_layernorms(ours)
        size = ours.visual.input_resolution
        image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3)).to(dtype)
        hugging_face = hasattr(model.text, "pooler")
        table = model.text.transformer.get_input_embeddings() if hugging_face else model.text.token_embedding
        table.weight[ROWS] = contexts(table.embedding_dim).to(dtype)
        texts = [name + "." for name in NAMES]
        expected = torch.stack([model.encode_text(tokens_of(kind, path, texts, row)) for row in ROWS])
        theirs = model.encode_image(image), locals_of(model, image)
        head = plot.CustomCLIP(make_cfg("PLOT", size, N=N, N_CTX=N_CTX), NAMES, ours)
        head.prompt_learner.ctx.copy_(contexts(table.embedding_dim))
        pooled, local = head.image_encoder(image)
        whole = tokens_of(kind, path, ["a photo of a cat"])
        found: list[tuple[str, Tensor, Tensor]] = [
            ("pooled", pooled, theirs[0]),
            ("local", local, theirs[1]),
            ("texts", ours.encode_text(whole), model.encode_text(whole)),
            ("prompts", head.text_features(), expected),
            ("logits", head.logits(pooled, local), plain.plot_logits(model, *theirs, expected, solver=each)),
        ]
        for name, own, reference in found:
            assert own.dtype == dtype and own.shape == reference.shape, name
            error = float((own - reference).abs().max() / reference.abs().max())
            assert error < tolerance, f"{name} {dtype} {error}"


@pytest.mark.medium
@pytest.mark.parametrize("kind", MODELS)
def test_features_and_logits_are_the_librarys(kind: str, tmp_path: Path) -> None:
    model, path = make(kind, tmp_path)
    check(kind, model, path)
    assert "which is not computed here" in refused(path) or "is not causal" in refused(path)


def refused(path: Path, **backbone: object) -> str:
    with pytest.raises(UserError) as caught:
        load_clip(config(path, **backbone))
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.medium
def test_gradients_reach_the_contexts_through_the_librarys_text_tower(tmp_path: Path) -> None:
    """By the rule of differences, in float64."""
    _, path = make("SigLIP", tmp_path)
    ours = load_clip(config(path, PLAIN_TEXT=True)).double()
    head = plot.CustomCLIP(make_cfg("PLOT", 160, N=N, N_CTX=N_CTX), NAMES, ours)
    ctx, step = head.prompt_learner.ctx, 1e-5 * torch.randn(N, N_CTX, 48, dtype=torch.double)
    head.text_features().square().sum().backward()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            values.append(head.prompt_learner.ctx.add_(sign * step) is ctx and head.text_features().square().sum())
            ctx.sub_(sign * step)
    torch.testing.assert_close((values[0] - values[1]) / 2, (ctx.grad * step).sum(), rtol=1e-6, atol=0)


@pytest.mark.medium
def test_every_wrapper_of_its_names(tmp_path: Path) -> None:
    model, _ = make("EVA", tmp_path / "one")
    for form in ("bin", "module", "lightning"):
        _, other = make("EVA", tmp_path / form, form)
        image = torch.randn(1, 3, 160, 160)
        assert torch.equal(load_clip(config(other, PLAIN_TEXT=True)).encode_image(image), model.encode_image(image))


def _config(**change: Any) -> Callable[[dict[str, Any]], None]:
    def apply(cfg: dict[str, Any]) -> None:
        for part, values in change.items():
            cfg[part].update(values)

    return apply


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_config(vision_cfg={"timm_pool": "rot_attn"}), r"vision_cfg.timm_pool 'rot_attn', which is not computed"),
        (_config(vision_cfg={"timm_model_name": "test_vit9"}), r"holds no CLIP model .*[Uu]nknown model"),
        (_config(vision_cfg={"timm_model_name": "test_vit"}), r"is not the CLIP of .*: missing: 'visual\.trunk"),
        (_config(text_cfg={"layers": 3}), r"is not the CLIP of .*: missing: 'text\.transformer\.resblocks\.2"),
        (_config(text_cfg={"no_such_key": 3}), r"holds no CLIP model .*no_such_key"),
        (_config(text_cfg={"tokenizer_kwargs": {"trust_remote_code": True}}), r"has the options .*not computed"),
        (_config(text_cfg={"hf_model_name": "/nowhere"}), r"cannot get the config of the text tower '/nowhere': "),
    ],
)  # fmt: skip
def test_a_config_of_another_model(change: Callable[[dict[str, Any]], None], says: str, tmp_path: Path) -> None:
    _, path = make("SigLIP", tmp_path)
    file = tmp_path / "open_clip_config.json"
    whole = json.loads(file.read_text())
    change(whole["model_cfg"])
    file.write_text(json.dumps(whole))
    line = refused(path, PLAIN_TEXT=True)
    assert re.search(says, line), line


def test_a_tokenizer_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _, path = make("SigLIP", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert "cannot get the tokenizer 'some/name': " in refused(path, PLAIN_TEXT=True)


CONFIG_OF = {"CoCoOp": "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1", "PLOTCoCoOp": "PLOTCoCoOp/vit_b16_c4_ep10_batch1_ctxv1",
             "TipAdapterF": "TipAdapter/vit_b16", "PLOTAdapter": "PLOT/vit_b16", "ZeroshotPLOT": "ZeroshotCLIP/vit_b16",
             "ZeroshotCLIP2": "ZeroshotCLIP/vit_b16", "NearestClassMean": "LinearProbe/vit_b16"}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize(
    "trainer", ["PLOT", *(pytest.param(name, marks=pytest.mark.slow) for name in methods() if name != "PLOT")]
)
def test_every_method_runs(
    trainer: str, run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without PLAIN_TEXT the command ends with the reason. PLOT++ needs a ViT, here beside another text tower."""
    _, path = make("RoBERTa" if trainer == "PLOTPP" else "SigLIP", tmp_path / "model")
    options = [option for option in SHORT if option not in ("INPUT.SIZE", "(64, 64)")]
    options += ["TRAINER.TIP_ADAPTER.VIEWS", "1"] if "Tip" in trainer else []
    options += ["TRAINER.PLOTPP.N_CTX", "4"] if trainer == "PLOTPP" else []
    argv = command(run_args, trainer, "vit_b16", "--backbone", str(path.parent))
    argv[argv.index("--config-file") + 1] = str(
        CONFIGS / f"trainers/{CONFIG_OF.get(trainer, f'{trainer}/vit_b16')}.yaml"
    )
    if trainer == "PLOTAdapter":
        plot_run = [
            word.replace("PLOTAdapter", "PLOT") for word in [*argv, *options, "MODEL.BACKBONE.PLAIN_TEXT", "True"]
        ]
        assert train.main(["--output-dir", str(tmp_path / "plot"), *plot_run]) == 0
        options += ["TRAINER.PLOT_ADAPTER.PLOT_RUN", str(tmp_path / "plot")]
    argv = ["--output-dir", str(tmp_path / "run"), *argv, *options]
    assert train.main(argv) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and "PLAIN_TEXT True" in line
    assert trainer == "PLOTPP" or ("is not causal" in line and "in front cannot be computed once" in line)
    assert train.main([*argv, "MODEL.BACKBONE.PLAIN_TEXT", "True"]) == 0
    size = [64, 64] if trainer == "PLOTPP" else [160, 160]
    assert json.loads((tmp_path / "run/result.json").read_text())["preprocessing"]["size"] == size
