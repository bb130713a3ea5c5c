"""A run as reports see it: its trials, its space, the levels at which trials are compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.study import Study, StudyDirection
from optuna.trial import create_trial

from tune_mnist.report.importance import FEWER, MANY, ROUNDS, GivenStudy, Importance, measure_importance
from tune_mnist.report.rungs import Level, choose_level, find_levels
from tune_mnist.report.scale import Scale
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import RUNNING, TrialRecord
from tune_mnist.run.space import LENGTH
from tune_mnist.run.words import first_line
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.tuner import Outcome

T = TypeVar("T")

STATES = ("COMPLETE", "PRUNED", "FAIL", RUNNING)
"""States of trials, in the order in which they are listed."""


class View:
    """A run from `tuner.load_run`; each part is made once, when it is first needed."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.name = outcome.folder.name
        self.settings = outcome.settings
        self.ledger: Ledger = outcome.grid.ledger
        self.task = self.ledger.task
        self.objective = self.task.objective
        self.metric = self.objective.metric
        self.scale = Scale(self.objective)
        self.trials: list[TrialRecord] = outcome.grid.records
        "In the order of the study."
        self.failures: list[str] = []
        "What could not be computed or drawn, one line each."
        self._importances: dict[str, Importance] = {}

    def tried(self, what: str, make: Callable[[], T], otherwise: T) -> T:
        """Make one part of a report; if that fails, record it in ``failures`` and return a substitute."""
        try:
            return make()
        except Exception as error:  # of Optuna or a drawing library, which differ from version to version
            failure = f"{what} failed: {type(error).__name__}: {first_line(error)}"
            if failure not in self.failures:  # it may fail at each level
                self.failures.append(failure)
            return otherwise

    @cached_property
    def space(self) -> dict[str, BaseDistribution]:
        """The search space."""
        return {name: json_to_distribution(text) for name, text in self.ledger.distributions.items()}

    @cached_property
    def variable(self) -> list[str]:
        """The hyper-parameters that have more than one value in the space."""
        return [name for name, distribution in self.space.items() if not distribution.single()]

    def of_state(self, state: str) -> list[TrialRecord]:
        """List the trials of a state."""
        return [trial for trial in self.trials if trial.shown_state == state]

    @cached_property
    def best(self) -> TrialRecord | None:
        """The winner's trial, or before there is a winner the one with the best metric of any epoch."""
        if winner := self.outcome.winner:
            return next((trial for trial in self.trials if trial.trial_id == winner.trial_id), None)
        reported = [trial for trial in self.trials if trial.epochs and trial.shown_state != "FAIL"]
        return max(reported, key=lambda trial: self.objective.score(self.best_epoch(trial)), default=None)

    def best_epoch(self, trial: TrialRecord) -> dict[str, Any]:
        """Return a trial's report with the best metric; it must have reported."""
        return max(trial.epochs, key=self.objective.score)

    @cached_property
    def levels(self) -> list[Level]:
        """The levels at which trials can be compared, from the lowest rung to the final results."""
        return find_levels(self.trials, self.settings, self.metric)

    @cached_property
    def choice(self) -> tuple[Level, str]:
        """The level that is shown first, and the rule that chose it."""
        return choose_level(self.levels, self.space, self.variable)

    @property
    def level(self) -> Level:
        """The level that is shown first."""
        return self.choice[0]

    @cached_property
    def asha(self) -> ASHA:
        """The scheduler with all its judgements, replayed from the ledger."""
        return ASHA(self.settings, self.ledger)

    def ranked(self, level: Level) -> list[tuple[TrialRecord, float]]:
        """List the trials of a level with their values, the best first."""
        return sorted(level.pairs, key=lambda pair: -self.objective.sign * pair[1])

    def study(self, level: Level, limit: int | None = None) -> Study:
        """Make an Optuna study of a level's trials, or of its best ones, each with its value there.

        The values are places on the `Scale` of the objective.
        """
        pairs = level.pairs if limit is None or len(level.pairs) <= limit else self.ranked(level)[:limit]
        maximized = self.objective.mode == "max"
        study = GivenStudy(StudyDirection.MAXIMIZE if maximized else StudyDirection.MINIMIZE)
        for trial, value in pairs:
            params = {name: value for name, value in trial.params.items() if name in self.space}
            distributions = {name: self.space[name] for name in params}
            place = self.scale.place(value)
            study.add_trial(create_trial(value=place, params=params, distributions=distributions))
        return study

    def importance(self, level: Level) -> Importance:
        """Measure the importance of the hyper-parameters at a level, see `measure_importance`.

        At a rung the length of a training is left out: it has made no difference yet.
        """
        names = [name for name in self.variable if level.epoch is None or name != LENGTH]
        rounds = FEWER if level is not self.level or len(level.trials) > MANY else ROUNDS
        if level.name not in self._importances:
            self._importances[level.name] = self.tried(
                "the importance",
                lambda: measure_importance(level, names, lambda: self.study(level), rounds=rounds),
                Importance(level=level, shares=[], lone={}, rounds=0, failed=True),
            )
        return self._importances[level.name]
