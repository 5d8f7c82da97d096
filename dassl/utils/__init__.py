"""What the rest of the engine, and CoOp-family code, shares: files, seeds, registries, checkpoints."""

from .checkpoints import (
    list_checkpoints,
    load_checkpoint,
    load_pretrained_weights,
    load_weights,
    remove_interrupted,
    remove_rolling,
    restore,
    resume_from_checkpoint,
    save_checkpoint,
    save_interrupted,
)
from .logger import Logger, Silence, print_to_console, print_to_file, setup_logger
from .meters import AverageMeter, MetricMeter
from .registry import Registry, check_availability
from .tools import (
    MAX_PIXELS,
    ImageError,
    UserError,
    as_rgb,
    cache_folder,
    collect_env_info,
    derive_seed,
    listdir_nohidden,
    mkdir_if_missing,
    random_state,
    read_image,
    read_json,
    seeded,
    set_random_seed,
    set_random_state,
    with_progress,
    write_atomically,
    write_json,
)


def __getattr__(name: str) -> object:
    """`locked`, for datasets/, which may ask this package alone; its module imports ours."""
    if name != "locked":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dassl.extras.locks import locked

    return locked


__all__ = [
    "MAX_PIXELS",
    "AverageMeter",
    "ImageError",
    "Logger",
    "MetricMeter",
    "Registry",
    "Silence",
    "UserError",
    "as_rgb",
    "cache_folder",
    "check_availability",
    "collect_env_info",
    "derive_seed",
    "list_checkpoints",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "load_weights",
    "mkdir_if_missing",
    "print_to_console",
    "print_to_file",
    "random_state",
    "read_image",
    "read_json",
    "remove_interrupted",
    "remove_rolling",
    "restore",
    "resume_from_checkpoint",
    "save_checkpoint",
    "save_interrupted",
    "seeded",
    "set_random_seed",
    "set_random_state",
    "setup_logger",
    "with_progress",
    "write_atomically",
    "write_json",
]
