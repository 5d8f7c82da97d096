"""The tables' statistics: examples by hand, independent computations, too little data."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.tables import significance


def test_an_example_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, s = 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    assert significance.paired_t([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))
    assert significance.mean([5.0, 7.0, 9.0]) == 7 and significance.deviation([5.0, 7.0, 9.0]) == 2
    quantile = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))  # Student's with 2 degrees of freedom, in closed form
    assert significance.half_width([1.0, 2.0, 3.0]) == pytest.approx(quantile / math.sqrt(3))


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=10))
def test_wilcoxon_is_an_enumeration_of_the_signs(differences: list[int]) -> None:
    """With ties and zeros: the share of the 2^n choices of signs whose rank sum is as far from the middle."""
    kept = np.array([d for d in differences if d])
    ranks = stats.rankdata(np.abs(kept))
    sums = np.array([np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(kept))])
    far = np.abs(sums - sums.max() / 2) >= abs(ranks[kept > 0].sum() - sums.max() / 2)
    expected = pytest.approx(far.mean()) if len(kept) else None
    assert significance.wilcoxon(differences) == expected


@pytest.mark.parametrize("n", [2, 13, 50, 51, 80])
def test_wilcoxon_of_untied_differences_is_scipys(n: int) -> None:
    rng = random.Random(n)
    differences = [rng.gauss(1, 5) for _ in range(n)]
    assert significance.wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)


def test_equal_differences_are_ties_in_spite_of_rounding() -> None:
    assert significance.wilcoxon([0.3 - 0.2, 0.4 - 0.3, 0.6 - 0.4, 0.9 - 0.4]) == 2 / 2**4


def test_mcnemar_by_hand() -> None:
    """1 against 6: 2 (1 + 7) / 2^7. 30 against 12: chi-squared (18 - 1)^2 / 42, whose tail is erfc(sqrt(x / 2))."""
    assert significance.mcnemar(1, 6) == significance.mcnemar(6, 1) == pytest.approx(0.125)
    assert significance.mcnemar(30, 12) == pytest.approx(math.erfc(math.sqrt(17**2 / 42 / 2)))
    assert significance.mcnemar(3, 3) == 1 and significance.mcnemar(20, 20) == 1
    assert significance.mcnemar(4, 20) == pytest.approx(2 * sum(math.comb(24, k) for k in range(5)) / 2**24)
    assert significance.mcnemar(5, 20) == pytest.approx(math.erfc(math.sqrt(14**2 / 25 / 2)))


def test_too_little_for_a_test() -> None:
    assert significance.mean([]) is significance.mean([1.0, None]) is None and significance.deviation([1.0]) is None
    assert significance.half_width([1.0]) is None
    assert significance.paired_t([1.0]) is None and significance.paired_t([1.0, 1.0]) is None
    assert significance.wilcoxon([1.0]) is None and significance.wilcoxon([0.0, 0.0]) is None
    assert significance.wilcoxon([0.0, 0.0, 1.0]) == 1.0
    assert significance.mcnemar(0, 0) == 1
