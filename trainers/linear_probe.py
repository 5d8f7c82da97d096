"""Linear probe: logistic regression on CLIP's pooled features, as Zhou et al. compare CoOp with.

Radford et al. (arXiv 2103.00020, section 3.2) probe with the whole training set. The few-shot protocol and the search
for C are those published with "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134).
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .clip.prompts import UserError
from .feature_trainer import FeatureTrainer
from .method import Option

SMALL = 1e8  # n d K: products of a few milliseconds, for which threads wait longer than they work
COARSE = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)


@TRAINER_REGISTRY.register()
class LinearProbe(FeatureTrainer):
    """Logits W f_0 + b of the pooled feature, not normalized; W and b are scikit-learn's, in float64."""

    node = "LINEAR_PROBE"
    options = (
        Option("C", 0.0, "inverse weight of the L2 penalty; 0: searched on the few-shot validation set", 0, 1e12),
        Option("SEARCH_STEPS", 8, "bisections of the interval of a decade around the best power of 100", 1, 100),
        Option("MAX_ITER", 1000, "iterations of L-BFGS at most", 1),
    )
    label = "linear probe"
    paper = "Learning to Prompt for Vision-Language Models, IJCV 2022 (arXiv 2109.01134), few-shot protocol"
    compared = other_classes = False
    colour, marker = "tab:brown", "v"

    def build_head(self) -> None:
        K, d = len(self.classnames), self.model.visual.output_dim
        sizes = {"weight": torch.zeros(K, d), "bias": torch.zeros(K)}
        self.register_head({name: x.double() for name, x in sizes.items()}, {"C": torch.tensor(0.0).double()})

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        return F.linear(pooled.to(self.head.weight.dtype), self.head.weight, self.head.bias)

    def check_training(self) -> None:
        """Raises UserError: C cannot be chosen, or there is nothing to tell apart."""
        super().check_training()
        if not self.method_cfg.C and not self.validation_images():
            raise UserError(
                f"LinearProbe chooses C on validation images, and {self.cfg.DATASET.NAME} has none that are not "
                "tested; set TRAINER.LINEAR_PROBE.C"
            )
        if len(self.classnames) < 2:
            raise UserError(f"LinearProbe needs two classes; {self.cfg.DATASET.NAME} has one")

    def fit(self) -> None:
        x, y = self._arrays(self.dm.dataset.train_x)

        @functools.cache
        def fitted(c: float) -> Any:
            return fit_regression(x, y, c, self.method_cfg.MAX_ITER)

        c = self.method_cfg.C
        if not c:
            x_val, y_val = self._arrays(self.validation_images())
            c, accuracy = search(lambda c: float(fitted(c).score(x_val, y_val)), self.method_cfg.SEARCH_STEPS)
            print(f"C = {c:.6g}: {100 * accuracy:.2f}% of {len(y_val)} validation images")
        chosen = fitted(c)
        if chosen.n_iter_.max() >= self.method_cfg.MAX_ITER:
            print(f"Not converged: L-BFGS took TRAINER.LINEAR_PROBE.MAX_ITER {self.method_cfg.MAX_ITER} iterations")
        weight, bias = torch.from_numpy(chosen.coef_), torch.from_numpy(chosen.intercept_)
        if len(weight) == 1:  # of two classes: the logit of the second against the first
            weight, bias = (torch.cat([torch.zeros_like(x), x]) for x in (weight, bias))
        self.head.put(weight=weight, bias=bias, C=torch.tensor(c, dtype=torch.float64))

    def _arrays(self, images: Any) -> tuple[Any, Any]:
        """Features [n, d] in float64 and labels [n], as scikit-learn takes them."""
        features, labels = self.features_of(self.loader(images))
        return features["pooled"].double().cpu().numpy(), labels.cpu().numpy()


def fit_regression(x: Any, y: Any, c: float, max_iter: int) -> Any:
    """scikit-learn's logistic regression on x [n, d], y [n], on as many threads as torch has; a small one on one."""
    from sklearn.linear_model import LogisticRegression  # here: its import takes a second, of every program's start
    from threadpoolctl import threadpool_limits

    threads = 1 if x.size * len(set(y)) < SMALL else torch.get_num_threads()
    with warnings.catch_warnings(), threadpool_limits(threads):
        warnings.simplefilter("ignore")  # one image a class; and no convergence, which ``fit`` says of the chosen C
        return LogisticRegression(C=c, solver="lbfgs", max_iter=max_iter).fit(x, y)


def search(accuracy: Any, steps: int) -> tuple[float, float]:
    """The published search: the best of COARSE, the first of equals; then bisections around it.

    Args:
        accuracy: of a C on the validation set.
    Returns:
        The C that the last bisection keeps, and its accuracy.
    """
    best = max(COARSE, key=accuracy)
    left, right = best / 10, best * 10
    for _ in range(steps):
        middle = 10 ** ((math.log10(left) + math.log10(right)) / 2)
        if accuracy(left) < accuracy(right):
            kept, left = right, middle
        else:
            kept, right = left, middle
    return kept, accuracy(kept)
