"""The optimizers that OPTIM.NAME may name."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl.utils import check_availability

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: CfgNode, param_groups: Iterable[Any] | None = None
) -> Optimizer:
    """Returns the optimizer OPTIM.NAME over `model`'s parameters, or over `param_groups` if given.

    Raises:
        UserError: the name is unknown.
    """
    c = optim_cfg
    check_availability(c.NAME, OPTIMIZERS, "optimizer (OPTIM.NAME)")
    if param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    options: dict[str, Any] = {"betas": (c.ADAM_BETA1, c.ADAM_BETA2)}
    if c.NAME == "sgd":
        options = {"momentum": c.MOMENTUM, "dampening": c.SGD_DAMPNING, "nesterov": c.SGD_NESTEROV}
    return OPTIMIZERS[c.NAME](param_groups, lr=c.LR, weight_decay=c.WEIGHT_DECAY, **options)
