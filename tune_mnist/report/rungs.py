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
from functools import cached_property

import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune_mnist.run.records import TrialRecord
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.asha import rungs

FINAL = "final"
"""Name of the level of the final results."""
MIN_TRIALS = 10
"""Trials that a level needs to be shown first; fewer say little."""
PER_PARAMETER = 3
"""Trials that it needs for each hyper-parameter that can vary."""
MIN_FRACTION = 2 / 3
"""Fraction of the widest level's trials that it needs: survivors were chosen by their results."""
MIN_PER_CHOICE = 2
"""Trials that a choice needs to count as still present at a level."""
MIN_SPREAD = 0.75
"""Fraction of a number's interquartile range at the widest level that a level must still have.

Trials that outlive a rung are the better ones, alike in what matters; among them it seems not to matter.
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
    "None for the final results: each trial's last epoch, which differs if the search draws their number."
    pairs: Sequence[tuple[TrialRecord, float]]
    "The trials that have a finite value of the metric here, with that value, in the order of the study."

    @cached_property
    def trials(self) -> list[TrialRecord]:
        """The trials that have a value here."""
        return [trial for trial, _ in self.pairs]

    @cached_property
    def values(self) -> list[float]:
        """Their values."""
        return [value for _, value in self.pairs]

    @property
    def mixed(self) -> str:
        """Describe the epochs of the values if they differ: 3 to 5 epochs; else ""."""
        epochs = {trial.epoch for trial in self.trials} if self.epoch is None else set()
        return f"{min(epochs)} to {max(epochs)} epochs" if len(epochs) > 1 else ""

    @property
    def where(self) -> str:
        """Describe where it is, within a sentence: at epoch 4; at the end; at the end of 3 to 5 epochs."""
        if self.epoch is not None:
            return f"at {self.name}"
        return f"at the end of {self.mixed}" if self.mixed else "at the end"


def find_levels(trials: Sequence[TrialRecord], settings: Settings, metric: str) -> list[Level]:
    """List the levels that trials have reached, from the lowest rung to the final results.

    A rung whose values are just the final results of the finished trials is left out. Without any trial
    there is one level, the final one, which is empty.
    """
    finished = {
        trial.number: float(trial.last[metric]) for trial in trials if trial.shown_state == "COMPLETE"
    }
    found: list[Level] = []
    for epoch in rungs(dataclasses.replace(settings, scheduler="asha")):  # where it would have judged
        reports = {trial.number: trial.find(epoch) for trial in trials}
        values = {number: float(report[metric]) for number, report in reports.items() if report}
        if values != finished:
            found.append(_level(f"epoch {epoch}", epoch, trials, values))
    final = _level(FINAL, None, trials, finished)
    return [level for level in [*found, final] if level.trials] or [final]


def _level(name: str, epoch: int | None, trials: Sequence[TrialRecord], values: Mapping[int, float]) -> Level:
    pairs = [(trial, values[trial.number]) for trial in trials if trial.number in values]
    return Level(name=name, epoch=epoch, pairs=[pair for pair in pairs if math.isfinite(pair[1])])


def choose_level(
    levels: Sequence[Level], space: Mapping[str, BaseDistribution], variable: Sequence[str]
) -> tuple[Level, str]:
    """Choose the level to show first: the highest one with enough trials that differ enough.

    The second value is the rule, and whether any level met it.
    """
    widest = max(reversed(levels), key=lambda level: len(level.trials))  # of ties the highest
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
            return level, f"{rule}."
    return widest, f"{rule}. No level meets this rule; the one with the most trials is shown."


def _differ(level: Level, widest: Level, name: str, distribution: BaseDistribution) -> bool:
    """Return whether a level's trials still differ in a parameter, compared with those of the widest."""
    here, there = ([t.params[name] for t in some.trials if name in t.params] for some in (level, widest))
    if isinstance(distribution, CategoricalDistribution):
        kept, tried = (
            {value for value, n in Counter(map(str, values)).items() if n >= MIN_PER_CHOICE}
            for values in (here, there)
        )
        return tried <= kept
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    spread, tried_spread = (_spread(values, log=distribution.log) for values in (here, there))
    return spread >= MIN_SPREAD * tried_spread


def _spread(values: Sequence[float], *, log: bool) -> float:
    """Return the interquartile range of values, or of their logarithms on a logarithmic scale."""
    places = pd.Series([math.log(value) if log else float(value) for value in values], dtype="float64")
    return float(places.quantile(0.75) - places.quantile(0.25)) if len(places) else 0.0


def rank_correlations(levels: Sequence[Level]) -> dict[str, tuple[int, float]]:
    """Return Spearman's rank correlation of the first level with each higher one.

    By the name of the higher one: the number of trials that reached both, and the coefficient, -1..1. A level
    with fewer than MIN_SHARED of them, or with equal values only, is left out.
    """
    correlations = {}
    before = {trial.number: value for trial, value in levels[0].pairs}
    for level in levels[1:]:
        both = [(before[t.number], value) for t, value in level.pairs if t.number in before]
        frame = pd.DataFrame(both, columns=["low", "high"], dtype="float64").rank()
        if len(frame) >= MIN_SHARED and (frame.nunique() > 1).all():
            correlations[level.name] = len(frame), float(frame["low"].corr(frame["high"]))
    return correlations


def describe_correlations(levels: Sequence[Level]) -> str:
    """Describe how well the ranks at the first level predict those at higher ones; "" if not known."""
    known = rank_correlations(levels)
    if not known:
        return ""
    pairs = ", ".join(f"{name} {value:.2f} (n = {n})" for name, (n, value) in known.items())
    _, last = list(known.values())[-1]
    doubt = f" Below {TRUSTED:g} a longer grace period is worth a try." if last < TRUSTED else ""
    return (
        f"Rank correlation (Spearman) of {levels[0].name} with {pairs}, over the trials that reached both; "
        f"as these are the better ones, it is biased low.{doubt}"
    )
