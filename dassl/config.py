"""The configuration tree with Dassl's names and defaults, for the keys that CoOp-family code reads.

Methods add their own nodes under TRAINER (see each trainer's `extend_cfg`).
"""

import os.path as osp
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from .data.samplers import SAMPLERS
from .data.transforms import AVAI_CHOICES, INTERPOLATION_MODES
from .evaluation import EVALUATOR_REGISTRY
from .extras.trackers import NAMES as TRACKED
from .limits import ANY, BELOW_ONE, NAMES, POSITIVE, Limit, at_least, between, finite, limit, list_of, one_of
from .optim import OPTIMIZERS, SCHEDULES, WARMUPS
from .utils import MAX_PIXELS


@dataclass(frozen=True)
class Key:
    """A key's default, what its values must be apart from their type, and whether upstream Dassl lacks the key."""

    default: Any
    limit: Limit = ANY
    ours: bool = False


def left_out(default: Any) -> Key:
    """A key of a feature that upstream Dassl has and this engine does not. It accepts the default only."""
    kind = type(default)
    return Key(default, limit(lambda value: kind(value) == default, f"{default!r}, the only value supported"))


_SIZE = list_of(int, "height and width, such as (224, 224)", lambda v: len(v) == 2 and min(v) >= 1)
_MEAN = list_of(float, "three numbers", lambda v: len(v) == 3)
_STD = list_of(float, "three positive numbers", lambda v: len(v) == 3 and min(v) > 0)
_SCALE = list_of(float, "two numbers, 0 < smallest <= largest <= 1", lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1)
_LAYERS = list_of(int, "a list of positive integers", lambda v: min(v, default=1) >= 1)
_STEPS = list_of(int, "one integer", lambda v: len(v) == 1)
_TRAIN_LOADER = {
    "SAMPLER": Key("RandomSampler", one_of(SAMPLERS)),
    "BATCH_SIZE": Key(32, at_least(1)),
    "N_DOMAIN": left_out(0),
    "N_INS": left_out(16),
}

# A bare default stands for any value of its type.
KEYS = {
    "VERSION": Key(1, between(1, 1)),
    "OUTPUT_DIR": "./output",  # a run's directory
    "RESUME": "",  # a run's directory to resume from; empty: OUTPUT_DIR, if it holds checkpoints
    "SEED": Key(-1, limit(lambda value: value == -1 or 0 < value < 2**63, "a positive integer")),  # -1: unseeded
    "USE_CUDA": True,  # False: on the CPU
    "VERBOSE": True,
    "INPUT": {
        "SIZE": Key((224, 224), _SIZE),  # height, width
        "INTERPOLATION": Key("bilinear", one_of(INTERPOLATION_MODES)),
        "TRANSFORMS": Key((), one_of(AVAI_CHOICES)),
        "MAX_PIXELS": Key(MAX_PIXELS, at_least(MAX_PIXELS), ours=True),  # of a picture; a larger one is refused
        "NO_TRANSFORM": left_out(False),
        "PIXEL_MEAN": Key([0.485, 0.456, 0.406], _MEAN),
        "PIXEL_STD": Key([0.229, 0.224, 0.225], _STD),
        "CROP_SHARE": Key(1.0, between(0.1, 1), ours=True),  # of the shorter side, that testing's crop keeps
        "CROP_PADDING": left_out(4),
        "RRCROP_SCALE": Key((0.08, 1.0), _SCALE),
        "CUTOUT_N": left_out(1),
        "CUTOUT_LEN": left_out(16),
        "GN_MEAN": left_out(0.0),
        "GN_STD": left_out(0.15),
        "RANDAUGMENT_N": left_out(2),
        "RANDAUGMENT_M": left_out(10),
        "COLORJITTER_B": left_out(0.4),
        "COLORJITTER_C": left_out(0.4),
        "COLORJITTER_S": left_out(0.4),
        "COLORJITTER_H": left_out(0.1),
        "RGS_P": left_out(0.2),
        "GB_P": left_out(0.5),
        "GB_K": left_out(21),
    },
    "DATASET": {
        "ROOT": "",  # the folder of the datasets
        "NAME": "",  # a registered dataset
        "SOURCE_DOMAINS": Key((), NAMES),
        "TARGET_DOMAINS": Key((), NAMES),
        "NUM_LABELED": left_out(-1),
        "NUM_SHOTS": Key(-1, at_least(-1)),  # images per class; negative: all
        "VAL_PERCENT": Key(0.1, between(0, 1)),
        "ALL_AS_UNLABELED": left_out(False),
    },
    "DATALOADER": {
        "NUM_WORKERS": Key(4, at_least(0)),
        "CACHED_VIEWS": Key(0, at_least(0), ours=True),  # augmented views of each training image to cache; 0: off
        "DECODED_GB": Key(1.0, at_least(0), ours=True),  # training images of up to so many GB are decoded once a run
        "ON_DEVICE": Key(False, ours=True),  # training images are resized and normalized on the model's device
        "K_TRANSFORMS": left_out(1),
        "RETURN_IMG0": left_out(False),
        "TRAIN_X": _TRAIN_LOADER,
        "TRAIN_U": {"SAME_AS_X": left_out(True), **_TRAIN_LOADER},
        "TEST": {"SAMPLER": Key("SequentialSampler", one_of(SAMPLERS)), "BATCH_SIZE": Key(32, at_least(1))},
    },
    "MODEL": {
        "INIT_WEIGHTS": Key("", limit(lambda value: not value or osp.isfile(value), "a file")),
        "BACKBONE": {
            "NAME": "",  # OpenAI's name, open_clip:ARCH/TAG, hf:OWNER/NAME, a file or a folder: docs/backbones.md
            "PRETRAINED": True,
        },
        "HEAD": {
            "NAME": "",
            "HIDDEN_LAYERS": Key((), _LAYERS),
            "ACTIVATION": "relu",
            "BN": True,
            "DROPOUT": Key(0.0, BELOW_ONE),
        },
    },
    "OPTIM": {
        "NAME": Key("adam", one_of(OPTIMIZERS)),
        "LR": Key(0.0003, POSITIVE),
        "WEIGHT_DECAY": Key(5e-4, at_least(0)),
        "MOMENTUM": Key(0.9, BELOW_ONE),
        "SGD_DAMPNING": Key(0, at_least(0)),
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": left_out(0.99),
        "ADAM_BETA1": Key(0.9, BELOW_ONE),
        "ADAM_BETA2": Key(0.999, BELOW_ONE),
        "STAGED_LR": left_out(False),
        "NEW_LAYERS": left_out(()),
        "BASE_LR_MULT": left_out(0.1),
        "LR_SCHEDULER": Key("single_step", one_of(SCHEDULES)),
        "STEPSIZE": Key((-1,), _STEPS),  # epochs; not positive: MAX_EPOCH
        "GAMMA": Key(0.1, POSITIVE),
        "MAX_EPOCH": Key(10, at_least(1)),
        "WARMUP_EPOCH": Key(-1, at_least(-1)),  # positive: warm up
        "WARMUP_TYPE": Key("linear", one_of(WARMUPS)),
        "WARMUP_CONS_LR": Key(1e-5, at_least(0)),
        "WARMUP_MIN_LR": Key(1e-5, at_least(0)),
        "WARMUP_RECOUNT": left_out(True),
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": Key(0, at_least(0)),  # epochs between checkpoints that are kept; 0: the last alone
        "PRINT_FREQ": Key(10, at_least(1)),  # batches
        "COUNT_ITER": left_out("train_x"),
        "LOGGERS": Key("", TRACKED, ours=True),  # words: mlflow, wandb; they get what TensorBoard gets
    },
    "TEST": {
        "EVALUATOR": Key("Classification", one_of(EVALUATOR_REGISTRY.registered_names())),
        "PER_CLASS_RESULT": left_out(False),
        "COMPUTE_CMAT": left_out(False),
        "NO_TEST": False,  # train only
        "SPLIT": Key("test", one_of(("val", "test"))),
        "FINAL_MODEL": Key("last_step", one_of(("last_step", "best_val"))),
        "FEATURE_CACHE": Key(True, ours=True),  # cache the image features of a frozen encoder on disk, for later tests
        "FEATURE_CACHE_DIR": Key("", ours=True),  # empty: features/ in the cache folder, $PLOT_CACHE or ~/.cache/plot
        "FEATURE_CACHE_GB": Key(8.0, at_least(0), ours=True),  # the least recently used features beyond it are deleted
    },
    "TRAINER": {
        "NAME": "",  # a registered method
    },
}
LARGEST = 2**31  # larger integers are typing errors, except a seed; some overflow


