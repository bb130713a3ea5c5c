"""What the same training comes to over several seeds: mean, standard deviation and a 95 % interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95
"""Share of such intervals that hold the true mean."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracies (0..1) of one configuration, or their differences, one a seed."""

    values: tuple[float, ...]
    "Of the seeds whose training did not fail."
    failed: int = 0
    "Seeds whose training diverged."

    @property
    def n(self) -> int:
        """Count the seeds that ended."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over the seeds, NaN without any."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Standard deviation of the sample (n - 1 below the line), NaN for fewer than two seeds."""
        return statistics.stdev(self.values) if self.n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Student's t-interval for the mean over all seeds there could be; NaN for fewer than two."""
        if self.n < 2:
            return math.nan, math.nan
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half


def scores_of(by_seed: Mapping[int, float | None]) -> Scores:
    """Gather what each seed came to; None is a seed that failed."""
    values = tuple(value for value in by_seed.values() if value is not None)
    return Scores(values=values, failed=len(by_seed) - len(values))


def difference(one: Mapping[int, float | None], other: Mapping[int, float | None]) -> Scores:
    """Subtract ``other`` from ``one`` seed by seed, where both ended."""
    pairs = ((one[seed], other.get(seed)) for seed in one)
    return Scores(values=tuple(a - b for a, b in pairs if a is not None and b is not None))
