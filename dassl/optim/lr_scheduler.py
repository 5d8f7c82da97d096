"""Learning-rate schedules, stepped once an epoch, with the values of Dassl's.

torch's schedulers are recursive, warn when stepped in another order than theirs, and nest as objects in a
checkpoint. Here the rate is a closed form of the number of finished epochs, and that number is the state.
"""

import math
from bisect import bisect_right
from collections.abc import Callable

from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability

SCHEDULES = ("single_step", "multi_step", "cosine")
WARMUPS = ("constant", "linear")


class LRScheduler:
    """Sets each parameter group's rate to `schedule(its first rate, finished epochs)`."""

    def __init__(self, optimizer: Optimizer, schedule: Callable[[float, int], float]) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self._set(0)

    def _set(self, epoch: int) -> None:
        self.last_epoch = epoch
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.schedule(base, epoch)

    def step(self) -> None:
        """An epoch is finished."""
        self._set(self.last_epoch + 1)

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._set(state_dict["last_epoch"])


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """The schedule called OPTIM.LR_SCHEDULER, after WARMUP_EPOCH epochs of warming up.

    After the warm-up the schedule counts from 0, or, with WARMUP_RECOUNT False, from WARMUP_EPOCH; there,
    as in Dassl, it starts at the full rate all the same, so that every later rate is scaled up by as much.

    UserError: an unknown schedule or warm-up, or a STEPSIZE of the wrong kind.
    """
    c = optim_cfg
    decay = _decay(c)
    warmup = max(c.WARMUP_EPOCH, 0)
    if warmup:
        check_availability(c.WARMUP_TYPE, WARMUPS, "warm-up (OPTIM.WARMUP_TYPE)")
    start = 0 if c.WARMUP_RECOUNT else warmup

    def schedule(base: float, epoch: int) -> float:
        if epoch < warmup:
            if c.WARMUP_TYPE == "constant":
                return c.WARMUP_CONS_LR
            return base * epoch / warmup if epoch else c.WARMUP_MIN_LR
        if epoch == warmup:
            return base
        return base * decay(start + epoch - warmup) / decay(start)

    return LRScheduler(optimizer, schedule)


def _decay(c: CfgNode) -> Callable[[int], float]:
    """The rate at epoch n as a fraction of the full one."""
    check_availability(c.LR_SCHEDULER, SCHEDULES, "schedule (OPTIM.LR_SCHEDULER)")
    if c.LR_SCHEDULER == "cosine":
        return lambda n: (1 + math.cos(math.pi * n / c.MAX_EPOCH)) / 2
    sizes = c.STEPSIZE if isinstance(c.STEPSIZE, (list, tuple)) else [c.STEPSIZE]
    if not sizes or not all(isinstance(size, int) for size in sizes):
        raise UserError(f"OPTIM.STEPSIZE is {c.STEPSIZE!r}; expected whole numbers, such as (30, 60)")
    if c.LR_SCHEDULER == "multi_step":
        milestones = sorted(sizes)
        return lambda n: c.GAMMA ** bisect_right(milestones, n)
    size = sizes[-1] if sizes[-1] > 0 else c.MAX_EPOCH
    return lambda n: c.GAMMA ** (n // size)
