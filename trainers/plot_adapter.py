"""PLOT-Adapter: Tip-Adapter-F with optimal transport over local features, on top of a finished PLOT run.

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023 (arXiv 2210.01253),
its appendix on adapters, and the code published with it.

That code chooses as Tip-Adapter-F's does, by the test set too. Here the last epoch counts; see there.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import ClassVar

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .clip.encoders import TextEncoder
from .clip.prompts import UserError
from .clip_trainer import Features
from .diagnostics import CountsIterations
from .feature_trainer import templates_option
from .method import Option, Recipe
from .plot import FINITE, PLOT, PromptLearner, match, transported
from .prompt_trainer import find_checkpoint, load_learner, unit
from .tip_adapter import CACHE_OPTIONS
from .tip_adapter_f import TipAdapterF

# What a PLOT run must have as this one, the first as PLOT.
SAME = ("TRAINER.NAME", "DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "SEED")
# In training beta and alpha; of the grid the largest beta and alpha, and the numbers of values.
PUBLISHED: dict[str, tuple[float, float, float, float, int, int]] = {
    "caltech101": (0.16, 1.82, 12, 10, 20, 200),
    "dtd": (0.1, 7.2, 13, 13, 200, 20),
    "eurosat": (3.67, 0.1, 12, 10, 200, 20),
    "fgvc_aircraft": (1.4, 1.4, 7, 10, 20, 200),
    "food101": (0.1, 4.06, 10, 10, 20, 20),
    "imagenet": (1.0, 2.17, 3, 7, 20, 200),
    "oxford_flowers": (2.32, 0.2, 3, 20, 20, 200),
    "oxford_pets": (0.1, 1.0, 7, 7, 20, 200),
    "stanford_cars": (0.1, 8, 20, 10, 200, 20),
    "sun397": (6.8, 0.1, 12, 10, 20, 20),
    "ucf101": (5.59, 0.1, 7, 3, 200, 20),
}
# The PLOT run's options by which its test is the one below.
PLAN = {"COST": "raw", "MATCH": "ot"}
KEYS = ("BETA", "ALPHA", "BETA_MAX", "ALPHA_MAX", "BETA_STEPS", "ALPHA_STEPS")
EPOCHS = {"eurosat": 100, "oxford_flowers": 80, "food101": 5}


@TRAINER_REGISTRY.register()
class PLOTAdapter(CountsIterations, TipAdapterF):
    """Logits s f_0·t_k + alpha s sum_mj T_mj R_mjk + s/4 (sum_mn T_mn f_m·g_nk + f_0·g_k), s = exp(logit_scale).

    R_mjk = sum_i A_mji [label_i = k] for local feature m and set of keys j. A_mj is exp(-beta (1 - f_m·key_ji)),
    of unit length over i. The last term is the PLOT run's. It is absent in training.
    """

    node = "PLOT_ADAPTER"
    options = (
        Option("PLOT_RUN", "", "folder of the finished PLOT run; scripts/plot_adapter/main.sh trains and names it"),
        templates_option("own"),
        *CACHE_OPTIONS,
        Option("EPS", 0.3, "weight of the plan's entropy between local features and sets of keys", 1e-4, FINITE),
        Option("MAX_ITER", 100, "Sinkhorn iterations at most", 1),
        Option("THRESH", 0.01, "mean change of the scaling at which they stop", 0, FINITE),
        Option("PLOT_WEIGHT", 0.5, "weight of the PLOT run's logits in a test", 0, FINITE),
    )
    label = "PLOT-Adapter"
    paper = PLOT.paper
    colour, marker = "tab:orange", "h"
    needs: ClassVar = {"PLOT_RUN": "PLOT"}
    reads_local = True

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """The published configs; on ImageNet with the ensemble of prompts."""
        options: dict[str, object] = dict(zip(KEYS, PUBLISHED.get(dataset, ()), strict=False))
        if dataset == "imagenet":
            options["TEMPLATES"] = "ensemble"
        own = {f"TRAINER.{cls.node}.{key}": value for key, value in options.items()}
        return Recipe("{backbone}", {"OPTIM.MAX_EPOCH": EPOCHS.get(dataset, 20), **own})

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        """PLOT's options in a command choose the PLOT run: one that cannot serve is refused before it is trained."""
        faults, plot, name = super().find_faults(cfg), cfg.TRAINER.PLOT, cls.__name__
        odd = {key: needed for key, needed in PLAN.items() if plot[key] != needed}
        return faults + [f"TRAINER.PLOT.{key} is {plot[key]!r}; {name} needs a PLOT run of {odd[key]!r}" for key in odd]

    def build_head(self) -> None:
        super().build_head()
        K, d = self.text.shape
        self.head.put(keys=self.text.new_zeros(2, 0, d))
        self.head.register_buffer("plot_text", self.text.new_zeros(0, K, d))  # not normalized
        self.head.register_buffer("plot_sinkhorn", torch.zeros(3, dtype=torch.float64))  # EPS, MAX_ITER, THRESH

    def base(self, features: Features) -> Tensor:
        """The PLOT run's plan and its pooled feature count one half each, whatever its GLOBAL_LOGITS."""
        eps, max_iter, thresh = self.head.plot_sinkhorn.tolist()
        options = CfgNode({"EPS": eps, "MAX_ITER": int(max_iter), "THRESH": thresh})
        text, pooled, local = self.head.plot_text, features["pooled"], features["local"]
        score = match(unit(local), unit(text), functools.partial(transported, options=options))
        score = score + unit(pooled) @ unit(text.mean(dim=0)).t()
        return self.zero_shot(features) + self.method_cfg.PLOT_WEIGHT * self.model.logit_scale.exp() * score / 2

    def cosines(self, features: Features) -> Tensor:
        """Of the local features with both sets of keys [batch, M, 2, n]."""
        return torch.einsum("bmd,jnd->bmjn", unit(features["local"]), self.head.keys)

    def cached(self, cosines: Tensor, beta: float | Tensor) -> Tensor:
        affinity = F.normalize((-beta * (1 - cosines)).exp(), dim=-1)
        by_class = (affinity @ self.one_hot()).permute(0, 3, 1, 2)  # [batch, n_cls, M, 2]
        return self.model.logit_scale.exp() * transported(by_class, self.method_cfg, self.meter)

    def fill_cache(self) -> None:
        """Two sets of keys: the pooled features, and the means over the local ones, which are not of unit length."""
        views, labels = self.sum_of_views(unit)
        self.head.put(keys=torch.stack([unit(views["pooled"]), unit(views["local"]).mean(dim=1)]), labels=labels)
        self.read_plot(self.plot_run())

    def check_training(self) -> None:
        super().check_training()
        self.plot_run()

    def plot_run(self) -> Path:
        """The folder of PLOT_RUN, a path as it is or in this run's OUT.

        Raises:
            UserError: there is no finished run of PLOT, or it is of other data, shots, classes, seed or weights.
        """
        option = f"TRAINER.{self.node}.PLOT_RUN"
        told = self.method_cfg.PLOT_RUN
        remedy = "bash scripts/plot_adapter/main.sh trains the PLOT run and names it"
        if not told:
            raise UserError(f"{option} is missing; {remedy}")
        places = [Path(told), *(folder / told for folder in Path(self.output_dir).absolute().parents[4:5])]
        run = next((place for place in places if place.is_dir()), None)
        if run is None:
            looked = " nor in ".join(f"'{place}'" for place in places)
            raise UserError(f"{option}: there is no run in {looked}; {remedy}")
        try:
            result = json.loads((run / "result.json").read_text(encoding="utf-8"))
            config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
            theirs = [functools.reduce(dict.__getitem__, key.split("."), config) for key in SAME]
            theirs += [config["DATASET"].get("FEW_SHOT_LIST", ""), result["backbone"]["sha256"], result["classnames"]]
            theirs += [config["TRAINER"].get("PLOT", {}).get(key, needed) for key, needed in PLAN.items()]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise UserError(f"{option}: the run in '{run}' is unfinished or damaged ({error}); {remedy}") from None
        ours = [functools.reduce(lambda node, part: node[part], key.split("."), self.cfg) for key in SAME[1:]]
        ours.append(self.cfg.DATASET.get("FEW_SHOT_LIST", ""))
        wanted = ("PLOT", *ours, self.weights_sha256, list(self.classnames), *PLAN.values())
        plan = (f"TRAINER.PLOT.{key}" for key in PLAN)
        compared = (*SAME, "DATASET.FEW_SHOT_LIST", "weights", "classes", *plan)
        for key, there, here in zip(compared, theirs, wanted, strict=True):
            if there != here:
                told = f"has {key} {str(there)[:80]}, here it is {str(here)[:80]}"
                raise UserError(f"{option}: the run in '{run}' {told}; {remedy}")
        return run

    @torch.no_grad()
    def read_plot(self, run: Path) -> None:
        """Takes the text features and the Sinkhorn options of a PLOT run."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.TRAINER.NAME = "PLOT"
        cfg.TRAINER.PLOT.update(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["TRAINER"]["PLOT"])
        learner = PromptLearner(cfg, self.classnames, self.model).to(self.device)
        load_learner(learner, find_checkpoint(run / "prompt_learner", None))
        text = TextEncoder(self.model)(*learner(), learner.prompts.layout)
        options = cfg.TRAINER.PLOT
        numbers = torch.tensor([options.EPS, options.MAX_ITER, options.THRESH], dtype=torch.float64)
        self.head.put(plot_text=text, plot_sinkhorn=numbers)
