"""One run: its command line, config, execution, directory and result. For Python: ``train``, ``evaluate``, ``load``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import dassl  # noqa: F401 -- before torch

if TYPE_CHECKING:
    from .loaded import load
    from .python import evaluate, train

__all__ = ["evaluate", "load", "train"]
_MODULES = {"evaluate": "python", "load": "loaded", "train": "python"}


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: a program imports this package before torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
