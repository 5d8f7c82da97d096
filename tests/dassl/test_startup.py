"""What is around the imports but signals, which ``test_interrupted.py`` tests with whole programs."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from runs.directory import REPOSITORY

AROUND = """
import gc
from dassl import startup
startup.before_imports()
startup.before_imports()  # as a run's child process does, after its server
assert not gc.isenabled()
startup.after_imports()
assert gc.isenabled() and gc.get_freeze_count()
"""


def test_the_collector_looks_only_at_what_comes_after_the_imports() -> None:
    subprocess.run([sys.executable, "-c", AROUND], cwd=REPOSITORY, check=True)


FREED = """
import ctypes
from dassl import startup
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
    done = subprocess.run([sys.executable, "-c", FREED], cwd=REPOSITORY, capture_output=True, check=True)
    assert int(done.stdout) >= 4 * (30 << 20)


EXPERIMENTS = ("jobs", "compare", "protocols", "tables", "figures", "pretrain.symbols", "pictures.words")
PROGRAMS = ["train", "predict", "sweep", "datasets.prepare", "dassl.features", "benchmarks.step", "benchmarks.testing"]


@pytest.mark.parametrize("program", [*PROGRAMS, *(f"experiments.{name}" for name in EXPERIMENTS)])
def test_the_wait_policy_is_set_when_torch_is_first_imported(program: str, tmp_path: Path) -> None:
    """OpenMP reads it then, in the server of the runs too. The user's own setting wins."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(
        "import os; print(os.environ['OMP_WAIT_POLICY'], flush=True); os._exit(7)"
    )
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | {"PYTHONPATH": str(tmp_path)}
        env |= {} if given is None else {"OMP_WAIT_POLICY": given}
        command = [sys.executable, "-m", program, "--help"]
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
        assert (done.returncode, {*done.stdout.split()}) == (7, {expected}), done.stderr
