"""PLOT++: M visual prompts and N text prompts a class, matched by optimal transport, learned in two stages.

The method of the folder plot-pp in PLOT's repository (github.com/CHENGY12/PLOT). A ViT encodes an image once with each
visual prompt behind its patches. The M class tokens stand for PLOT's local features, and their mean for the pooled one.
Stage 1 learns the visual prompts with the texts fixed and the global logits added, stage 2 both kinds of prompts. Each
stage has OPTIM.MAX_EPOCH epochs and a schedule of its own. The M N similarities of an image are few, so that the head
costs nothing beside the M passes of the image tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from clip.model import CLIP
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler

from . import plot
from .clip.encoders import Extra
from .clip.prompts import CONTEXT_LENGTH, PromptBuilder, UserError, encode, words_of
from .clip.towers import tower_of
from .clip.weights import tower_named
from .clip_trainer import Features
from .method import Option, Recipe, epochs_by_shots, method_cfg

# The published initial texts. Where a dataset has none of its own, those of Caltech101 serve: ``plot.TEXTS``.
TEXTS_OF = {
    "dtd": "a photo of a texture|this is a photo texture|this is a picture texture|one picture of a texture",
    "eurosat": "a centered satellite photo of|a centered satellite picture of|this is centered satellite photo of|"
    "one centered satellite photo of a",
    "fgvc_aircraft": "a photo of an aircraft|a picture of an aircraft|this is aircraft picture of|"
    "one picture of an aircraft",
    "food101": "a photo of a food|this is a food photo|this is food picture of|one picture of a food",
    "imagenet": "a photo of a|this is a photo|this is a|one picture of a",
    "oxford_flowers": "a photo of a flower|one picture of a flower|this is flower picture of|one picture of a flower",
    "oxford_pets": "a photo of a pet|one picture of a pet|this is pet picture of|one picture of a pet",
    "ucf101": "a photo of a person doing|this is a photo people doing|this is picture of people doing|"
    "one picture of a person doing",
}
NEED_A_VIT = "PLOTPP learns tokens of a ViT, and the backbone '{}' is {}; set BACKBONE=vit_b16, or --backbone"


def initial_texts(options: CfgNode) -> list[str]:
    """The text of each of the N prompts: those of CTX_INIT in turn, or [] without any.

    Raises:
        UserError: a text is empty or too long.
    """
    if not options.CTX_INIT:
        return []
    texts = [" ".join(text.replace("_", " ").split()) for text in options.CTX_INIT.split("|")]
    for text in texts:
        if not 1 <= len(encode(text)) <= CONTEXT_LENGTH - 3:
            raise UserError(f"CTX_INIT has a text of {len(encode(text))} tokens; each must have 1 to 74: '{text:.60}'")
    return [texts[n % len(texts)] for n in range(options.N)]


class PromptLearner(nn.Module):
    """ctx [N, n_ctx, d] and ctx_vision [M, N_CTX_V, width]; ``groups`` are the prompts with the same tokens behind ctx.

    n_ctx is the number of tokens of the longest text. A shorter one has random vectors in front, and a text that came
    before is shifted by noise, both N(0, 0.02^2). TEXTS_AS_PUBLISHED takes as many tokens of each text as the first
    has words: the rest of a longer text stays fixed, and a shorter one takes EOT and cuts as many tokens off each name.
    """

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__()
        if not (tower := tower_of(clip_model.visual)).takes_tokens:
            raise UserError(NEED_A_VIT.format(cfg.MODEL.BACKBONE.NAME, tower.what))
        options = method_cfg(cfg, "PLOTPP")
        generator = torch.Generator().manual_seed(1) if options.AS_PUBLISHED else None

        def noise(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=clip_model.dtype).normal_(std=0.02, generator=generator)

        texts, width = initial_texts(options), clip_model.token_embedding.embedding_dim
        own_words = words_of(clip_model)
        tokens = [own_words.encode(text) for text in texts]
        behind: list[tuple[str, int]] = [("", 0)] * options.N  # frozen text before the name, and where it starts
        if options.TEXTS_AS_PUBLISHED and texts:
            n_ctx = len(texts[0].split())
            behind = [
                ("", 0) if len(own) == n_ctx else (f"{text} ", n_ctx) for text, own in zip(texts, tokens, strict=True)
            ]
            for text, own in zip(texts, tokens, strict=True):
                if len(own) != n_ctx:
                    print(f"TEXTS_AS_PUBLISHED: initial text '{text}' has {len(own)} tokens, {n_ctx} are learned")
            tokens = [[*own, own_words.end, *[own_words.pad] * n_ctx][:n_ctx] for own in tokens]
        ctx = noise(options.N, max(map(len, tokens), default=options.N_CTX), width)
        for n, own in enumerate(tokens):
            words = clip_model.token_embedding(torch.tensor(own)).detach().to(ctx)
            shifted = own in tokens[:n] and not options.TEXTS_AS_PUBLISHED
            ctx[n, -len(own) :] = words + ctx[n, -len(own) :] if shifted else words
            if shifted:
                print(f"Initial text '{texts[n]}' came before: this time shifted by noise")
            if len(own) < ctx.shape[1]:
                print(f"Initial text '{texts[n]}' has {len(own)} tokens of {ctx.shape[1]}: random vectors in front")
        self.ctx = nn.Parameter(ctx)
        self.ctx_vision = nn.Parameter(noise(options.M, options.N_CTX_V, clip_model.visual.conv1.weight.shape[0]))
        kinds = list(dict.fromkeys(behind))
        self.groups = [[n for n in range(options.N) if behind[n] == kind] for kind in kinds]
        self.builders = nn.ModuleList(
            PromptBuilder([text + name for name in classnames], clip_model, ctx.shape[1], skip=skip)
            for text, skip in kinds
        )

    @property
    def prompts(self) -> Any:
        return self.builders[0]


class CustomCLIP(plot.CustomCLIP):
    """Logits [batch, n_cls], float32 or wider: PLOT's, of class tokens F [batch, M, d] and their mean over M."""

    prompt_learner_class = PromptLearner

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__(cfg, classnames, clip_model)
        self.image_encoder.local = False

    def encode(self, image: Tensor, encoder: Callable[..., tuple[Tensor, Tensor]] | None = None) -> Features:
        """The M passes as one batch of M B sequences."""
        visual = self.prompt_learner.ctx_vision
        M, B = len(visual), len(image)
        extra = Extra(tokens=visual.repeat_interleave(B, dim=0))
        F, _ = self.image_encoder(image.repeat(M, 1, 1, 1), extra)
        F = F.unflatten(0, (M, B)).transpose(0, 1)
        return {"pooled": F.mean(dim=1), "local": F}

    def text_parameters(self) -> list[Tensor]:
        return [self.prompt_learner.ctx]

    def encode_text(self) -> Tensor:
        learner = self.prompt_learner
        groups = zip(learner.groups, learner.builders, strict=True)
        # Stacked, as a list of indices would be copied to the device, which no CUDA graph can do.
        contexts = ((torch.stack([learner.ctx[n] for n in own]), prompts) for own, prompts in groups)
        text = torch.cat([self.text_encoder(*prompts(ctx), prompts.layout) for ctx, prompts in contexts])
        order = [n for own in learner.groups for n in own]
        return text if order == sorted(order) else torch.stack([text[order.index(n)] for n in range(len(order))])


