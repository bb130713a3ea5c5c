"""The importance of hyper-parameters at a level, with the spread that its few trials leave."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tune_mnist.report.rungs import Level
from tune_mnist.run.words import count, short_value

MIN_IMPORTANCE = 10
"""Trials below which nothing is said about importance."""
GOOD_FRACTION = 1 / 3
"""The best trials that PED-ANOVA compares with all. Optuna's 0.1 is too few: see benchmarks/learned.py."""
ROUNDS, FEWER, MANY = 60, 20, 200
"""Resamples of the trials of the level that is shown first; fewer at other levels, and of more than MANY
trials, where each takes longer and differs less."""
LOW, HIGH = 0.05, 0.95
"""Ends of the interval: 90 % of the resamples lie between them."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What part of the difference between good and other trials a hyper-parameter makes."""

    name: str
    value: float
    "0..1; all of a level sum up to 1."
    low: float
    "Of its 90 % interval."
    high: float
    first: float
    "Fraction of the resamples in which it is the largest."


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The shares of the hyper-parameters at a level."""

    level: Level
    shares: Sequence[Share]
    "The largest first; none where too few trials differ."
    lone: Mapping[str, Any]
    "Hyper-parameters of the space of which one value alone reached the level, with that value."
    rounds: int
    "Resamples that the intervals are made of."
    failed: bool = False
    "Whether Optuna raised something."

    def why_none(self, variable: Sequence[str]) -> str:
        """Say why there are no shares."""
        if self.failed:
            return "it could not be computed"
        if not variable:
            return "no hyper-parameter of the space can vary"
        here = f"{count(len(self.level.trials), 'trial')} {self.level.where}"
        return f"{here}, but it takes {MIN_IMPORTANCE} that differ in their values and hyper-parameters"

    @property
    def method(self) -> str:
        """Say how it was measured, over how many trials."""
        return (
            f"PED-ANOVA over {count(len(self.level.trials), 'trial')} {self.level.where}; intervals: 90% of "
            f"{self.rounds} resamples"
        )

    def __str__(self) -> str:
        """Write the shares: lr 71% (40..90%), width 29% (10..60%)."""
        return ", ".join(
            f"{one.name} {one.value:.0%} ({100 * one.low:.0f}..{one.high:.0%})" for one in self.shares
        )


def measure_importance(
    level: Level,
    variable: Sequence[str],
    make_study: Callable[[], Study],
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Importance:
    """Measure the importance at a level by PED-ANOVA (Watanabe et al., 2023), with bootstrap intervals.

    Args:
        level: whose trials are compared.
        variable: the hyper-parameters that can vary; those of which the level has one value are left out.
        make_study: makes a study of the level's trials.
        rounds: resamples.
        seed: of the resamples.
    """
    values = {
        name: {trial.params[name] for trial in level.trials if name in trial.params} for name in variable
    }
    lone = {name: next(iter(some)) for name, some in values.items() if len(some) == 1}
    names = [name for name in variable if len(values[name]) > 1]
    if len(level.trials) < MIN_IMPORTANCE or len(set(level.values)) == 1 or not names:
        return Importance(level=level, shares=[], lone=lone, rounds=0)
    study = make_study()
    dice = random.Random(seed)
    trials = study.get_trials(deepcopy=False)
    resample, found = _Resampled.like(study), []
    for _ in range(rounds):
        resample.drawn = dice.choices(trials, k=len(trials))
        found.append(_shares(resample, names))
    resampled = {name: [one[name] for one in found] for name in names}
    winners = [max(one, key=lambda name: one[name]) for one in found]
    shares = [
        Share(
            name=name,
            value=value,
            low=min(value, float(np.quantile(resampled[name], LOW))),
            high=max(value, float(np.quantile(resampled[name], HIGH))),
            first=winners.count(name) / rounds,
        )
        for name, value in _shares(study, names).items()
    ]
    return Importance(
        level=level, shares=sorted(shares, key=lambda one: -one.value), lone=lone, rounds=rounds
    )


def describe_lone(importance: Importance) -> str:
    """Say of which hyper-parameters one value alone is left, so that they have no importance; "" of none."""
    left = [f"{name} {short_value(value)}" for name, value in importance.lone.items()]
    return f"No other value than {', '.join(left)} is left {importance.level.where}." if left else ""


def _shares(study: Study, names: list[str]) -> dict[str, float]:
    # Here, as it imports scikit-learn where there is one: a second and a half of a search's start.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # A resample can have one value of a parameter, or the same trials as its best ones and as all.
        warnings.simplefilter("ignore", UserWarning)
        try:
            evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD_FRACTION)
        except TypeError:  # its name before Optuna 5
            evaluator = PedAnovaImportanceEvaluator(baseline_quantile=GOOD_FRACTION)  # type: ignore[call-arg]
        return dict.fromkeys(names, 0.0) | get_param_importances(study, evaluator=evaluator, params=names)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from telling of each study that is made to be looked at."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class _Resampled(optuna.Study):
    """A study whose trials are those that were drawn last."""

    drawn: Sequence[FrozenTrial] = ()

    @classmethod
    def like(cls, study: Study) -> _Resampled:
        """Make one with the direction of another study."""
        storage = optuna.storages.InMemoryStorage()
        with quiet_optuna():
            name = optuna.create_study(storage=storage, direction=study.direction).study_name
        return cls(name, storage)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return list(self.drawn)
