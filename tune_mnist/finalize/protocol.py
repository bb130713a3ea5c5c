"""The protocol of a finalization: what is trained again, with which seeds, and how a winner is chosen."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from tune_mnist.run.records import TaskFacts, TrialRecord
from tune_mnist.run.settings import setting
from tune_mnist.task import Objective, require

TRAINING = "training"
"""Part of the data: trained on the training part, scored on the validation part."""
UNION = "training + validation"
"""Part of the data: trained on both parts together, scored on the test set."""
SEARCH_SEEDS = 1_000_000
"""Seeds, from the run's own up, that belong to the search: a trial has the run's seed plus its number."""
CONFIDENCE = 0.95
"""Fraction of such intervals that contain the true mean."""
MIN_SEEDS = 3
"""Fewest seeds for an interval: with two, Student's t is 12.7, and the interval says nothing."""


@dataclass(frozen=True, kw_only=True)
class FinalsSettings:
    """How much is trained again.

    Raises:
        ValueError: for a value out of range; the text states the value and the rule.
    """

    top_k: int = setting(3, "protocol", "best finished configurations of the search to choose from")
    seeds: int = setting(5, "protocol", "trainings of each, with seeds that the search has not used")

    def __post_init__(self) -> None:
        for name in ("top_k", "seeds"):
            value = getattr(self, name)
            require(1 <= value <= 1000, name, value, "1 to 1000")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metric of one configuration, or differences of two, by seed."""

    by_seed: Mapping[int, float | None]
    "None for a seed whose training diverged."

    @property
    def values(self) -> list[float]:
        """The values of the seeds that ended."""
        return [value for value in self.by_seed.values() if value is not None]

    @property
    def n(self) -> int:
        """Count the seeds that ended."""
        return len(self.values)

    @property
    def failed(self) -> int:
        """Count the seeds whose training diverged."""
        return len(self.by_seed) - self.n

    @property
    def mean(self) -> float:
        """Mean over the seeds, NaN without any."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation (n - 1 in the denominator), NaN for fewer than two seeds."""
        return statistics.stdev(self.values) if self.n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Student's t-interval for the mean over all possible seeds; NaN for fewer than MIN_SEEDS."""
        if self.n < MIN_SEEDS:
            return math.nan, math.nan
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def less(self, other: Scores) -> Scores:
        """Subtract other scores seed by seed, for the seeds that ended in both."""
        pairs = ((seed, value, other.by_seed.get(seed)) for seed, value in self.by_seed.items())
        return Scores(by_seed={seed: a - b for seed, a, b in pairs if a is not None and b is not None})


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: all that decides its result on a given kind of machine."""

    config: str
    "The configuration, in JSON with sorted keys."
    seed: int
    part: str
    "TRAINING or UNION."
    epochs: int
    "Epochs to train."
    data: str
    "The task, its options that change a result, and the seed of the search, in JSON too."


def canonical(values: Mapping[str, Any]) -> str:
    """Write values in the canonical form of a `Job`."""
    return json.dumps(dict(values), sort_keys=True, default=str)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a finalization."""

    facts: TaskFacts
    usage: str
    "Of the task."
    seed: int
    "Of the search."
    protocol: FinalsSettings
    validation: Sequence[tuple[TrialRecord, Scores]]
    "The candidates with their validation metric, the best trial of the search first."
    winner: TrialRecord
    winner_test: Scores
    "Of the final trainings, in their order."
    baseline: Mapping[str, Any] | None
    "Its configuration, without what the task leaves to its defaults; None for a task without a baseline."
    baseline_test: Scores | None
    "None without a baseline, or if the winner is the baseline."
    test_n: int | None
    files: Mapping[str, bytes]
    "The model's files, by their names in best/."

    @property
    def difference(self) -> Scores | None:
        """Winner less baseline, seed by seed."""
        return self.winner_test.less(self.baseline_test) if self.baseline_test else None

    @property
    def model_seed(self) -> int:
        """The seed of the training whose weights are the model: the first that did not diverge."""
        return next(seed for seed, value in self.winner_test.by_seed.items() if value is not None)

    @property
    def model_test(self) -> float:
        """The model's metric on the test set."""
        return self.winner_test.values[0]

    def full(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration with its defaults."""
        return {**self.facts.defaults, **config}


def candidates(trials: Iterable[TrialRecord], top_k: int, objective: Objective) -> list[TrialRecord]:
    """List the best COMPLETE trials, at most ``top_k``, the best first, each configuration once.

    Of ties, the first trial comes first.
    """
    complete = [trial for trial in trials if trial.shown_state == "COMPLETE"]
    best: dict[str, TrialRecord] = {}
    for trial in sorted(complete, key=lambda trial: (-objective.score(trial.last), trial.number)):
        best.setdefault(canonical(trial.config), trial)
    return list(best.values())[:top_k]


def fresh_seeds(seed: int, count: int) -> tuple[list[int], list[int]]:
    """Derive the seeds to choose with and those of the final trainings from the run's seed.

    They are the 31-bit halves of `numpy.random.SeedSequence(seed)`'s words, without duplicates and without
    the SEARCH_SEEDS that trials may have, dealt out in turn. So no training shares its seed with a trial or
    with one of the other kind, and a larger ``count`` only appends seeds.
    """
    words = np.random.SeedSequence(seed).generate_state(4 * count + 64)
    halves = dict.fromkeys(int(word) >> 1 for word in words)
    fresh = [half for half in halves if not seed <= half < seed + SEARCH_SEEDS]
    return fresh[0 : 2 * count : 2], fresh[1 : 2 * count : 2]


def choose(validation: Iterable[tuple[TrialRecord, Scores]], objective: Objective) -> TrialRecord | None:
    """Choose the candidate with the best mean, among those with the fewest diverged seeds.

    Returns:
        The candidate; None if all seeds of all of them diverged.
    """
    ranks = [
        (scores.failed, -objective.sign * scores.mean, trial) for trial, scores in validation if scores.n
    ]
    return min(ranks, key=lambda rank: rank[:2])[2] if ranks else None
