"""What the values of a config may be: each key of `config.py` with its range, so that a run never starts on an
impossible one. Types follow from the defaults; keys of type bool, and names that are free, have no range here.
"""

import math
import os.path as osp
import reprlib
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from yacs.config import CfgNode

from .data.samplers import SAMPLERS
from .data.transforms import AVAI_CHOICES, INTERPOLATION_MODES
from .evaluation import EVALUATOR_REGISTRY
from .optim import OPTIMIZERS, SCHEDULES, WARMUPS

Fault = Callable[[Any], str]  # of a value: what it must be, "" if it is that


def at_least(least: float) -> Fault:
    return lambda value: "" if value >= least else f"{least} or more"


def above(bound: float) -> Fault:
    return lambda value: "" if value > bound else "positive" if bound == 0 else f"more than {bound}"


def between(least: float, most: float, open_end: bool = False) -> Fault:
    end = f"under {most}" if open_end else f"{most}"
    return lambda value: "" if least <= value <= most and not (open_end and value == most) else f"from {least} to {end}"


def one_of(names: Iterable[str]) -> Fault:
    known = list(names)

    def fault(value: str) -> str:
        if value in known:
            return ""
        near = get_close_matches(str(value)[:60], known, n=1, cutoff=0.5)
        return f"one of {', '.join(known)}" + (f"; the nearest is '{near[0]}'" if near else "")

    return fault


def each(kind: type, fault: Fault = lambda value: "", n: int | None = None, what: str = "") -> Fault:
    """Of a list or tuple: `n` values, if that is given, each of a kind and without fault."""

    def of_all(values: Any) -> str:
        fits = isinstance(values, (list, tuple)) and (n is None or len(values) == n)
        kinds = (int, float) if kind is float else (kind,)
        if fits and all(type(v) in kinds and finite(v) and not fault(v) for v in values):
            return ""
        return what

    return of_all


def finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _steps(values: Any) -> str:
    what = "one whole number, or several, each larger than the one before, such as (30, 60)"
    fault = each(int, what=what)(values or [""])
    return fault or ("" if len(values) == 1 or [0, *values] == sorted({0, *values}) else what)


def _scale(values: Any) -> str:
    what = "two numbers, 0 < smallest <= largest <= 1"
    return each(float, between(0, 1), 2, what)(values) or ("" if 0 < values[0] <= values[1] else what)


_TRAIN_LOADER: dict[str, Fault] = {
    "SAMPLER": one_of(SAMPLERS),
    "BATCH_SIZE": at_least(1),
    "N_DOMAIN": at_least(0),
    "N_INS": at_least(1),
}
_RATE = between(0, 1, open_end=True)
_NAMES = each(str, what="a list of names")

