"""The importance of hyper-parameters at a level, with the uncertainty that its few trials leave."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tune_mnist.report.rungs import Level
from tune_mnist.run.words import count, short_value

MIN_IMPORTANCE = 10
"""Trials below which nothing is said about importance."""
GOOD_FRACTION = 1 / 3
"""Best trials that PED-ANOVA compares with all. Optuna's 0.1 is too few: see benchmarks/learned.py."""
ROUNDS, FEWER, MANY = 60, 20, 200
"""Resamples of the trials at the level that is shown first; FEWER at other levels, and with more than MANY
trials, where each resample takes longer and differs less."""
LOW, HIGH = 0.05, 0.95
"""Ends of the interval: 90 % of the resamples lie between them."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The fraction of the difference between good and other trials that is due to a hyper-parameter."""

    name: str
    value: float
    "0..1; those of a level sum up to 1."
    low: float
    "Low end of its 90 % interval."
    high: float
    first: float
    "Fraction of the resamples in which it is the largest."

    @property
    def interval(self) -> str:
        """Write its interval: 40..90%."""
        return f"{100 * self.low:.0f}..{self.high:.0%}"

    def __str__(self) -> str:
        return f"{self.name} {self.value:.0%} ({self.interval})"


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The importances of the hyper-parameters at a level."""

    level: Level
    shares: Sequence[Share]
    "The largest first; empty if too few trials differ."
    lone: Mapping[str, Any]
    "Hyper-parameters of which only one value reached the level, with that value."
    rounds: int
    "Resamples behind the intervals."
    failed: bool = False
    "Whether Optuna raised an error."

    def why_none(self, variable: Sequence[str]) -> str:
        """Explain why there are no shares."""
        if self.failed:
            return "it could not be computed"
        if not variable:
            return "no hyper-parameter of the space can vary"
        here = f"{count(len(self.level.trials), 'trial')} {self.level.where}"
        return f"{here}, but {MIN_IMPORTANCE} that differ in their values and hyper-parameters are needed"

    @property
    def method(self) -> str:
        """Describe how it was measured, over how many trials."""
        return (
            f"PED-ANOVA over {count(len(self.level.trials), 'trial')} {self.level.where}; intervals: 90% of "
            f"{self.rounds} resamples"
        )

    def __str__(self) -> str:
        """lr 71% (40..90%), width 29% (10..60%)."""
        return ", ".join(map(str, self.shares))

    @property
    def lone_words(self) -> str:
        """Name the hyper-parameters without importance as only one value is left; "" if there are none."""
        left = [f"{name} {short_value(value)}" for name, value in self.lone.items()]
        return f"No value other than {', '.join(left)} is left {self.level.where}." if left else ""


def measure_importance(
    level: Level, variable: Sequence[str], make_study: Callable[[], Study], *, rounds: int = ROUNDS
) -> Importance:
    """Measure the importance at a level by PED-ANOVA (Watanabe et al., 2023), with bootstrap intervals.

    Args:
        level: whose trials are compared.
        variable: the hyper-parameters that can vary; those with one value at the level are left out.
        make_study: makes a study of the level's trials.
        rounds: number of resamples.
    """
    values = {
        name: {trial.params[name] for trial in level.trials if name in trial.params} for name in variable
    }
    lone = {name: next(iter(some)) for name, some in values.items() if len(some) == 1}
    names = [name for name in variable if len(values[name]) > 1]
    if len(level.trials) < MIN_IMPORTANCE or len(set(level.values)) == 1 or not names:
        return Importance(level=level, shares=[], lone=lone, rounds=0)
    study, generator = make_study(), random.Random(0)
    trials = study.get_trials(deepcopy=False)
    resample, resampled = GivenStudy(study.direction), []
    for _ in range(rounds):
        resample.given = generator.choices(trials, k=len(trials))
        resampled.append(_shares(resample, names))
    frame = pd.DataFrame(resampled, columns=names)
    low, high = frame.quantile(LOW), frame.quantile(HIGH)
    first = frame.idxmax(axis="columns").value_counts(normalize=True)
    shares = [
        Share(
            name=name,
            value=value,
            low=min(value, float(low[name])),
            high=max(value, float(high[name])),
            first=float(first.get(name, 0.0)),
        )
        for name, value in _shares(study, names).items()
    ]
    shares.sort(key=lambda share: -share.value)
    return Importance(level=level, shares=shares, lone=lone, rounds=rounds)


def _shares(study: Study, names: list[str]) -> dict[str, float]:
    # Here, as it imports scikit-learn if that is installed: 1.5 s of a search's start.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # A resample can have a single value of a parameter, or no trials besides its best ones.
        warnings.simplefilter("ignore", UserWarning)
        try:
            evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD_FRACTION)
        except TypeError:  # its name before Optuna 5
            evaluator = PedAnovaImportanceEvaluator(baseline_quantile=GOOD_FRACTION)  # type: ignore[call-arg]
        return dict.fromkeys(names, 0.0) | get_param_importances(study, evaluator=evaluator, params=names)


class GivenStudy(optuna.Study):
    """A study that does not copy its trials: of 10,000 Optuna's plots would make 36 copies, 2 s each."""

    given: Sequence[FrozenTrial] | None = None
    "Trials to return instead."

    def __init__(self, direction: StudyDirection) -> None:
        storage = optuna.storages.InMemoryStorage()
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # or it logs that the study was created
        try:
            name = optuna.create_study(storage=storage, direction=direction).study_name
        finally:
            optuna.logging.set_verbosity(before)
        super().__init__(name, storage)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials, without a copy."""
        return super().get_trials(deepcopy=False, states=states) if self.given is None else list(self.given)
