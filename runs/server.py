"""The first import of the server that ``process.py`` forks runs from, and of nothing else."""

from . import process

process.enter()
