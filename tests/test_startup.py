"""The garbage collector around the imports; the signals are tested in ``test_interrupted.py``, with whole programs."""

import subprocess
import sys

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
