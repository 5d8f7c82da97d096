"""Learning-rate schedules with Dassl's values, stepped once an epoch.

The rate is a function of the number of finished epochs, and that number is the whole state. PyTorch's schedulers are
recursive, warn when they are stepped before the optimizer, and nest as objects in a checkpoint.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl.utils import check_availability

SCHEDULES = ("single_step", "cosine")
WARMUPS = ("constant", "linear")


class LRScheduler:
    """Sets the rate of each parameter group to `schedule(initial rate, finished epochs)`."""

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
        """Sets the rates of the next epoch."""
        self._set(self.last_epoch + 1)

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._set(state_dict["last_epoch"])


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Returns the schedule OPTIM.LR_SCHEDULER, which starts after WARMUP_EPOCH epochs of warm-up.

    Raises:
        UserError: the schedule or the warm-up is unknown.
    """
    c = optim_cfg
    check_availability(c.LR_SCHEDULER, SCHEDULES, "schedule (OPTIM.LR_SCHEDULER)")
    check_availability(c.WARMUP_TYPE, WARMUPS, "warm-up (OPTIM.WARMUP_TYPE)")
    warmup = max(c.WARMUP_EPOCH, 0)
    size = c.STEPSIZE[-1] if c.STEPSIZE[-1] > 0 else c.MAX_EPOCH

    def schedule(base: float, epoch: int) -> float:
        n = epoch - warmup
        if n < 0:
            if c.WARMUP_TYPE == "constant":
                return c.WARMUP_CONS_LR
            return base * epoch / warmup if epoch else c.WARMUP_MIN_LR
        if c.LR_SCHEDULER == "cosine":
            return base * ((1 + math.cos(math.pi * n / c.MAX_EPOCH)) / 2)
        return base * c.GAMMA ** (n // size)

    return LRScheduler(optimizer, schedule)
