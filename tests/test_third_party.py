"""A dataset and a trainer that CoOp's users have written, unchanged but for absolute imports, run here by --import."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import clip
import pytest
import torch
from clip.model import build_model

import train
import trainers.zsclip
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from datasets.dtd import DescribableTextures
from datasets.oxford_pets import OxfordPets
from tests.conftest import CLASSES
from tests.runs.test_train import SHORT, one_result
from tests.trainers.clip.test_weights import config
from trainers.coop import TextEncoder, load_clip_to_cpu
from trainers.zsclip import CUSTOM_TEMPLATES

DATASET = """
import os
import pickle

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import mkdir_if_missing
from datasets.dtd import DescribableTextures as DTD
from datasets.oxford_pets import OxfordPets

NEW_CNAMES = {"face": "human face"}


@DATASET_REGISTRY.register()
class Things(DatasetBase):
    dataset_dir = "caltech-101"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "101_ObjectCategories")
        self.split_path = os.path.join(self.dataset_dir, "split_of_mine.json")
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "few_shot_of_mine")
        mkdir_if_missing(self.split_fewshot_dir)
        if os.path.exists(self.split_path):
            train, val, test = OxfordPets.read_split(self.split_path, self.image_dir)
        else:
            train, val, test = DTD.read_and_split_data(self.image_dir, new_cnames=NEW_CNAMES, ignored=["accordion"])
            OxfordPets.save_split(train, val, test, self.split_path, self.image_dir)
        shots = cfg.DATASET.NUM_SHOTS
        if shots >= 1:
            kept = os.path.join(self.split_fewshot_dir, f"shot_{shots}-seed_{cfg.SEED}.pkl")
            if os.path.exists(kept):
                with open(kept, "rb") as file:
                    data = pickle.load(file)
                    train, val = data["train"], data["val"]
            else:
                train = self.generate_fewshot_dataset(train, num_shots=shots)
                val = self.generate_fewshot_dataset(val, num_shots=min(shots, 4))
                with open(kept, "wb") as file:
                    pickle.dump({"train": train, "val": val}, file, protocol=pickle.HIGHEST_PROTOCOL)
        train, val, test = OxfordPets.subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)
"""

TRAINER = """
import os.path as osp

import torch
import torch.nn as nn
from clip import clip
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights
from trainers.coop import TextEncoder, load_clip_to_cpu
from trainers.zsclip import CUSTOM_TEMPLATES

_tokenizer = _Tokenizer()


class PromptLearner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        n_ctx, width = cfg.TRAINER.COOP.N_CTX, clip_model.ln_final.weight.shape[0]
        self.ctx = nn.Parameter(torch.empty(n_ctx, width, dtype=clip_model.dtype).normal_(std=0.02))
        names = [name.replace("_", " ") for name in classnames]
        self.name_lens = [len(_tokenizer.encode(name)) for name in names]
        self.tokenized_prompts = torch.cat([clip.tokenize(" ".join(["X"] * n_ctx) + f" {name}.") for name in names])
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.tokenized_prompts).type(clip_model.dtype)
        self.register_buffer("token_prefix", embedding[:, :1, :])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :, :])

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.name_lens), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, classnames, clip_model)
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def forward(self, image):
        image_features = F.normalize(self.image_encoder(image.type(self.dtype)), dim=-1)
        text = self.text_encoder(self.prompt_learner(), self.prompt_learner.tokenized_prompts)
        return self.logit_scale.exp() * image_features @ F.normalize(text, dim=-1).t()


@TRAINER_REGISTRY.register()
class Theirs(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.COOP.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        assert CUSTOM_TEMPLATES["OxfordPets"] == "a photo of a {}, a type of pet."
        clip_model = load_clip_to_cpu(cfg).float()
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, clip_model)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            return
        model_file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            checkpoint = load_checkpoint(osp.join(directory, name, model_file))
            state_dict = checkpoint["state_dict"]
            for key in ("token_prefix", "token_suffix"):
                if key in state_dict:
                    del state_dict[key]
            self._models[name].load_state_dict(state_dict, strict=False)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """--import for both; the registries forget them after the test."""
    for registry in (TRAINER_REGISTRY, DATASET_REGISTRY):
        monkeypatch.setattr(registry, "_objects", dict(registry._objects))
    for name, text in (("their_dataset", DATASET), ("their_trainer", TRAINER)):
        (tmp_path / f"{name}.py").write_text(text)
    return ["--import", str(tmp_path / "their_dataset.py"), "--import", str(tmp_path / "their_trainer.py")]


