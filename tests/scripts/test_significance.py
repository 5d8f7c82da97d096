"""The statistics of the tables against SciPy's functions on the same numbers."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from scripts.tables import significance


def test_examples_by_hand() -> None:
    """Differences of 1, 2, 3: t = 2 sqrt(3) with 2 degrees of freedom. Ranks 1 to 5: 2 or 4 of 32 choices of signs."""
    zeros = [0.0] * 5
    assert significance.paired_t([5.0, 7.0, 9.0], [4.0, 5.0, 6.0]) == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))
    assert significance.wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0], zeros) == pytest.approx(2 / 32)
    assert significance.wilcoxon([-1.0, 2.0, 3.0, 4.0, 5.0], zeros) == pytest.approx(4 / 32)
    assert significance.mcnemar(1, 6) == significance.mcnemar(6, 1) == pytest.approx(2 * (1 + 7) / 2**7)


@pytest.mark.parametrize("seed", range(20))
def test_scipy_says_the_same(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.randrange(2, 40)
    a, b = ([rng.gauss(70, 5) for _ in range(n)] for _ in range(2))
    assert significance.paired_t(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert significance.wilcoxon(a, b) == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)
    low, high = stats.t.interval(0.95, n - 1, loc=sum(a) / n, scale=stats.sem(a))
    assert significance.half_width(a) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("seed", range(20))
def test_ties_and_zeros(seed: int) -> None:
    """SciPy goes through all choices of signs."""
    rng = random.Random(seed)
    differences = [float(rng.randrange(-3, 5)) for _ in range(rng.randrange(5, 12))]
    expected = stats.wilcoxon([d for d in differences if d], method=stats.PermutationMethod(n_resamples=2**12))
    assert significance.wilcoxon(differences, [0.0] * len(differences)) == pytest.approx(expected.pvalue)


def test_many_differences_by_the_normal_approximation() -> None:
    rng = random.Random(1)
    differences = [float(rng.randrange(-30, 40)) or 1.0 for _ in range(significance.WILCOXON_EXACT + 1)]
    expected = stats.wilcoxon(differences, correction=False, method="approx").pvalue
    assert significance.wilcoxon(differences, [0.0] * len(differences)) == pytest.approx(expected)


def test_equal_differences_are_ties_in_spite_of_rounding() -> None:
    """Differences of 1, 1, 2 and 5 tenths: 2 of the 16 choices of signs are as extreme."""
    a, b = [0.3, 0.4, 0.6, 0.9], [0.2, 0.3, 0.4, 0.4]
    assert significance.wilcoxon(a, b) == 2 / 2**4


@pytest.mark.parametrize(("b", "c"), [(0, 1), (0, 24), (7, 3), (12, 12), (1, 23)])
def test_the_exact_mcnemar_is_scipys_binomial_test(b: int, c: int) -> None:
    assert significance.mcnemar(b, c) == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue)


def test_above_24_discordant_images_the_continuity_correction() -> None:
    assert significance.mcnemar(5, 20) == pytest.approx(stats.chi2.sf(14**2 / 25, 1))


def test_too_little_for_a_test() -> None:
    assert significance.mean([]) is None and significance.deviation([1.0]) is None
    assert significance.half_width([1.0]) is None
    assert significance.paired_t([1.0], [2.0]) is None and significance.paired_t([1.0, 2.0], [2.0, 3.0]) is None
    assert significance.wilcoxon([1.0], [2.0]) is None and significance.wilcoxon([1.0, 2.0], [1.0, 2.0]) is None
    assert significance.wilcoxon([0.0, 0.0, 1.0], [0.0] * 3) == stats.wilcoxon([1.0]).pvalue == 1.0
    assert significance.mcnemar(0, 0) is None
