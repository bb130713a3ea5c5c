"""The protocol of a finalization: what is trained again, with which seeds, and what that says."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from tune_mnist.run.records import TrialRecord
from tune_mnist.run.settings import setting
from tune_mnist.task import Objective

TRAINING = "training"
"""Part of the data: trained on the training part, scored on the validation part."""
UNION = "training + validation"
"""Part of the data: trained on both parts together, scored on the test set."""
SEARCH_SEEDS = 1_000_000
"""Seeds from the run's own on that are left to the search: a trial has the run's seed plus its number."""
CONFIDENCE = 0.95
"""Fraction of such intervals that hold the true mean."""
MIN_SEEDS = 3
"""Fewest seeds for an interval: with two, Student's t is 12.7, and the interval says nothing."""


@dataclass(frozen=True, kw_only=True)
class FinalsSettings:
    """How much is trained again.

    Raises:
        ValueError: for a value out of range; the text states the value and the rule.
    """

    top_k: int = setting(3, "protocol", "best finished configurations of the search to choose among")
    seeds: int = setting(5, "protocol", "trainings of each, with seeds that the search has not used")

    def __post_init__(self) -> None:
        """Check each value against its rule."""
        for name in ("top_k", "seeds"):
            value = getattr(self, name)
            if not 1 <= value <= 1000:
                raise ValueError(f"{name} is {value}, but must be 1 to 1000")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metric of one configuration, or differences of two, one value a seed."""

    values: tuple[float, ...]
    "Of the seeds whose training did not diverge."
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
        """Student's t-interval for the mean over all seeds there could be; NaN for fewer than MIN_SEEDS."""
        if self.n < MIN_SEEDS:
            return math.nan, math.nan
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half


def scores_of(by_seed: Mapping[int, float | None]) -> Scores:
    """Gather the results of the seeds; None is one that diverged."""
    values = tuple(value for value in by_seed.values() if value is not None)
    return Scores(values=values, failed=len(by_seed) - len(values))


def difference(one: Mapping[int, float | None], other: Mapping[int, float | None]) -> Scores:
    """Subtract ``other`` from ``one`` seed by seed, where both ended."""
    pairs = ((one[seed], other.get(seed)) for seed in one)
    return Scores(values=tuple(a - b for a, b in pairs if a is not None and b is not None))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration among which is chosen."""

    number: int
    "Of the best trial that had it."
    config: Mapping[str, Any] = field(hash=False)
    "As it is trained."
    epochs: int
    "Epochs that it is to train."
    value: float
    "The metric of that trial's last epoch."


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: all that decides its result, on one kind of machine."""

    config: str
    "The configuration, in JSON with sorted keys."
    seed: int
    part: str
    "TRAINING or UNION."
    epochs: int
    "Epochs to train."
    data: str
    "The task, its options that change a result, and the seed of the search, likewise."


def canonical(values: Mapping[str, Any]) -> str:
    """Write values in the one way that a `Job` has them."""
    return json.dumps(dict(values), sort_keys=True, default=str)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a finalization."""

    objective: Objective
    data: str
    "What was trained on, in words."
    usage: str
    "Of the task."
    seed: int
    "Of the search."
    protocol: FinalsSettings
    validation: dict[Candidate, Scores]
    "The validation metric of each candidate, the best trial of the search first."
    winner: Candidate
    winner_test: Scores
    baseline: Mapping[str, Any] | None
    "Its configuration, with what the task leaves to its defaults; None for a task without."
    baseline_test: Scores | None
    "None without a baseline, or where the winner is the baseline."
    difference: Scores | None
    "Winner less baseline, seed by seed."
    model_seed: int
    "Of the training whose weights are the model."
    model_test: float
    "The metric of that one on the test set."
    choosing_seeds: list[int]
    final_seeds: list[int]
    defaults: Mapping[str, Any]
    "What a configuration has where it says nothing."
    validation_n: int | None
    "Examples of the validation part, where the task counts them."
    test_n: int | None
    files: tuple[str, ...] = ()
    "Names of the model's files in best/."

    def full(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Give a configuration with its defaults."""
        return {**self.defaults, **config}


def candidates(trials: Iterable[TrialRecord], top_k: int, objective: Objective) -> list[Candidate]:
    """List the best COMPLETE trials, at most ``top_k``, the best first, each configuration once.

    Of equals the first trial.
    """
    complete = sorted(
        (trial for trial in trials if trial.shown_state == "COMPLETE"),
        key=lambda trial: (-objective.score(trial.last), trial.number),
    )
    best: dict[str, Candidate] = {}
    for trial in complete:
        candidate = Candidate(
            number=trial.number,
            config=trial.config,
            epochs=trial.epochs_planned,
            value=trial.last[objective.metric],
        )
        best.setdefault(canonical(trial.config), candidate)
    return list(best.values())[:top_k]


def fresh_seeds(seed: int, count: int) -> tuple[list[int], list[int]]:
    """Derive the seeds to choose with and those of the final trainings from the run's seed.

    They are the 31-bit halves of `numpy.random.SeedSequence(seed)`'s words, without doubles and without the
    SEARCH_SEEDS that trials may have, dealt out in turn. So no training shares its seed with a trial or with
    one of the other kind, and more seeds begin with the fewer ones.
    """
    words = np.random.SeedSequence(seed).generate_state(4 * count + 64)
    halves = dict.fromkeys(int(word) >> 1 for word in words)
    fresh = [one for one in halves if not seed <= one < seed + SEARCH_SEEDS]
    return fresh[0 : 2 * count : 2], fresh[1 : 2 * count : 2]


def choose(scores: Mapping[Candidate, Scores], objective: Objective) -> Candidate | None:
    """Take the candidate with the best mean; one with diverged seeds comes after those with fewer.

    Returns:
        The candidate; None if all seeds of all of them diverged.
    """
    ended = [candidate for candidate in scores if scores[candidate].n]
    return min(ended, key=lambda one: (scores[one].failed, -objective.sign * scores[one].mean), default=None)