LIMITS: dict[str, Fault] = {
    "VERSION": between(1, 1),
    "SEED": lambda value: "" if value == -1 or 0 < value < 2**63 else "a positive integer",
    "INPUT.SIZE": each(int, at_least(1), 2, "height and width, such as (224, 224)"),
    "INPUT.INTERPOLATION": one_of(INTERPOLATION_MODES),
    "INPUT.TRANSFORMS": lambda values: _NAMES(values) or next(filter(None, map(one_of(AVAI_CHOICES), values)), ""),
    "INPUT.PIXEL_MEAN": each(float, n=3, what="three numbers"),
    "INPUT.PIXEL_STD": each(float, above(0), 3, "three positive numbers"),
    "INPUT.CROP_PADDING": between(0, 4096),
    "INPUT.RRCROP_SCALE": _scale,
    "INPUT.CUTOUT_N": at_least(0),
    "INPUT.CUTOUT_LEN": at_least(0),
    "INPUT.GN_STD": at_least(0),
    "INPUT.RANDAUGMENT_N": at_least(0),
    "INPUT.RANDAUGMENT_M": between(0, 30),
    "INPUT.COLORJITTER_B": at_least(0),
    "INPUT.COLORJITTER_C": at_least(0),
    "INPUT.COLORJITTER_S": at_least(0),
    "INPUT.COLORJITTER_H": between(0, 0.5),
    "INPUT.RGS_P": between(0, 1),
    "INPUT.GB_P": between(0, 1),
    "INPUT.GB_K": lambda value: "" if value > 0 and value % 2 else "odd and positive",
    "DATASET.SOURCE_DOMAINS": _NAMES,
    "DATASET.TARGET_DOMAINS": _NAMES,
    "DATASET.NUM_LABELED": at_least(-1),
    "DATASET.NUM_SHOTS": at_least(-1),
    "DATASET.VAL_PERCENT": between(0, 1),
    "DATALOADER.NUM_WORKERS": at_least(0),
    "DATALOADER.K_TRANSFORMS": at_least(1),
    "DATALOADER.CACHED_VIEWS": at_least(0),
    **{f"DATALOADER.{part}.{key}": fault for part in ("TRAIN_X", "TRAIN_U") for key, fault in _TRAIN_LOADER.items()},
    "DATALOADER.TEST.SAMPLER": one_of(name for name in SAMPLERS if name != "RandomClassSampler"),
    "DATALOADER.TEST.BATCH_SIZE": at_least(1),
    "MODEL.INIT_WEIGHTS": lambda value: "" if not value or osp.isfile(value) else "a file",
    "MODEL.HEAD.HIDDEN_LAYERS": each(int, at_least(1), what="a list of positive integers"),
    "MODEL.HEAD.DROPOUT": _RATE,
    "OPTIM.NAME": one_of(OPTIMIZERS),
    "OPTIM.LR": above(0),
    "OPTIM.WEIGHT_DECAY": at_least(0),
    "OPTIM.MOMENTUM": _RATE,
    "OPTIM.SGD_DAMPNING": at_least(0),
    "OPTIM.RMSPROP_ALPHA": _RATE,
    "OPTIM.ADAM_BETA1": _RATE,
    "OPTIM.ADAM_BETA2": _RATE,
    "OPTIM.NEW_LAYERS": _NAMES,
    "OPTIM.BASE_LR_MULT": at_least(0),
    "OPTIM.LR_SCHEDULER": one_of(SCHEDULES),
    "OPTIM.STEPSIZE": _steps,
    "OPTIM.GAMMA": above(0),
    "OPTIM.MAX_EPOCH": at_least(1),
    "OPTIM.WARMUP_EPOCH": at_least(-1),
    "OPTIM.WARMUP_TYPE": one_of(WARMUPS),
    "OPTIM.WARMUP_CONS_LR": at_least(0),
    "OPTIM.WARMUP_MIN_LR": at_least(0),
    "TRAIN.CHECKPOINT_FREQ": at_least(0),
    "TRAIN.PRINT_FREQ": at_least(1),
    "TRAIN.COUNT_ITER": one_of(("train_x", "train_u", "smaller_one")),
    "TEST.FEATURE_CACHE_GB": at_least(0),
    "TEST.EVALUATOR": one_of(EVALUATOR_REGISTRY.registered_names()),
    "TEST.SPLIT": one_of(("val", "test")),
    "TEST.FINAL_MODEL": one_of(("last_step", "best_val")),
}
LARGEST = 2**31  # whole numbers from here on, a seed apart, are slips of the finger, and some overflow


def find_faults(cfg: CfgNode) -> list[str]:
    """What is wrong with the values of a config, a line each; [] if nothing is."""
    faults = []
    for key, value in _leaves(cfg):
        expected = "finite" if not finite(value) else LIMITS.get(key, lambda value: "")(value)
        if not expected and type(value) is int and abs(value) >= LARGEST and key != "SEED":
            expected = f"under {LARGEST}"
        if expected:
            faults.append(f"{key} is {reprlib.repr(value):.80}; it must be {expected}")
    c = cfg.OPTIM
    if c.NAME == "sgd" and c.SGD_NESTEROV and (c.MOMENTUM == 0 or c.SGD_DAMPNING != 0):
        faults.append("OPTIM.SGD_NESTEROV is True; that needs an OPTIM.MOMENTUM, and OPTIM.SGD_DAMPNING 0")
    return faults


def _leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
