"""What is around the imports but signals, which ``test_interrupted.py`` tests with whole programs."""

import json
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
import ctypes, json, resource, startup
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(30 << 20))) for _ in range(4)]
    for block in blocks:
        libc.memset(block, 1, ctypes.c_size_t(30 << 20))
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

as_it_is = [faults() for _ in range(3)][-1]  # glibc's own thresholds rise with what is freed
startup.before_imports()
print(json.dumps([as_it_is, *(faults() for _ in range(3))]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc's memory is its own affair")
def test_large_blocks_that_are_freed_are_had_again_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], cwd=runs.REPOSITORY, capture_output=True, check=True)
    as_it_is, *_, kept = json.loads(done.stdout)
    assert kept < 10 and kept < as_it_is / 10
