"""PLOT: N learned contexts a class, matched to an image's local features by optimal transport.

Chen, Yao, Song, Li, Rao and Zhang, "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models",
ICLR 2023 (arXiv 2210.01253).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from clip.model import CLIP
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .clip.prompts import PromptBuilder, initial_contexts
from .clip_trainer import Batch
from .diagnostics import HeadMeter, IterationMeter, effective_rank, say_unconverged
from .method import Option, Recipe, epochs_by_shots, method_cfg
from .prompt_trainer import PROMPT_OPTIONS, PromptedCLIP, PromptTrainer, cosine, unit
from .sinkhorn import counted_sinkhorn

COSTS = ("raw", "standardized")
MATCHES = ("ot", "uniform", "mean", "global", "max")
POOLED = ("mean", "global")  # those that read no local features
FINITE = sys.float_info.max
# The initial texts of the published PLOT++, in place of the paper's, which it does not print.
TEXTS = "a photo of a|this is a photo|this is picture of|one picture of a"

# Similarities that the head holds at once, in elements; larger batches go through it in chunks of images.
MAX_SIMILARITIES = 2**25


class PromptLearner(nn.Module):
    """ctx [N, n_ctx, d], with CSC [N, n_cls, n_ctx, d]; forward() -> prefix [N, P, d], suffix [N or 1, R, W, d]."""

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__()
        options = method_cfg(cfg, "PLOT")
        self.ctx = nn.Parameter(initial_contexts(options, len(classnames), clip_model, options.N))
        n_ctx, position = self.ctx.shape[-2], options.CLASS_TOKEN_POSITION
        self.prompts = PromptBuilder(classnames, clip_model, n_ctx, position, options.CSC)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.prompts(self.ctx)


class CustomCLIP(PromptedCLIP):
    """Logits [batch, n_cls], float32 or wider. Under gradients ``variance`` is that of the last text features."""

    prompt_learner_class: ClassVar[type[nn.Module]] = PromptLearner

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        options = method_cfg(cfg, "PLOT")
        learner = self.prompt_learner_class(cfg, classnames, clip_model)
        super().__init__(cfg, learner, clip_model, options.MATCH not in POOLED)
        self.options, self.global_logits = options, options.GLOBAL_LOGITS
        self.fused = fused_head(cfg, options)
        self.meter: HeadMeter | None = None  # while one is here, it is shown what the head computes
        self.variance: Tensor | None = None

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        text = self.text_features()
        with torch.autocast(pooled.device.type, enabled=False):
            if self.options.VARIANCE and torch.is_grad_enabled():
                self.variance = variance(unit(text))
            pooled_score = cosine(pooled, text.mean(dim=0))
            if self.options.MATCH == "mean":
                score = pooled_score
            elif self.options.MATCH == "global":
                score = unit(pooled) @ unit(text).mean(dim=0).t()
            elif local is None:
                raise ValueError(f"MATCH {self.options.MATCH} needs local features")
            else:
                score = self._match(unit(local), unit(text))
            if self.global_logits:
                score = score + pooled_score
            if self.meter is not None:
                self.meter.see_scores(score, text, self.logit_scale.exp())
            return self.logit_scale.exp() * score

    def asks_the_device(self) -> str:
        stops = self.options.MATCH == "ot" and self.fused is None
        return "TRAINER.FUSED_HEAD, without which Sinkhorn asks when to stop" if stops else ""

    def _match(self, local: Tensor, text: Tensor) -> Tensor:
        """By the fused head, unless a meter is to see the plans; after a failure, and a warning, never again."""
        if self.fused is not None and self.meter is None:
            options = self.options
            try:
                return self.fused(local, text, options.EPS, options.MAX_ITER, options.THRESH)[0]
            except Exception as error:  # sizes, no room for a block, no C compiler, which Triton needs
                self.fused = None
                warnings.warn(f"computed without the fused head: {str(error).partition(chr(10))[0]}", stacklevel=2)
        return match(local, text, self._score)

    def _score(self, similarity: Tensor) -> Tensor:
        """similarity [batch, n_cls, M, N] -> [batch, n_cls]."""
        if self.options.MATCH == "uniform":
            return similarity.mean(dim=(2, 3))
        if self.options.MATCH == "max":
            return similarity.amax(dim=2).mean(dim=2)
        return transported(similarity, self.options, self.meter)


def fused_head(cfg: CfgNode, options: Any) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """PLOT's head as one kernel, if TRAINER.FUSED_HEAD asks for it; None, and a line, where it cannot run."""
    if not cfg.TRAINER.get("FUSED_HEAD", False):
        return None
    lacks = "" if find_spec("triton") else "Triton"
    if not (torch.cuda.is_available() and cfg.USE_CUDA):
        lacks = "a GPU"
    if options.MATCH != "ot" or options.get("COST", "raw") != "raw":
        lacks = "MATCH ot and COST raw"
    if lacks:
        print(f"TRAINER.FUSED_HEAD needs {lacks}: the head is computed without it")
        return None
    from .clip.fused_head import fused_head

    return fused_head


