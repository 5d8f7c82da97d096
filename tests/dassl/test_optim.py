"""Optimizers, and learning rates epoch by epoch against the values of Dassl's own schedulers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError

COSINE = [0.002, 0.0019510565, 0.0018090170, 0.0015877853, 0.0013090170]
COSINE += [0.001, 0.0006909830, 0.0004122147, 0.0001909830, 4.8943484e-05]
STEPS = [0.002] * 3 + [2e-4] * 3 + [2e-5] * 3 + [2e-6]

CASES: list[tuple[dict[str, Any], list[float]]] = [
    ({"LR_SCHEDULER": "cosine"}, COSINE),
    ({"LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant"}, [1e-5, *COSINE[:9]]),
    (
        {"LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 3, "WARMUP_TYPE": "linear"},
        [1e-5, 0.002 / 3, 0.004 / 3, *COSINE[:7]],
    ),
    ({"LR_SCHEDULER": "single_step"}, [0.002] * 10),
    ({"LR_SCHEDULER": "single_step", "STEPSIZE": (3,)}, STEPS),
    ({"LR_SCHEDULER": "single_step", "STEPSIZE": (3,), "WARMUP_EPOCH": 2}, [1e-5, 0.001, *STEPS[:8]]),
]


def optim_cfg(**overrides: Any) -> Any:
    c = get_cfg_default().OPTIM
    for key, value in {"NAME": "sgd", "LR": 0.002, **overrides}.items():
        c[key] = value
    return c


@pytest.mark.parametrize(("overrides", "expected"), CASES)
def test_rates_are_dassls(overrides: dict[str, Any], expected: list[float]) -> None:
    c = optim_cfg(**overrides)
    optimizer = build_optimizer(nn.Linear(1, 1), c)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = build_lr_scheduler(optimizer, c)
        rates = []
        for _ in range(10):
            rates += scheduler.get_last_lr()
            scheduler.step()  # before optimizer.step(), as a skipped AMP step does
    assert rates == pytest.approx(expected, abs=5.1e-11)


def test_state_is_plain_and_restores_the_rate() -> None:
    c = optim_cfg(LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    first = build_lr_scheduler(build_optimizer(nn.Linear(1, 1), c), c)
    for _ in range(4):
        first.step()
    assert first.state_dict() == {"last_epoch": 4}
    second = build_lr_scheduler(build_optimizer(nn.Linear(1, 1), c), c)
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert first.get_last_lr() == second.get_last_lr()
        first.step()
        second.step()


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), optim_cfg(NAME=name))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.002, 5e-4, 2)
    if name == "sgd":
        assert (group["momentum"], group["dampening"], group["nesterov"]) == (0.9, 0, False)


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("NAME", "sdg", "sgd"), ("LR_SCHEDULER", "cosin", "cosine"), ("WARMUP_TYPE", "konstant", "constant")],
)
def test_mistakes(key: str, value: str, nearest: str) -> None:
    c = optim_cfg(**{key: value})
    with pytest.raises(UserError, match=f"unknown .*'{value}'; did you mean '{nearest}'"):
        build_lr_scheduler(build_optimizer(nn.Linear(1, 1), c), c)
