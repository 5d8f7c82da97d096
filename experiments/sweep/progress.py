"""A line a run: its place among all runs, what came of it, and the time to go. Sweeps and scripts print the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from runs.result import read_result

from .task import Outcome, Run
from .times import Times


@dataclass
class Progress:
    """The state of ``total`` runs."""

    total: int
    times: Times
    failed: list[tuple[Run, Outcome]] = field(default_factory=list)

    def ended(self, run: Run, outcome: Outcome) -> str:
        """Returns the event for the run's line."""
        result = read_result(run.directory)  # another process may have finished it
        if result is None:
            why = outcome.last or "no result.json was written"
            self.failed.append((run, Outcome(outcome.code, outcome.seconds, why)))
            return f"failed (exit {outcome.code}): {why}"
        self.times.add(result)
        return f"{result['accuracy']:.2f}% in {outcome.seconds:.0f} s"

    def line(self, run: Run, event: str, left: Iterable[Run], slots: int = 1) -> None:
        left = list(left)
        done = self.total - len(left) - len(self.failed)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        undone = [each for each in left if not each.finished]
        time = self.times.of(undone, slots)
        to_go = f"; {time} to go" if undone and time.seconds is not None else ""
        print(f"[{done:{len(str(self.total))}}/{self.total}{failed}] {run.name}: {event}{to_go}", flush=True)
