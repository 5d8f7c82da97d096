"""Locks between real processes."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from dassl.extras.locks import is_free, locked
from dassl.utils import UserError

CONTEXT = multiprocessing.get_context("fork")


def test_sigkill_frees_the_lock_though_a_worker_lives_on(tmp_path: Path) -> None:
    path, workers = tmp_path / "run" / ".lock", CONTEXT.SimpleQueue()

    def hold() -> None:
        with locked(path):
            worker = CONTEXT.Process(target=time.sleep, args=(60,))
            worker.start()
            workers.put(worker.pid)
            time.sleep(60)

    process = CONTEXT.Process(target=hold)
    process.start()
    worker = workers.get()
    try:
        assert not is_free(path)
        with pytest.raises(UserError, match="taken"), locked(path, "taken"):
            pass
        process.kill()
        process.join()
        with locked(path, "taken") as held:
            assert held
        assert is_free(path) and not path.exists()
        os.kill(worker, 0)  # it is there
    finally:
        os.kill(worker, signal.SIGKILL)


def _count(path: Path) -> None:
    for _ in range(10):
        with locked(path.with_suffix(".lock")):
            path.write_text(str(int(path.read_text()) + 1))


def test_one_at_a_time_though_each_removes_the_lock_file(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    processes = [CONTEXT.Process(target=_count, args=(path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert path.read_text() == "40" and [p.name for p in tmp_path.iterdir()] == ["count"]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for refusal in ("", "taken"):
        with locked(tmp_path / "x.lock", refusal) as held:
            assert not held
        assert f"the file system of '{tmp_path / 'x.lock'}' has no locks" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