@TRAINER_REGISTRY.register()
class PLOTPP(plot.PLOT):
    node = "PLOTPP"
    options = (
        *(o for o in plot.PLOT.options if o.key not in ("N_CTX", "CSC", "CTX_INIT", "CLASS_TOKEN_POSITION")),
        Option("M", 4, "visual prompts", 1, 100),
        Option("N_CTX_V", 2, "tokens a visual prompt", 1, 100),
        Option("CTX_INIT", plot.TEXTS, "texts to start from, separated by '|', in turn; '' for N_CTX random vectors"),
        Option("N_CTX", 4, "context vectors a text prompt, where CTX_INIT is ''", 1, CONTEXT_LENGTH - 3),
        Option("AS_PUBLISHED", False, "stage 1 on the shots of seed 1 for every seed, from seed 1's start"),
        Option("TEXTS_AS_PUBLISHED", False, "as many tokens of each text as the first has words; equal ones stay so"),
    )
    label = "PLOT++"
    paper = "PLOT++, in the repository of PLOT: github.com/CHENGY12/PLOT, plot-pp"
    learns_images = True
    backbone = "vit_b16"
    colour = role = ""  # it needs a ViT, and is compared where it is named
    variants: ClassVar = {}
    ablation: ClassVar = {}
    transfer: ClassVar = {}
    transfer_as_published: ClassVar = {}
    custom_clip = CustomCLIP

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """The published scripts', stage by stage; on the embedded dataset the small ViT."""
        if dataset.partition("_")[0] == "symbols":
            return Recipe("symbols_vit")
        options: dict[str, object] = {"OPTIM.MAX_EPOCH": epochs_by_shots(dataset, shots)}
        if dataset in TEXTS_OF:
            options[f"TRAINER.{cls.node}.CTX_INIT"] = TEXTS_OF[dataset]
        return Recipe("{backbone}", options)

    @classmethod
    def check_texts(cls, options: CfgNode) -> None:
        initial_texts(options)

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        name, faults = cfg.MODEL.BACKBONE.NAME, super().find_faults(cfg)
        if (tower := tower_named(name)) and not tower.takes_tokens:
            faults.append(NEED_A_VIT.format(name, tower.what))
        if cfg.TRAINER.SPLIT_CLASSES:
            faults.append(f"{cls.__name__} learns in the image tower: it needs TRAINER.SPLIT_CLASSES False")
        return faults

    @classmethod
    def options_of(cls, directory: str, options: CfgNode) -> dict[str, object]:
        """With TEXTS_AS_PUBLISHED, CTX_INIT stays: a part of its texts is no context and not in the checkpoint."""
        found = super().options_of(directory, options)
        return {**found, "CTX_INIT": options.CTX_INIT} if options.TEXTS_AS_PUBLISHED else found

    def build_data_loader(self) -> None:
        """With AS_PUBLISHED stage 1 has a loader of its own, of seed 1."""
        super().build_data_loader()
        self.loaders = [self.train_loader_x, self.train_loader_x]
        if self.method_cfg.AS_PUBLISHED and self.cfg.SEED != 1:
            print("AS_PUBLISHED: stage 1 learns from the shots of seed 1, whatever the seed")
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.SEED = 1
            self.loaders[0] = type(self.dm)(cfg).train_loader_x

    def build_model(self) -> None:
        super().build_model()
        self.stage = 0
        self.max_epoch = 2 * self.cfg.OPTIM.MAX_EPOCH

    def set_epoch(self, epoch: int) -> None:
        """Our engine's hook, before the loader is set to the epoch."""
        self._enter_stage(epoch)
        super().set_epoch(epoch)

    def before_epoch(self) -> None:
        self._enter_stage(self.epoch)
        super().before_epoch()

    def _enter_stage(self, epoch: int) -> None:
        """What the epoch's stage learns, with which head, and at the beginning of stage 2 a new optimizer."""
        stage = 1 if epoch < self.cfg.OPTIM.MAX_EPOCH else 2
        if stage == self.stage:
            return
        self.stage = stage
        print(f"Stage {stage}: learns {'the visual prompts' if stage == 1 else 'the visual and the text prompts'}")
        self.model.prompt_learner.ctx.requires_grad_(stage == 2)
        self.model.global_logits = stage == 1 or self.method_cfg.GLOBAL_LOGITS
        self.train_loader_x = self.loaders[stage - 1]
        first = self.loaders[0]
        if first is not self.train_loader_x and hasattr(first, "close"):
            first.close()  # ends the workers of stage 1
        self.wrap()
        if epoch == self.cfg.OPTIM.MAX_EPOCH and not getattr(self, "start_batch", 0):
            self.best_result = -float("inf")  # stage 1 is not what is tested in the end
            self.optim.state.clear()
            for group in self.optim.param_groups:
                group["lr"] = group["initial_lr"]
            self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
            self._scheds["prompt_learner"] = self.sched
