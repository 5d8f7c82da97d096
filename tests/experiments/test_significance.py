"""The tables' statistics: against examples worked by hand, and against SciPy's own functions on the same numbers."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from experiments.tables import significance


def test_an_example_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, s = 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    a, b = [5.0, 7.0, 9.0], [4.0, 5.0, 6.0]
    assert significance.paired_t(a, b) == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))
    assert significance.mean(a) == 7 and significance.deviation(a) == 2
    quantile = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))  # Student's with 2 degrees of freedom, in closed form
    assert significance.half_width([1.0, 2.0, 3.0]) == pytest.approx(quantile / math.sqrt(3))


def test_signed_ranks_by_hand() -> None:
    """Five differences of one sign: 2 of the 32 choices of signs are as far out. Ranks 1 against 2 to 5: 4 of 32."""
    zeros = [0.0] * 5
    assert significance.wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0], zeros) == pytest.approx(2 / 32)
    assert significance.wilcoxon([-1.0, 2.0, 3.0, 4.0, 5.0], zeros) == pytest.approx(4 / 32)


def test_mcnemar_by_hand() -> None:
    """1 against 6: 2 (1 + 7) / 2^7. 30 against 12: chi-squared (18 - 1)^2 / 42, whose tail is erfc(sqrt(x / 2))."""
    assert significance.mcnemar(1, 6) == significance.mcnemar(6, 1) == pytest.approx(0.125)
    assert significance.mcnemar(30, 12) == pytest.approx(math.erfc(math.sqrt(17**2 / 42 / 2)))
    assert significance.mcnemar(3, 3) == 1 and significance.mcnemar(20, 20) == 1


@pytest.mark.parametrize("seed", range(20))
def test_scipy_says_the_same(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.randrange(2, 40)
    a, b = ([rng.gauss(70, 5) for _ in range(n)] for _ in range(2))
    assert significance.paired_t(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert significance.wilcoxon(a, b) == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)
    low, high = stats.t.interval(0.95, n - 1, loc=sum(a) / n, scale=stats.sem(a))
    assert significance.half_width(a) == pytest.approx((high - low) / 2)


def by_enumeration(differences: list[float]) -> float:
    """Of all 2^n choices of signs, those whose positive ranks are as far from half as the differences' own."""
    kept = [d for d in differences if d]
    ranks = stats.rankdata([abs(d) for d in kept])
    middle = sum(ranks) / 2
    far = abs(sum(rank for rank, d in zip(ranks, kept, strict=True) if d > 0) - middle)
    signs = list(itertools.product((0, 1), repeat=len(kept)))
    return sum(abs(ranks @ np.array(sign) - middle) >= far - 1e-9 for sign in signs) / len(signs)


@pytest.mark.parametrize("seed", range(20))
def test_ties_and_zeros_by_enumeration_and_by_scipy(seed: int) -> None:
    rng = random.Random(seed)
    differences = [float(rng.randrange(-3, 5)) for _ in range(rng.randrange(5, 12))]
    ours = significance.wilcoxon(differences, [0.0] * len(differences))
    assert ours == pytest.approx(by_enumeration(differences))
    kept = [d for d in differences if d]
    permuted = stats.wilcoxon(kept, method=stats.PermutationMethod(n_resamples=2**12))
    assert ours == pytest.approx(permuted.pvalue)


def test_ties_by_hand() -> None:
    """Three of one sign, 1, 1 and 2: 2 of the 8 choices of signs are as far out."""
    assert significance.wilcoxon([1.0, 1.0, 2.0], [0.0] * 3) == pytest.approx(2 / 8)


def test_many_differences_by_the_normal_approximation() -> None:
    rng = random.Random(1)
    differences = [float(rng.randrange(-30, 40)) or 1.0 for _ in range(significance.WILCOXON_EXACT + 1)]
    expected = stats.wilcoxon(differences, correction=False, method="approx").pvalue
    assert significance.wilcoxon(differences, [0.0] * len(differences)) == pytest.approx(expected)


def test_equal_differences_are_ties_in_spite_of_rounding() -> None:
    a, b = [0.3, 0.4, 0.6, 0.9], [0.2, 0.3, 0.4, 0.4]
    assert significance.wilcoxon(a, b) == pytest.approx(by_enumeration([1, 1, 2, 5])) == 0.125


@pytest.mark.parametrize(("b", "c"), [(0, 1), (0, 24), (7, 3), (12, 12), (1, 23)])
def test_the_exact_mcnemar_is_scipys_binomial_test(b: int, c: int) -> None:
    assert significance.mcnemar(b, c) == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue)


def test_above_24_discordant_images_the_continuity_correction() -> None:
    assert significance.mcnemar(5, 20) == pytest.approx(stats.chi2.sf(14**2 / 25, 1))
    assert significance.mcnemar(5, 20) == pytest.approx(stats.binomtest(5, 25, 0.5).pvalue, rel=0.4)


def test_too_little_for_a_test() -> None:
    assert significance.mean([]) is None and significance.deviation([1.0]) is None
    assert significance.half_width([1.0]) is None
    assert significance.paired_t([1.0], [2.0]) is None and significance.paired_t([1.0, 2.0], [2.0, 3.0]) is None
    assert significance.wilcoxon([1.0], [2.0]) is None and significance.wilcoxon([1.0, 2.0], [1.0, 2.0]) is None
    assert significance.wilcoxon([0.0, 0.0, 1.0], [0.0] * 3) == stats.wilcoxon([1.0]).pvalue == 1.0
    assert significance.mcnemar(0, 0) is None
