"""Estimates of a run's seconds from finished runs: the same method on the same dataset, else the nearest there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from runs.result import read_result

if TYPE_CHECKING:
    from .plan import Run


class Times:
    """Seconds of finished runs: fixed ones (loading, testing) and, in training, those per shot and epoch."""

    def __init__(self, out: Path) -> None:
        self.fixed: dict[tuple[str, ...], list[float]] = defaultdict(list)
        self.rate: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for path in out.glob("*/*/*/*/seed*/result.json"):
            self.add(read_result(path.parent))

    def add(self, result: dict[str, Any] | None) -> None:
        """Ignores a result without the figures, and one of a resumed training: its total covers only the rest."""
        try:
            trainer, dataset = str(result["trainer"]), str(result["dataset"])  # type: ignore[index]
            seconds, work = result["seconds"], result["shots"] * result["epochs"]  # type: ignore[index]
            training = float(seconds.get("train_seconds", 0.0))
            fixed = float(seconds["total"]) - training
        except (KeyError, TypeError, ValueError):
            return
        if fixed < 0:
            return
        for key in ((trainer, dataset), (trainer,), ()):
            self.fixed[key].append(fixed)
            if work:
                self.rate[key].append(training / work)

    def estimate(self, run: Run) -> float | None:
        work = run.shots * run.epochs
        for key in ((run.trainer, run.dataset), (run.trainer,), ()):
            if key in self.fixed and (not work or key in self.rate):
                return fmean(self.fixed[key]) + (work * fmean(self.rate[key]) if work else 0.0)
        return None

    def of(self, planned: Iterable[Run], slots: int = 1) -> float | None:
        """Seconds of the runs: the sum by slots, and at least the longest; None if one is not known."""
        each = [self.estimate(run) for run in planned]
        known = [seconds for seconds in each if seconds is not None]
        return max(sum(known) / max(1, slots), *known, 0.0) if len(known) == len(each) else None
