"""Does the runs of a plan on an engine: a line an event, lost runs are tried again, failed ones collected."""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from dassl.extras.locks import is_free
from dassl.utils import write_atomically
from runs.directory import LOCK

from .progress import Progress
from .task import Outcome, Run, recorded

if TYPE_CHECKING:
    from .local import LocalEngine
    from .ray_engine import RayEngine

Engine: TypeAlias = Union["LocalEngine", "RayEngine"]
TRIES = 3
BUSY = 1.0  # seconds between two looks whether other processes have ended


def execute(engine: Engine, todo: Sequence[Run], progress: Progress) -> int:
    """Returns 0, or the signal that ended the sweep. After a second signal it does not wait for the runs to leave."""
    waiting, tries, busy = deque(todo), Counter[Path](), set[Path]()
    left = {run.directory: run for run in waiting}
    with recorded(signal.SIGINT, signal.SIGTERM) as came:
        try:
            while left and not came:
                while engine.free and not came and (run := next_free(waiting, busy, left)) is not None:
                    tries[run.directory] += 1
                    try:
                        engine.start(run)
                    except OSError as error:  # the log cannot be written, or the server has died
                        settle(run, Outcome(1, last=str(error)), progress, left, engine.slots)
                if not engine.running:  # other processes have the rest
                    time.sleep(BUSY)
                    continue
                for run, outcome in engine.wait():
                    if outcome.lost and tries[run.directory] < TRIES and not came:
                        waiting.appendleft(run)
                        event = f"lost ({outcome.last}), try {tries[run.directory] + 1}"
                        progress.line(run, f"{event} of {TRIES}", left.values(), engine.slots)
                    elif outcome.code and not is_free(run.directory / LOCK):  # another process was faster
                        tries[run.directory] -= 1
                        waiting.append(run)
                    elif not (outcome.lost and came):
                        settle(run, outcome, progress, left, engine.slots)
            if came:
                leave(engine, progress, left, came)
            return came[0] if came else 0
        finally:
            engine.close()


def next_free(waiting: deque[Run], busy: set[Path], left: Mapping[Path, Run]) -> Run | None:
    """Takes out the next run that no other process has locked, and whose needed runs have ended.

    The others go to the end; each locked one is named once.
    """
    for _ in range(len(waiting)):
        run = waiting.popleft()
        held = any(need.directory.absolute() in left and not need.finished for need in run.needs)
        if not held and is_free(run.directory / LOCK):
            return run
        waiting.append(run)
        if not held and run.directory not in busy:
            busy.add(run.directory)
            print(f"{run.name}: another process is at it; what comes of that is waited for", flush=True)
    return None


def settle(run: Run, outcome: Outcome, progress: Progress, left: dict[Path, Run], slots: int) -> None:
    """Records a run that has ended, and writes the files that came back with it."""
    for name, content in outcome.files.items():
        path = run.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    del left[run.directory]
    progress.line(run, progress.ended(run, outcome), left.values(), slots)


def leave(engine: Engine, progress: Progress, left: dict[Path, Run], came: list[int]) -> None:
    """Passes the signal on once, and waits until the runs have left."""
    if engine.running:
        print("interrupted: the runs save their state and leave; once more ends them at once", flush=True)
    engine.stop(came[0])
    while engine.running and len(came) == 1:
        for run, outcome in engine.wait():
            if outcome.code == 0:
                settle(run, outcome, progress, left, 1)
