"""Importing this package registers every dataset."""

from . import caltech101, symbols

__all__ = ["caltech101", "symbols"]
