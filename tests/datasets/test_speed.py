"""Large datasets load in seconds: `benchmarks.loading` at a fiftieth of the size, in CPU seconds.

What else the machine does is not counted so; the fixed part of a load is, which is why the bounds are not a fiftieth.
"""

from pathlib import Path

import pytest

from benchmarks import loading

pytestmark = pytest.mark.medium


@pytest.mark.parametrize(("name", "bound"), [("SUN397", 0.3), ("ImageNet", 0.5)])
def test_large_datasets_load_in_seconds(name: str, bound: float, tmp_path: Path) -> None:
    _, *later = loading.measure(tmp_path, name, 0.02)
    assert len(later) == 2
    for _, files, _, _, cpu, _ in later:
        assert files >= 800 and cpu < bound
