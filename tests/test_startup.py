"""The garbage collector and memory around the imports; ``test_interrupted.py`` tests signals with whole programs."""

import platform
import subprocess
import sys

import pytest

import runs

AROUND = """
import gc, startup
startup.before_imports()
assert not gc.isenabled()
startup.after_imports()
assert gc.isenabled() and gc.get_freeze_count()
"""


def test_the_collector_looks_only_at_what_comes_after_the_imports() -> None:
    subprocess.run([sys.executable, "-c", AROUND], cwd=runs.REPOSITORY, check=True)


FREED = """
import ctypes, startup
class Info(ctypes.Structure):
    _fields_ = [("values", ctypes.c_int * 10)]
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.mallinfo.restype = ctypes.c_void_p, Info
startup.keep_memory()
blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(30 << 20))) for _ in range(4)]
for block in blocks:
    libc.free(block)
print(libc.mallinfo().values[8])  # fordblks: bytes that are free and still the process's
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_blocks_stay_with_the_process_after_free() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], cwd=runs.REPOSITORY, capture_output=True, check=True)
    assert int(done.stdout) >= 4 * (30 << 20)
