"""What the rest of the engine, and CoOp-family code, shares: files, seeds, registries, checkpoints."""

from .checkpoints import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    load_weights,
    restore,
    resume_from_checkpoint,
    save_checkpoint,
)
from .logger import Logger, setup_logger
from .meters import AverageMeter, MetricMeter
from .registry import Registry, check_availability
from .tools import (
    UserError,
    atomic_file,
    check_isfile,
    collect_env_info,
    derive_seed,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    seeded,
    set_random_seed,
    tolist_if_not,
    write_atomically,
    write_json,
)

__all__ = [
    "AverageMeter",
    "Logger",
    "MetricMeter",
    "Registry",
    "UserError",
    "atomic_file",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "derive_seed",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "load_weights",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "restore",
    "resume_from_checkpoint",
    "save_checkpoint",
    "seeded",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "write_atomically",
    "write_json",
]
