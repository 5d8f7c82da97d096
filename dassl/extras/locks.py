"""Locks between processes. The operating system frees a lock when its holder ends, even by SIGKILL."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from dassl.utils.tools import UserError

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # errors of a file system without locks


@contextmanager
def locked(path: str | os.PathLike[str], refusal: str = "") -> Iterator[bool]:
    """Holds the lock file `path`. Child processes do not inherit the lock.

    The file is removed at the end; only a killed process leaves it, and then it is not locked.

    Args:
        path: the lock file. Missing folders are made.
        refusal: message of the error if another process holds the lock; empty: wait for that process.

    Yields:
        Whether the lock is held. It is not on a file system without locks, which is printed.

    Raises:
        UserError: another process holds the lock, and there is a `refusal`.
        OSError: the lock file cannot be written.
    """
    lock = FileLock(path, timeout=0 if refusal else -1, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(refusal) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"Note: the file system of '{os.fspath(path)}' has no locks; a second process there is not noticed")
    try:
        yield lock.is_locked
    finally:
        with suppress(OSError):
            os.unlink(path)  # before the release: a process that waits for this file then makes a new one
        lock.release()


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether no process holds the lock file `path` now."""
    if not os.path.exists(path):
        return True
    try:
        with locked(path, "held"):
            return True
    except UserError:
        return False
