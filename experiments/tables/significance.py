"""The statistics of the tables. Each p-value is two-sided; None: too little data for a test."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import scipy  # scipy.stats takes most of a second to import: SciPy does so at the first use

WILCOXON_EXACT = 50  # the largest number of differences that have the exact distribution
MCNEMAR_CHI2 = 25  # the smallest number of discordant images that have the chi-squared distribution


def mean(values: Sequence[float | None]) -> float | None:
    """None if there are no values, or one is missing."""
    whole = [value for value in values if value is not None]
    return statistics.fmean(whole) if 0 < len(whole) == len(values) else None


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """As ``mean``; of rates, it goes with the mean of times."""
    whole = [value for value in values if value is not None]
    return statistics.harmonic_mean(whole) if 0 < len(whole) == len(values) else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half of Student's t interval for the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(scipy.stats.t.ppf((1 + level) / 2, len(values) - 1) * scipy.stats.sem(values))


def paired_t(differences: Sequence[float]) -> float | None:
    """Student's paired t-test; None for fewer than two pairs or, up to rounding, equal differences."""
    if len(differences) < 2 or max(differences) - min(differences) < 1e-9:
        return None
    return float(scipy.stats.ttest_1samp(differences, 0).pvalue)


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Wilcoxon's signed-rank test of pairs, zeros left out; None for fewer than two pairs or equal ones.

    The exact distribution is counted here: SciPy's ignores ties, and its permutations take 2^n steps.
    """
    kept = np.array([d for d in (round(d, 9) for d in differences) if d])  # 0.3 - 0.2 = 0.2 - 0.1
    n = len(kept)
    if len(differences) < 2 or n == 0:
        return None
    if n > WILCOXON_EXACT:
        return float(scipy.stats.wilcoxon(kept).pvalue)
    ranks = (2 * scipy.stats.rankdata(np.abs(kept))).astype(int)  # doubled: tied ranks are halves
    ways = np.ones(1)  # ways[s]: how many choices of signs have positive ranks of sum s
    for rank in ranks:
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    plus = ranks[kept > 0].sum()
    return min(1.0, 2 * float(min(ways[: plus + 1].sum(), ways[plus:].sum())) / 2**n)


def mcnemar(b: int, c: int) -> float:
    """McNemar's test, exact or continuity-corrected, of b images only one method has right and c only the other."""
    n = b + c
    if n < MCNEMAR_CHI2:
        return float(scipy.stats.binomtest(b, n).pvalue) if n else 1.0
    return float(scipy.stats.chi2.sf(max(0, abs(b - c) - 1) ** 2 / n, 1))