@pytest.mark.medium
def test_they_train_are_resumed_and_are_tested(
    files: list[str], run_args: list[str], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "things.yaml").write_text("DATASET: {NAME: Things}\n")
    (tmp_path / "data/caltech-101").mkdir(parents=True)
    images = "caltech-101/101_ObjectCategories"
    os.symlink(data_root / images, tmp_path / "data" / images)
    argv = [*files, *run_args, "--root", str(tmp_path / "data"), "--trainer", "Theirs"]
    argv += ["--dataset-config-file", str(tmp_path / "things.yaml")]
    short = [*SHORT, "OPTIM.MAX_EPOCH", "1", "OPTIM.NAME", "sgd", "TRAINER.COOP.N_CTX", "4", "INPUT.TRANSFORMS"]
    short += ["('normalize',)"]
    run = tmp_path / "run"
    assert train.main([*argv, "--output-dir", str(run), *short]) == 0
    _, result = one_result(tmp_path, "run")
    assert result["classnames"] == ["human face", "leopard", "motorbike", "sea_horse"]
    assert result["counts"] == {"classes": 4, "train": 8, "val": 8, "test": 20}
    saved = torch.load(run / "prompt_learner/model.pth.tar-1", weights_only=True)["state_dict"]
    assert {*saved} == {"ctx", "token_prefix", "token_suffix"}
    assert {path.name for path in (tmp_path / "data/caltech-101").iterdir()} >= {
        *("split_of_mine.json", "few_shot_of_mine"),
    }
    capsys.readouterr()
    more = [*short, "OPTIM.MAX_EPOCH", "2"]
    assert train.main([*argv, "--output-dir", f"{run}2", "--resume", str(run), *more]) == 0
    assert "Previous epoch: 1" in capsys.readouterr().out
    flags = ["--eval-only", "--model-dir", str(run), "--load-epoch", "1", "--output-dir", str(tmp_path / "tested")]
    assert train.main([*argv, *flags, *short]) == 0
    assert one_result(tmp_path, "tested")[1]["accuracy"] == result["accuracy"]


def test_coops_text_encoder_is_clips(weights: Path) -> None:
    """Features and gradients of whole prompts; also of prompts that differ in their first token."""
    ours = load_clip_to_cpu(config(str(weights))).float()
    theirs = build_model(torch.load(weights, weights_only=True)).float()
    tokens = clip.tokenize(["a photo of a cat.", "dog", "one very long name of a class, with a comma, indeed."])
    prompts = theirs.token_embedding(tokens).detach().requires_grad_()
    x = prompts + theirs.positional_embedding
    x = theirs.ln_final(theirs.transformer(x.transpose(0, 1)).transpose(0, 1))
    expected = x[range(3), tokens.argmax(dim=-1)] @ theirs.text_projection
    encoder = TextEncoder(ours)
    found = encoder(prompts, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(found)
    gradients = [torch.autograd.grad(y, prompts, upstream)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    assert encoder.dtype == ours.dtype


def test_splits_of_coops_names(data_root: Path, tmp_path: Path) -> None:
    images = data_root / "caltech-101/101_ObjectCategories"
    random.seed(3)
    parts = DescribableTextures.read_and_split_data(str(images), p_trn=0.4, p_val=0.3)
    assert [len(part) for part in parts] == [5 * 7, 5 * 5, 5 * 6]
    random.seed(3)
    again = DescribableTextures.read_and_split_data(str(images), p_trn=0.4, p_val=0.3)
    assert parts == again and parts != DescribableTextures.read_and_split_data(str(images), p_trn=0.4, p_val=0.3)
    OxfordPets.save_split(*parts, str(tmp_path / "split.json"), str(images))
    saved = json.loads((tmp_path / "split.json").read_text())
    assert saved["train"][0][0] == os.path.relpath(parts[0][0].impath, images)
    assert OxfordPets.read_split(str(tmp_path / "split.json"), str(images)) == parts
    train_, val = OxfordPets.split_trainval(parts[0], p_val=0.4)
    assert (len(train_), len(val)) == (5 * 4, 5 * 3) and {*train_} | {*val} == {*parts[0]}
    base = OxfordPets.subsample_classes(*parts, subsample="base")
    new = OxfordPets.subsample_classes(*parts, subsample="new")
    assert sorted({d.classname for d in base[0]} | {d.classname for d in new[2]}) == sorted(CLASSES)
    assert {d.label for d in base[0]} == {0, 1, 2} and {d.label for d in new[0]} == {0, 1}
    assert OxfordPets.subsample_classes(*parts) == [*parts]


def test_coops_templates() -> None:
    assert CUSTOM_TEMPLATES["OxfordPets"] == "a photo of a {}, a type of pet."
    assert CUSTOM_TEMPLATES["ImageNet"] and len(CUSTOM_TEMPLATES) >= 15
    with pytest.raises(AttributeError, match="no attribute 'NOTHING'"):
        _ = trainers.zsclip.NOTHING
