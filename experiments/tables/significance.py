"""The statistics of the tables: interval, paired t-test, Wilcoxon's signed-rank test, McNemar's test.

Written out, so that the tables can say what was computed; the distributions are SciPy's, and the tests hold all of it
against SciPy's own functions. Each p-value is two-sided, and None where there is too little for a test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import scipy  # whose .stats, most of a second, is imported where it is first used

# McNemar: below this many discordant pairs the exact binomial test, from it on chi-squared with continuity correction.
EXACT_BELOW = 25

# Wilcoxon: up to this many non-zero differences the exact distribution of the rank sum, ties or not.
WILCOXON_EXACT = 50


def mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1; None for fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half of Student's t interval for the mean; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    return float(scipy.stats.t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def paired_t(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Student's paired t-test of mean(a - b) = 0; None for fewer than two pairs or differences all equal."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n = len(differences)
    if n < 2 or max(differences) - min(differences) < 1e-9:  # rounding aside: no variance to test with
        return None
    t = statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(n))
    return float(2 * scipy.stats.t.sf(abs(t), n - 1))


def wilcoxon(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Wilcoxon's signed-rank test of the paired differences, zeros dropped; None for fewer than two pairs or all equal.

    Exact up to 50 differences, tied ones with their mean rank; beyond, the normal approximation, corrected for ties,
    without continuity correction.
    """
    differences = [round(x - y, 9) for x, y in zip(a, b, strict=True)]  # 0.3 - 0.2 and 0.2 - 0.1 are a tie
    differences = [d for d in differences if d != 0]
    n = len(differences)
    if len(a) < 2 or n == 0:
        return None
    sizes = [abs(d) for d in differences]
    ranks = scipy.stats.rankdata(sizes)
    plus = float(sum(rank for rank, d in zip(ranks, differences, strict=True) if d > 0))
    smaller = min(plus, n * (n + 1) / 2 - plus)
    if n <= WILCOXON_EXACT:
        ways = _rank_sums([round(2 * rank) for rank in ranks])  # mean ranks are halves
        return min(1.0, 2 * sum(ways[: round(2 * smaller) + 1]) / 2**n)
    ties = [sizes.count(size) for size in set(sizes)]
    variance = n * (n + 1) * (2 * n + 1) / 24 - sum(t**3 - t for t in ties) / 48
    z = (smaller - n * (n + 1) / 4) / math.sqrt(variance)
    return float(2 * scipy.stats.norm.sf(abs(z)))


def _rank_sums(ranks: Sequence[int]) -> list[int]:
    """How many of the 2^n choices of signs give each sum of the positive ranks, 0 to all of them."""
    ways = [1]
    for rank in ranks:
        longer = [*ways, *[0] * rank]
        for total, count in enumerate(ways):
            longer[total + rank] += count
        ways = longer
    return ways


def mcnemar(b: int, c: int) -> float | None:
    """McNemar's test of b = c; None where the two classifiers never differ in being right.

    Args:
        b: images that only the first has right.
        c: images that only the second has right.
    """
    n = b + c
    if n == 0:
        return None
    if n < EXACT_BELOW:
        return min(1.0, 2 * float(scipy.stats.binom.cdf(min(b, c), n, 0.5)))
    chi2 = (max(0, abs(b - c) - 1)) ** 2 / n
    return float(scipy.stats.chi2.sf(chi2, 1))