def match(local: Tensor, text: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores [batch, n_cls] of the similarities [batch, n_cls, M, N], some images at a time.

    Args:
        local: [batch, M, d], of unit length.
        text: [N, n_cls, d], of unit length.
    """
    per_image = local.shape[1] * text.shape[0] * text.shape[1]
    chunks = local.split(max(1, MAX_SIMILARITIES // per_image))
    return torch.cat([score(torch.einsum("bmd,nkd->bkmn", f, text)) for f in chunks])


def transported(similarity: Tensor, options: Any, meter: IterationMeter | None = None) -> Tensor:
    """similarity [batch, n_cls, M, N] -> sum over m and n of T_mn similarity_mn [batch, n_cls]; T is PLOT's plan.

    Args:
        options: EPS, MAX_ITER, THRESH and, where the method has it, COST.
    """
    cost, eps = 1 - similarity.detach(), options.EPS
    if options.get("COST", "raw") == "standardized":
        cost, eps = standardized(cost, eps)
    plan, iterations = counted_sinkhorn(cost, eps, options.MAX_ITER, options.THRESH)
    if meter is not None:
        meter.see_plan(plan, similarity, iterations)
    return (plan * similarity).sum(dim=(2, 3))


def standardized(cost: Tensor, eps: float) -> tuple[Tensor, float]:
    """Sinkhorn's cost and eps for COST standardized: cost [..., M, N] over its standard deviation over m and n.

    A constant added to a cost changes no plan. The mean is taken off and EPS log(MN) added, so that the scalings are
    near 1 and THRESH is relative to them. Both are divided by sqrt(MN), which keeps the cost within a range of 2.
    """
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    MN = cost.shape[-2] * cost.shape[-1]
    cost = cost - cost.mean(dim=(-2, -1), keepdim=True)
    deviation = cost.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp(min=torch.finfo(cost.dtype).tiny)
    return (cost / deviation + eps * math.log(MN)) / MN**0.5, eps / MN**0.5


def variance(text: Tensor) -> Tensor:
    """Of a class's N text features, text [N, n_cls, d] of unit length: mean over k of mean_n |g_nk - mean_n g_nk|^2."""
    return (1 - text.mean(dim=0).square().sum(dim=-1)).mean()


@TRAINER_REGISTRY.register()
class PLOT(PromptTrainer):
    node = "PLOT"
    options: ClassVar[tuple[Option, ...]] = (
        *PROMPT_OPTIONS,
        Option("N", 4, "prompts a class", 1, 1000),
        # Below 1e-4, costs that differ by rounding alone give different plans.
        Option("EPS", 0.1, "weight of the plan's entropy", 1e-4, FINITE),
        Option("MAX_ITER", 100, "Sinkhorn iterations at most", 1),
        Option("THRESH", 0.01, "mean change of the scaling at which they stop", 0, FINITE),
        Option("GLOBAL_LOGITS", False, "add the pooled feature's logits; the paper does so on ImageNet"),
        Option("COST", "raw", "standardized: over its standard deviation, in which EPS then counts", choices=COSTS),
        Option("MATCH", "ot", "how prompts meet local features", choices=MATCHES),
        Option("VARIANCE", 0.0, "weight of the prompts' variance, which the loss rewards", 0, FINITE),
    )
    paper = "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models, ICLR 2023 (arXiv 2210.01253)"
    colour, role = "tab:red", "subject"
    variants: ClassVar = {"prompts": ("N", (1, 2, 4, 8), 1), "match": ("MATCH", MATCHES, "ot")}
    # Table 2. The paper prints neither the form nor the weight of V, nor the texts of E: these are our reading.
    ablation: ClassVar = {
        "PLOT": {},
        "G: the pooled feature": {"MATCH": "global"},
        "G + V: with variance between the prompts": {"MATCH": "global", "VARIANCE": 1.0},
        "G + E: an ensemble of initial texts": {"MATCH": "global", "CTX_INIT": TEXTS},
        "M: the feature map": {"MATCH": "uniform"},
        "M + V: with variance between the prompts": {"MATCH": "uniform", "VARIANCE": 1.0},
    }
    # Table 1: trained with the global logits; the published code tests the shifted sets without them.
    transfer: ClassVar = {"GLOBAL_LOGITS": True}
    transfer_as_published: ClassVar = {"GLOBAL_LOGITS": False}
    custom_clip = CustomCLIP
    model: CustomCLIP

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """Section 4 and the published scripts."""
        options: dict[str, object] = {"OPTIM.MAX_EPOCH": epochs_by_shots(dataset, shots)}
        if dataset in ("oxford_flowers", "fgvc_aircraft", "stanford_cars"):
            options["DATALOADER.TRAIN_X.BATCH_SIZE"] = 32
        if dataset == "imagenet":
            options[f"TRAINER.{cls.node}.GLOBAL_LOGITS"] = True
        return Recipe("{backbone}", options)

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        faults = super().find_faults(cfg)
        if cfg.TRAINER[cls.node].get("VARIANCE", 0) and cfg.TRAINER.SPLIT_CLASSES:
            faults.append(f"TRAINER.{cls.node}.VARIANCE is of all classes: it needs TRAINER.SPLIT_CLASSES False")
        return faults

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy - VARIANCE * variance of the prompts' text features."""
        loss = super().loss(output, label)
        if self.model.variance is not None:
            loss = loss - self.method_cfg.VARIANCE * self.model.variance
            self.model.variance = self.model.variance.detach()  # the step's graph ends with the step
        return loss

    def forward_backward(self, batch: Batch) -> dict[str, Any]:
        """At the last batch of an epoch, the plans and the prompts also go to TensorBoard."""
        split = self.model.prompt_learner.prompts.share is not None  # then the head sees a share of the classes
        last = self.batch_idx + 1 == self.num_batches and not split
        self.model.meter = self._meter() if last else None
        if apart := last and self.graphed_step is not None:  # a graph tells the meter nothing
            with torch.no_grad():
                self.outputs(*self.parse_batch_train(batch))
            self._write_diagnostics()
        summary = super().forward_backward(batch)
        if last and not apart:
            self._write_diagnostics()
        return summary

    def _write_diagnostics(self) -> None:
        for name, value in self._take_diagnostics().items():
            if value is not None:
                self.write_scalar(f"diagnostics/{name}", value, self.epoch)

    def before_test(self, split: str) -> None:
        self.model.meter = self._meter()

    def after_test(self, split: str) -> None:
        """Says so if plans are not converged."""
        self.diagnostics = self._take_diagnostics()
        say_unconverged(self.diagnostics["unconverged"], self.node, self.method_cfg)

    def _meter(self) -> HeadMeter:
        return HeadMeter(self.method_cfg.MAX_ITER)

    def _take_diagnostics(self) -> dict[str, float | None]:
        meter, self.model.meter = self.model.meter, None
        assert meter is not None
        if not torch.is_grad_enabled():  # each process tests a part of the images
            meter.gather()
        return {**meter.summary(), "context_effective_rank": effective_rank(self.model.prompt_learner.ctx)}
