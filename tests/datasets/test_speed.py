"""Large datasets load in seconds: `benchmarks.loading` at a fiftieth of the size.

CPU seconds exclude other programs. They include the fixed part of a load, so that the bounds are not a fiftieth.
"""

from pathlib import Path

import pytest

from benchmarks import loading

pytestmark = pytest.mark.medium


@pytest.mark.parametrize(("name", "bound"), [("SUN397", 0.3), ("ImageNet", 0.5)])
def test_large_datasets_load_in_seconds(name: str, bound: float, tmp_path: Path) -> None:
    _, *later = loading.measure(tmp_path, name, 0.02)
    assert len(later) == 2
    for row in later:
        assert row["files"] >= 800 and row["CPU s"] < bound
