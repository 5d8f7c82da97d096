"""One writer a directory, by a lock that the operating system takes back when its process ends, however it ends."""

import errno
import fcntl
import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager

from dassl.utils.tools import UserError

# File systems without `flock`, or without it on directories (NFS), answer one of these.
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}
_held: set[int] = set()


def _let_go() -> None:
    """A worker that outlives its killed parent by a second must not hold on to the lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """UserError while another process has the directory. Nothing is left in it, except where only a file can be locked.

    There, `.lock` is locked as POSIX has it, for other processes only.
    """
    try:
        descriptor = _lock(os.fspath(directory))
    except (BlockingIOError, PermissionError) as error:
        if isinstance(error, PermissionError) and error.filename:
            raise  # not the lock: the directory itself
        raise UserError(
            f"another process is writing to '{directory}'; wait for its end, or name another --output-dir"
        ) from None
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def is_free(directory: str | os.PathLike[str]) -> bool:
    """Whether no process has the directory locked now; one that is not there is free."""
    if not osp.isdir(directory):
        return True
    try:
        with locked(directory):
            return True
    except UserError:
        return False


def _lock(directory: str) -> int:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno not in _NO_FLOCK:
            raise
    descriptor = os.open(osp.join(directory, ".lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(descriptor)
            raise
        print(f"Note: the file system of '{directory}' has no locks; start no second process on it")
    return descriptor
