"""The protocol of a finalization: what is trained again, with which seeds, on which images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tune_mnist.finalize.scores import Scores
from tune_mnist.mnist.facts import OBJECTIVE
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.task import Options
from tune_mnist.run.records import TrialRecord
from tune_mnist.run.settings import Settings, setting

TRAINING = "training"
"""Part of the data: trained on the training split, scored on the validation split."""
UNION = "training + validation"
"""Part of the data: trained on both splits together, scored on the test set."""
SEARCH_SEEDS = 1_000_000
"""Seeds from the run's own on that are left to the search: a trial has the run's seed plus its number."""


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
class Candidate:
    """A configuration among which is chosen."""

    number: int
    "Of the best trial that had it."
    hyperparameters: Hyperparameters
    accuracy: float
    "Validation accuracy of that trial's last epoch, 0..1."


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: all that decides what it comes to, on one kind of machine."""

    hyperparameters: Hyperparameters
    seed: int
    part: str
    "TRAINING or UNION."
    dataset: str
    train_size: int
    "Images of the training split."
    val_size: int
    "Images of the validation split."
    split_seed: int
    "Seed of the split."
    precision: str
    "As asked for: auto, fp32 or bf16."


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a finalization came to."""

    settings: Settings
    "Of the run, with what belongs to the machine."
    options: Options
    "Likewise, of the task."
    protocol: FinalsSettings
    validation: dict[Candidate, Scores]
    "Validation accuracies of each candidate, the best trial of the search first."
    winner: Candidate
    winner_test: Scores
    blog_test: Scores | None
    "None where the winner is the blog's configuration."
    difference: Scores | None
    "Winner less blog, seed by seed."
    model_seed: int
    "Of the training whose weights are the model."
    model_test: float
    "Test accuracy of that one, 0..1."
    choosing_seeds: list[int]
    final_seeds: list[int]
    train_size: int
    "Images of the training split."
    val_size: int
    test_size: int


def candidates(trials: Iterable[TrialRecord], top_k: int) -> list[Candidate]:
    """List the best COMPLETE trials, at most ``top_k``, the best first, each configuration once.

    Of equals the first trial.
    """
    complete = sorted(
        (trial for trial in trials if trial.shown_state == "COMPLETE"),
        key=lambda trial: (-trial.last[OBJECTIVE.metric], trial.number),
    )
    best: dict[Hyperparameters, Candidate] = {}
    for trial in complete:
        hyperparameters = Hyperparameters(**trial.config)
        candidate = Candidate(
            number=trial.number, hyperparameters=hyperparameters, accuracy=trial.last[OBJECTIVE.metric]
        )
        best.setdefault(hyperparameters, candidate)
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


def choose(scores: dict[Candidate, Scores]) -> Candidate | None:
    """Take the candidate with the highest mean; one with failed seeds comes after those with fewer.

    Returns:
        The candidate; None if all seeds of all of them failed.
    """
    ended = [candidate for candidate in scores if scores[candidate].n]
    return min(ended, key=lambda one: (scores[one].failed, -scores[one].mean), default=None)
