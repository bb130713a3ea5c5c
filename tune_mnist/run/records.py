"""What a run consists of: its task, its trials, those inherited from earlier runs, its first points."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tune_mnist.task import Objective

CHECKPOINT_NAME = "checkpoint_dir_name"
"""Key of a reported epoch: the folder of the checkpoint that was saved with it, or None."""
RUNNING = "RUNNING"
"""State of a trial that has not ended, in a run that has not been closed."""


OPTUNA_NUMBER = "optuna_trial_number"
"""Key in the config of a Ray trial, besides the hyper-parameters: its number, from 0, in the run."""
ATTEMPT = "attempt"
"""Another key: what this attempt at the trial needs, such as the trial's folder and checkpoint."""


TRIAL_COLUMNS = {
    **{"trial_id": "string", "number": "int64", "state": "string", "epochs_trained": "int64"},
    **{"epochs_planned": "int64", "seconds": "float64", "node": "string"},
}
"""Columns of the table of trials, with pandas types, besides reported values and hyper-parameters."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What the ledger keeps of a task, so that a run can be read without the task's code."""

    name: str
    objective: Objective
    data: str = ""
    "The training data, in words."
    validation_examples: int | None = None
    "Number of examples on which the metric is measured."
    tables: Sequence[str] = ()
    "Other reported values that the tables show."
    defaults: Mapping[str, Any] = field(default_factory=dict)
    "Values of what the space does not draw."
    wider: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    "For each range of the space, whether values below its low end, and above its high end, could be trained."

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskFacts:
        """Read what `dataclasses.asdict` wrote."""
        return cls(**{**values, "objective": Objective(**values["objective"])})


@functools.cache
def legacy_task() -> TaskFacts:
    """Return the task of runs by older versions, whose ledgers do not name it."""
    facts: TaskFacts = importlib.import_module("tune_mnist.mnist.facts").FACTS
    return facts


def trial_state(epochs_trained: int, epochs_planned: int, *, failed: bool) -> str:
    """Return the state of a trial that has ended, as in the study and the tables.

    COMPLETE: it trained all planned epochs. FAIL: it raised, or ended before its first epoch.
    PRUNED: it was stopped in between.
    """
    if failed or epochs_trained == 0:
        return "FAIL"
    return "COMPLETE" if epochs_trained >= epochs_planned else "PRUNED"


EPOCH = "epoch"
"""Key of a report: epochs trained, from 1, whatever the task calls its progress."""


@dataclass(kw_only=True)
class TrialRecord:
    """What the ledger knows about one trial."""

    trial_id: str
    "The id of its Ray trial; each attempt is a Ray trial, and this is the id of the first."
    number: int
    "Its index in the run, from 0; in the study, its index among the trials that were not inherited."
    params: dict[str, Any]
    "Parameters drawn, in the terms of the search space."
    config: dict[str, Any]
    "The configuration to train that they were turned into."
    started: float
    "When it was suggested: seconds since 1970, like all times here."
    hand_set: bool = False
    "Whether it is the task's baseline."
    planned: int | None = None
    "Epochs to train; None in the ledgers of older versions."
    epochs: list[dict[str, Any]] = field(default_factory=list)
    "What it reported for each epoch, in order, without duplicates."
    state: str | None = None
    "COMPLETE, PRUNED or FAIL once it has ended."
    ended: float | None = None
    stopped_by: str | None = None
    "What closed the run before this trial had ended."
    error: str | None = None
    "First line of the last error: what it raised, or why it was lost."
    attempts: int = 0
    "How often it was submitted to Ray; 0 in the ledgers of older versions."
    lost: int = 0
    "Attempts of this session that were lost with their process or node."

    @property
    def last(self) -> dict[str, Any]:
        """Its last report; {} before the first."""
        return self.epochs[-1] if self.epochs else {}

    @property
    def epoch(self) -> int:
        """Epochs trained."""
        return int(self.last.get(EPOCH, 0))

    @property
    def epochs_planned(self) -> int:
        """Epochs to train."""
        return int(self.config["epochs"]) if self.planned is None else self.planned

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train: it reported the last epoch, or was told to stop."""
        return bool(self.last.get("done")) or self.epoch >= self.epochs_planned

    @property
    def shown_state(self) -> str:
        """Its state for people: RUNNING only if the run was not closed."""
        if self.state is None and self.stopped_by is None:
            return RUNNING
        return self.state or trial_state(self.epoch, self.epochs_planned, failed=False)

    @property
    def directory(self) -> str:
        """Name of its folder in the run folder."""
        return f"trial_{self.number:05d}_{self.trial_id}"

    @property
    def saved(self) -> list[dict[str, Any]]:
        """Its reports with a checkpoint, whether that was kept or not."""
        return [epoch for epoch in self.epochs if epoch.get(CHECKPOINT_NAME)]

    def find(self, epoch: int) -> dict[str, Any] | None:
        """Return its report of an epoch, counted from 1; None if there is none."""
        return next((report for report in self.epochs if report[EPOCH] == epoch), None)


@dataclass(frozen=True, kw_only=True)
class InheritedTrial:
    """A trial of an earlier run, which may have been deleted since."""

    run: str
    "Name of that run."
    number: int
    "Number of the trial in that run, from 0."
    state: str
    "COMPLETE or PRUNED."
    params: Mapping[str, Any]
    "Parameters drawn, in the terms of the search space."
    epochs: Sequence[tuple[int, float]]
    "Epoch, from 1, and the metric, in order; at least one."
    started: float
    "Seconds since 1970, like `ended`."
    ended: float

    @property
    def value(self) -> float:
        """Its metric: that of its last epoch."""
        return self.epochs[-1][1]


@dataclass(frozen=True, kw_only=True)
class FirstPoint:
    """What a trial must try, instead of what the sampler would draw."""

    params: Mapping[str, Any]
    "In the terms of the search space; the sampler draws what is left out."
    hand_set: bool = False
    "Whether it is the task's baseline."


def ray_config(trial: TrialRecord) -> dict[str, Any]:
    """Return the config of the trial's Ray trial."""
    return {**trial.config, OPTUNA_NUMBER: trial.number}
