"""Learning rates epoch by epoch, against the values that Dassl's own schedulers gave."""

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
NO_RECOUNT = [0.002, 0.0017554122, 0.0014472136, 0.0011055728]
NO_RECOUNT += [0.00076393202, 0.00045573342, 0.00021114562, 5.4110585e-05]
STEPS = [0.002] * 3 + [2e-4] * 3 + [2e-5] * 3 + [2e-6]

CASES: list[tuple[dict[str, Any], list[float]]] = [
    ({"LR_SCHEDULER": "cosine"}, COSINE),
    ({"LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant"}, [1e-5, *COSINE[:9]]),
    (
        {"LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 3, "WARMUP_TYPE": "linear"},
        [1e-5, 0.002 / 3, 0.004 / 3, *COSINE[:7]],
    ),
    (
        {
            "LR_SCHEDULER": "cosine",
            "WARMUP_EPOCH": 2,
            "WARMUP_TYPE": "constant",
            "WARMUP_RECOUNT": False,
        },
        [1e-5, 1e-5, *NO_RECOUNT],
    ),
    ({"LR_SCHEDULER": "single_step"}, [0.002] * 10),
    ({"LR_SCHEDULER": "single_step", "STEPSIZE": (3,)}, STEPS),
    ({"LR_SCHEDULER": "single_step", "STEPSIZE": 3}, STEPS),
    (
        {
            "LR_SCHEDULER": "single_step",
            "STEPSIZE": (3,),
            "WARMUP_EPOCH": 2,
            "WARMUP_TYPE": "linear",
            "WARMUP_RECOUNT": False,
        },
        [1e-5, 0.001, *STEPS[2:]],
    ),
    (
        {"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5, 5, 8)},
        [0.002] * 2 + [2e-4] * 3 + [2e-6] * 3 + [2e-7] * 2,
    ),
    (
        {"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5, 8), "WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant"},
        [1e-5] + [0.002] * 2 + [2e-4] * 3 + [2e-5] * 3 + [2e-6],
    ),
    (
        {
            "LR_SCHEDULER": "multi_step",
            "STEPSIZE": (2, 5, 8),
            "WARMUP_EPOCH": 3,
            "WARMUP_TYPE": "constant",
            "WARMUP_RECOUNT": False,
        },
        [1e-5] * 3 + [0.002] * 2 + [2e-4] * 3 + [2e-5] * 2,
    ),
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
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("amsgrad", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("radam", torch.optim.RAdam),
        ("rmsprop", torch.optim.RMSprop),
    ],
)
def test_optimizers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, optim_cfg(NAME=name))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.002, 5e-4, 2)
    assert group.get("amsgrad", False) == (name == "amsgrad")
    if name == "sgd":
        assert (group["momentum"], group["dampening"], group["nesterov"]) == (0.9, 0, False)


def test_staged_rates() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3))
    c = optim_cfg(STAGED_LR=True, NEW_LAYERS=("1",))
    base, new = build_optimizer(model, c).param_groups
    assert base["lr"] == pytest.approx(2e-4) and new["lr"] == 0.002
    assert new["params"] == list(model[1].parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"NAME": "sdg"}, "unknown optimizer .*'sdg'; did you mean 'sgd'"),
        ({"LR_SCHEDULER": "cosin"}, "did you mean 'cosine'"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "konstant"}, "did you mean 'constant'"),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (2.5,)}, "STEPSIZE is .*whole numbers"),
    ],
)
def test_mistakes(overrides: dict[str, Any], message: str) -> None:
    c = optim_cfg(**overrides)
    with pytest.raises(UserError, match=message):
        build_lr_scheduler(build_optimizer(nn.Linear(1, 1), c), c)
