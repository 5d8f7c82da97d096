"""A method outside the tree, for tests: the mean of N prompts' text features, matched to the pooled image feature."""

from typing import ClassVar

from torch import nn

from dassl.engine import TRAINER_REGISTRY
from trainers.clip.prompts import PromptBuilder, initial_contexts
from trainers.method import Option, Recipe
from trainers.prompt_trainer import PROMPT_OPTIONS, PromptedCLIP, PromptTrainer, unit


class PromptLearner(nn.Module):
    def __init__(self, options, classnames, clip_model):
        super().__init__()
        self.ctx = nn.Parameter(initial_contexts(options, len(classnames), clip_model, options.N))
        self.prompts = PromptBuilder(classnames, clip_model, self.ctx.shape[-2])

    def forward(self):
        return self.prompts(self.ctx)


class CustomCLIP(PromptedCLIP):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, PromptLearner(cfg.TRAINER.MINE, classnames, clip_model), clip_model)

    def logits(self, pooled, local=None):
        return self.logit_scale.exp() * unit(pooled) @ unit(self.text_features().mean(dim=0)).t()


@TRAINER_REGISTRY.register()
class Averaged(PromptTrainer):
    node, colour, custom_clip = "MINE", "black", CustomCLIP
    options = (*PROMPT_OPTIONS, Option("N", 2, "prompts a class", 1))
    variants: ClassVar = {"prompts": ("N", (1, 2), 1)}

    @classmethod
    def recipe(cls, dataset, shots):
        return Recipe("../CoOp/{backbone}", {"OPTIM.MAX_EPOCH": 1})
