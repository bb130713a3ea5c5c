"""The levels at which the trials of a run can be compared: ASHA's rungs, and the final results.

A trial that was stopped early has no final result, but a value at every epoch that it trained. So trials are
compared at equal epochs: at a rung all that reached it, stopped or not; at the end those that finished.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune_mnist.run.records import TrialRecord
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.asha import rungs

FINAL = "final"
"""Name of the level of the final results."""
MIN_TRIALS = 10
"""Trials that a level must have to be the one that is shown first; fewer say little."""
PER_PARAMETER = 3
"""Trials that it must have for each hyper-parameter that can vary."""
MIN_FRACTION = 2 / 3
"""Fraction of the trials of the widest level that it must have: survivors were chosen by their results."""
MIN_PER_CHOICE = 2
"""Trials with which a choice counts as one that a level still has."""
MIN_SPREAD = 0.75
"""Fraction of the interquartile range that a number has at the widest level, which a level must still have.

Trials that outlive a rung are the better ones, alike in what matters; so it seems not to matter among them.
"""
TRUSTED = 0.6
"""Rank correlation of the first rung with the last level below which the grace period may be too short."""
MIN_SHARED = 5
"""Trials that must have reached two levels for a rank correlation between them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """Where trials can be compared: the same epoch of each, or the final result of each."""

    name: str
    "epoch 4, or FINAL."
    epoch: int | None
    "None of the final results: a trial's own last epoch, where the search draws the number of epochs."
    trials: Sequence[TrialRecord]
    "Those that have a finite value here, in the order of the study."
    values: Sequence[float]
    "Of the metric, one a trial."

    @property
    def pairs(self) -> list[tuple[TrialRecord, float]]:
        """List the trials with their values."""
        return list(zip(self.trials, self.values, strict=True))

    @property
    def mixed(self) -> str:
        """Say which epochs the values are of, where those are not the same: 3 to 5 epochs; else ""."""
        epochs = {trial.epoch for trial in self.trials} if self.epoch is None else set()
        return f"{min(epochs)} to {max(epochs)} epochs" if len(epochs) > 1 else ""

    @property
    def where(self) -> str:
        """Say where it is in a sentence: at epoch 4; at the end; at the end of 3 to 5 epochs."""
        if self.epoch is not None:
            return f"at {self.name}"
        return f"at the end of {self.mixed}" if self.mixed else "at the end"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The level that is shown first."""

    level: Level
    rule: str
    "The rule, and how it came out."


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """How far the ranks at one level are those at another one."""

    low: Level
    high: Level
    n: int
    "Trials that reached both."
    value: float
    "Spearman's coefficient, -1..1; NaN where the values of a level are all the same."


def judged_epochs(settings: Settings) -> tuple[int, ...]:
    """List ASHA's rungs; of a search that stops no trial early, those that it would have had."""
    return rungs(dataclasses.replace(settings, scheduler="asha"))


def find_levels(trials: Sequence[TrialRecord], settings: Settings, metric: str) -> list[Level]:
    """List the levels that trials have reached, from the lowest rung to the final results.

    A rung at which just the finished trials have just their final results is left out. Without any trial
    there is one level, the final one, without trials.
    """
    finished = {
        trial.number: float(trial.last[metric]) for trial in trials if trial.shown_state == "COMPLETE"
    }
    found = []
    for epoch in judged_epochs(settings):
        values = {
            trial.number: float(report[metric])
            for trial in trials
            if (report := trial.find(epoch)) is not None
        }
        if values != finished:
            found.append(_level(f"epoch {epoch}", epoch, trials, values))
    return [level for level in [*found, _level(FINAL, None, trials, finished)] if level.trials] or [
        _level(FINAL, None, trials, finished)
    ]


def _level(name: str, epoch: int | None, trials: Sequence[TrialRecord], values: Mapping[int, float]) -> Level:
    here = [trial for trial in trials if math.isfinite(values.get(trial.number, math.nan))]
    return Level(name=name, epoch=epoch, trials=here, values=[values[trial.number] for trial in here])


def choose_level(
    levels: Sequence[Level], space: Mapping[str, BaseDistribution], variable: Sequence[str]
) -> Choice:
    """Choose the level that is shown first: the highest one whose trials are enough and differ enough."""
    widest = max(reversed(levels), key=lambda level: len(level.trials))  # of equals the highest
    least = max(MIN_TRIALS, PER_PARAMETER * len(variable))
    enough = max(least, MIN_FRACTION * len(widest.trials))
    rule = (
        f"The highest level that two thirds of the trials have reached, but no fewer than {least} "
        f"({PER_PARAMETER} per hyper-parameter, at least {MIN_TRIALS}), which still differ in each "
        f"hyper-parameter: {MIN_PER_CHOICE} trials with each choice, {MIN_SPREAD:.0%} of the interquartile "
        "range of each number"
    )
    for level in reversed(levels):
        if len(level.trials) >= enough and all(
            _differ(level, widest, name, space[name]) for name in variable
        ):
            return Choice(level=level, rule=f"{rule}.")
    return Choice(level=widest, rule=f"{rule}. No level has that; this is the one with the most trials.")


def _differ(level: Level, widest: Level, name: str, one: BaseDistribution) -> bool:
    """Tell whether the trials of a level still differ in a parameter, next to those of the widest."""
    here, there = ([t.params[name] for t in some.trials if name in t.params] for some in (level, widest))
    if isinstance(one, CategoricalDistribution):
        kept, tried = (
            {value for value, n in Counter(map(str, values)).items() if n >= MIN_PER_CHOICE}
            for values in (here, there)
        )
        return tried <= kept
    assert isinstance(one, FloatDistribution | IntDistribution)
    spread, tried_spread = (_spread(values, log=one.log) for values in (here, there))
    return spread >= MIN_SPREAD * tried_spread


def _spread(values: Sequence[float], *, log: bool) -> float:
    """Give the interquartile range of values, of logarithms on a logarithmic scale."""
    places = pd.Series([math.log(value) if log else float(value) for value in values], dtype="float64")
    return float(places.quantile(0.75) - places.quantile(0.25)) if len(places) else 0.0


def rank_correlations(levels: Sequence[Level]) -> list[RankCorrelation]:
    """Give Spearman's rank correlation of each level with each higher one that MIN_SHARED trials share."""
    found = []
    for place, low in enumerate(levels):
        before = {trial.number: value for trial, value in low.pairs}
        for high in levels[place + 1 :]:
            both = [(before[t.number], value) for t, value in high.pairs if t.number in before]
            if len(both) >= MIN_SHARED:
                frame = pd.DataFrame(both, dtype="float64").rank()
                value = float(frame[0].corr(frame[1])) if (frame.nunique() > 1).all() else math.nan
                found.append(RankCorrelation(low=low, high=high, n=len(both), value=value))
    return found


def describe_correlations(levels: Sequence[Level]) -> str:
    """Say how far the ranks at the first level are those at higher ones; "" where that is not known."""
    known = [one for one in rank_correlations(levels) if one.low is levels[0] and not math.isnan(one.value)]
    if not known:
        return ""
    pairs = ", ".join(f"{one.high.name} {one.value:.2f} (n = {one.n})" for one in known)
    doubt = f" Below {TRUSTED:g} a longer grace period is worth a try." if known[-1].value < TRUSTED else ""
    return (
        f"Rank correlation (Spearman) of {levels[0].name} with {pairs}, over the trials that reached both; "
        f"as these are the better ones, it is rather too low.{doubt}"
    )
