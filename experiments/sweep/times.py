"""Estimates of a run's seconds and memory from finished runs of the same method on the same backbone.

Those on the same dataset come first. A time by other datasets is marked as such. Other backbones say nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from runs.result import read_result

from .task import Run

PEAKS = ("peak_memory_bytes", "peak_gpu_memory_bytes")


class Time(NamedTuple):
    """Seconds, None for unknown; ``elsewhere``: in part by runs on other datasets."""

    seconds: float | None
    elsewhere: bool = False

    def __str__(self) -> str:
        if self.seconds is None:
            return "unknown until each method has a run on this backbone"
        return f"~{timedelta(seconds=round(self.seconds))}{' (by other datasets)' * self.elsewhere}"


class Times:
    """Seconds of finished runs: fixed ones (loading, testing) and, in training, those per shot and epoch."""

    def __init__(self, out: Path) -> None:
        self.fixed: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self.rate: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self.peaks: dict[tuple[Any, ...], tuple[float, float]] = {}  # bytes: of the process, of its GPU
        for path in out.glob("*/*/*/*/seed*/result.json"):
            self.add(read_result(path.parent))

    def add(self, result: dict[str, Any] | None) -> None:
        """Ignores a result without the figures, and one of a resumed training: its total covers only the rest."""
        try:
            seconds, backbone = result["seconds"], result["backbone"]["name"]  # type: ignore[index]
            epochs = 0 if result.get("tested") else result["epochs"]  # type: ignore[index, union-attr]
            work, every = _work(result["shots"], epochs)  # type: ignore[index]
            training = float(seconds.get("train_seconds", 0.0)) if epochs else 0.0
            fixed = float(seconds["total"]) - training
            keys = _keys(result["trainer"], backbone, result["dataset"])  # type: ignore[index]
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        if fixed < 0:
            return
        for key in keys:
            self.fixed[key].append(fixed)
            peaks = [float(result.get(name) or 0) for name in PEAKS]  # type: ignore[union-attr]
            before = self.peaks.get(key, (0.0, 0.0))
            self.peaks[key] = max(before[0], peaks[0]), max(before[1], peaks[1])
            if not result.get("tested"):  # type: ignore[union-attr]
                self.rate[key, every].append(training / work if work else 0.0)  # what has no epochs only fits

    def estimate(self, run: Run) -> Time:
        work, every = _work(run.shots, run.epochs)
        for key in _keys(run.trainer, run.backbone, run.dataset):
            rate = self.rate.get((key, every))
            if key in self.fixed and (not work or rate):
                return Time(fmean(self.fixed[key]) + (work * fmean(rate) if rate and work else 0.0), key[-1] == "")
        return Time(None)

    def memory(self, run: Run) -> tuple[float | None, float | None]:
        """The largest peaks of such runs in bytes, of the process and of its GPU; None if there are none."""
        return next(
            (self.peaks[key] for key in _keys(run.trainer, run.backbone, run.dataset) if key in self.peaks),
            (None, None),
        )

    def of(self, planned: Iterable[Run], slots: int = 1) -> Time:
        """Of the runs: the sum by slots, and at least the longest; unknown if one is."""
        each = [self.estimate(run) for run in planned]
        known = [time.seconds for time in each if time.seconds is not None]
        if len(known) < len(each):
            return Time(None)
        return Time(max(sum(known) / max(1, slots), *known, 0.0), any(time.elsewhere for time in each))


def _work(shots: int, epochs: int) -> tuple[int, bool]:
    """(Shots times epochs, False); of a run on all images, whose shots are 0, (epochs, True)."""
    return (shots or 1) * epochs, not shots


def _keys(trainer: str, backbone: str, dataset: str) -> tuple[tuple[str, str, str], ...]:
    """The same dataset first, then any."""
    return (trainer, backbone, dataset), (trainer, backbone, "")