def flatten(cfg: Any, prefix: str = "", like: Any = None) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a config.

    Args:
        like: a config to whose nodes the recursion is limited, since a YAML of few lines can have endless leaves.
    """
    for key, value in cfg.items():
        below = value if like is None else like.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            yield from flatten(value, f"{prefix}{key}.", None if like is None else below)
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


_KEYS = {key: entry for key, entry in flatten(KEYS) if isinstance(entry, Key)}


def _defaults(key: Any) -> Any:
    if isinstance(key, dict):
        return {name: _defaults(below) for name, below in key.items()}
    return key.default if isinstance(key, Key) else key


def get_cfg_default() -> CfgNode:
    """A fresh, unfrozen tree of the defaults."""
    return CfgNode(_defaults(KEYS))


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop the other trainers' nodes, so that `print(cfg)` shows what matters to `trainer`."""
    for key, value in list(cfg.TRAINER.items()):
        if isinstance(value, CfgNode) and key not in (trainer, trainer.upper()):
            del cfg.TRAINER[key]


def drop_our_keys(cfg: CfgNode) -> None:
    """Drop the keys that upstream Dassl lacks."""
    for section, name in (key.split(".") for key, entry in _KEYS.items() if entry.ours):
        del cfg[section][name]


def find_faults(cfg: CfgNode) -> list[str]:
    """Returns what is wrong with the values of a config, one line for each fault."""
    faults = []
    for key, value in flatten(cfg):
        expected = "finite" if not finite(value) else _KEYS[key].limit(value) if key in _KEYS else ""
        if not expected and type(value) is int and abs(value) >= LARGEST and key != "SEED":
            expected = f"under {LARGEST}"
        if expected:
            faults.append(f"{key} is {reprlib.repr(value):.80}; it must be {expected}")
    c = cfg.OPTIM
    if c.NAME == "sgd" and c.SGD_NESTEROV and (c.MOMENTUM == 0 or c.SGD_DAMPNING != 0):
        faults.append("OPTIM.SGD_NESTEROV is True; that needs an OPTIM.MOMENTUM, and OPTIM.SGD_DAMPNING 0")
    if cfg.DATALOADER.get("ON_DEVICE") and cfg.DATALOADER.CACHED_VIEWS:
        faults.append(
            "DATALOADER.ON_DEVICE is True; that needs DATALOADER.CACHED_VIEWS 0, whose features keep no pixels"
        )
    return faults
