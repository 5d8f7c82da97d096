"""The optimizers that a config's OPTIM.NAME may name."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability

OPTIMIZERS = ("adam", "amsgrad", "adamw", "radam", "sgd", "rmsprop")


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: CfgNode, param_groups: Iterable[Any] | None = None
) -> Optimizer:
    """The optimizer called OPTIM.NAME over `model`'s parameters, or over `param_groups` if given.

    With STAGED_LR, children of `model` that are not in NEW_LAYERS learn at LR * BASE_LR_MULT.
    UserError: an unknown name.
    """
    c = optim_cfg
    adam: dict[str, Any] = {"betas": (c.ADAM_BETA1, c.ADAM_BETA2)}
    sgd = {"momentum": c.MOMENTUM, "dampening": c.SGD_DAMPNING, "nesterov": c.SGD_NESTEROV}
    known: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
        "adam": (torch.optim.Adam, adam),
        "amsgrad": (torch.optim.Adam, adam | {"amsgrad": True}),
        "adamw": (torch.optim.AdamW, adam),
        "radam": (torch.optim.RAdam, adam),
        "sgd": (torch.optim.SGD, sgd),
        "rmsprop": (torch.optim.RMSprop, {"momentum": c.MOMENTUM, "alpha": c.RMSPROP_ALPHA}),
    }
    check_availability(c.NAME, OPTIMIZERS, "optimizer (OPTIM.NAME)")
    if param_groups is None:
        if c.STAGED_LR:
            param_groups = _staged(model, c)
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    optimizer, kwargs = known[c.NAME]
    return optimizer(param_groups, lr=c.LR, weight_decay=c.WEIGHT_DECAY, **kwargs)


def _staged(model: nn.Module | Iterable[Any], c: CfgNode) -> list[dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise UserError("OPTIM.STAGED_LR True needs a module, whose children NEW_LAYERS names")
    new_layers = [c.NEW_LAYERS] if isinstance(c.NEW_LAYERS, str) else list(c.NEW_LAYERS)
    base: list[nn.Parameter] = []
    new: list[nn.Parameter] = []
    for name, child in model.named_children():
        (new if name in new_layers else base).extend(child.parameters())
    return [{"params": base, "lr": c.LR * c.BASE_LR_MULT}, {"params": new}]
