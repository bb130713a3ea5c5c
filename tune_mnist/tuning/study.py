"""The Optuna study of a run, which draws the trials with Optuna's public ask and tell.

Each session rebuilds it from the ledger, in a new run as in a resumed one: a sampler's random numbers depend
only on the seed and the number of the trial.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from tune_mnist.run.folder import RunFolder, sync
from tune_mnist.run.journal import JOURNAL, Journal, notes
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import EPOCH, InheritedTrial, TrialRecord, trial_state
from tune_mnist.run.settings import Settings
from tune_mnist.run.space import planned_epochs, to_config
from tune_mnist.task import Task
from tune_mnist.tuning.points import first_points
from tune_mnist.tuning.samplers import make_sampler

RAY_TRIAL_ID = "ray_trial_id"
"""User attribute of an Optuna trial: the id of its Ray trial; with several attempts, of the first."""
HAND_SET = "hand_set"
"""User attribute of the Optuna trial that is the task's baseline."""
STOPPED_BY = "stopped_by"
"""User attribute of a trial that was stopped by the end of the search, not by ASHA: the reason."""
INHERITED_FROM, NUMBER_THERE = "inherited_from", "number_there"
"""User attributes of an inherited trial: the name of its run, and its number in that run."""
NUMBER_HERE = "number_here"
"""User attribute of the other trials in a study with inherited ones: the number without those."""


class TrialStudy:
    """Draws trials, and records in ledger and study what they report and how they end.

    The study distinguishes pruned, complete and failed trials; Ray's `OptunaSearch` tells Optuna COMPLETE for
    every trial that a scheduler stops, and never reports the value at which it was stopped.

    The ledger's trials are in the study from the start, inherited ones first; the journal is rebuilt from
    them, and renamed over the old one. Optuna's numbers include the inherited trials; everywhere else, this
    run's trials are numbered from 0.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        space: Mapping[str, BaseDistribution],
        ledger: Ledger,
        folder: RunFolder,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Create the study ``folder.name`` in its ``study.journal``, with the first points enqueued.

        ``tell`` is called with a line of text about what has to be waited for.
        """
        self.ledger = ledger
        self._settings, self._task, self._space, self._folder = settings, task, dict(space), folder
        self._asked: dict[str, Trial] = {}
        "The trials that have not ended."
        self._heard: dict[str, set[int]] = defaultdict(set)
        "Epochs of each that the study knows."
        journal, path = Journal(tell), folder.local / JOURNAL
        storage = JournalStorage(journal)
        self._study = optuna.create_study(
            study_name=folder.name,
            storage=storage,
            sampler=RandomSampler(),
            direction="maximize" if ledger.objective.mode == "max" else "minimize",
        )
        study_id = storage.get_study_id_from_name(folder.name)
        for name, value in notes(path).items():
            storage.set_study_system_attr(study_id, name, value)
        for earlier in ledger.inherited:
            attributes = {INHERITED_FROM: earlier.run, NUMBER_THERE: earlier.number}
            self._study.add_trial(_frozen(earlier, dict(earlier.epochs), attributes, self._space))
        records = sorted(ledger.trials.values(), key=lambda trial: trial.number)
        for record in records:
            if record.state:
                values = {epoch[EPOCH]: epoch[ledger.objective.metric] for epoch in record.epochs}
                self._study.add_trial(_frozen(record, values, self._attributes(record), self._space))
            else:
                self._ask_again(record)
        points = first_points(settings, task, space) if ledger.points is None else ledger.points
        for point in points[len(records) :]:  # the earlier ones have their trials
            self._study.enqueue_trial(dict(point.params), {HAND_SET: True} if point.hand_set else None)
        journal.put_in_place(path)

    def draw(self, trial_id: str) -> TrialRecord:
        """Draw the next trial and record it in ledger and study."""
        number = len(self.ledger.trials)
        settings, space = self._settings, self._space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.sampler = make_sampler(settings.sampler, settings.seed, number, space)
            trial = self._study.ask(space)
        self._asked[trial_id] = trial
        trial.set_user_attr(RAY_TRIAL_ID, trial_id)
        if self.ledger.inherited:
            trial.set_user_attr(NUMBER_HERE, number)
        config = to_config(self._task, trial.params, settings.max_epochs)
        planned, hand_set = planned_epochs(config, settings.max_epochs), HAND_SET in trial.user_attrs
        self.ledger.suggested(trial_id, number, trial.params, config, planned=planned, hand_set=hand_set)
        self._folder.push_ledger()  # before the trial starts: its files must not belong to an unknown trial
        return self.ledger.trials[trial_id]

    def report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record a trial's report of an epoch, unless the trial has ended."""
        if trial_id in self._asked:
            self.ledger.reported(trial_id, result)
            self._catch_up(trial_id)

    def end(self, trial_id: str, *, failed: bool = False) -> None:
        """Record the end of a trial, unless it had already ended."""
        if trial_id in self._asked:
            self._tell(trial_id, self.ledger.ended(trial_id, failed=failed))

    def close(self, reason: str) -> None:
        """End the unfinished trials in the study, and close the ledger.

        In the ledger they stay unfinished: a resume continues them.
        """
        for trial in self.ledger.unfinished():
            self._asked[trial.trial_id].set_user_attr(STOPPED_BY, reason)
            self._tell(trial.trial_id, trial_state(trial.epoch, trial.epochs_planned, failed=False))
        sync(self._folder.local / JOURNAL)
        self.ledger.close(reason)

    def _ask_again(self, record: TrialRecord) -> None:
        """Add an unfinished trial to the study: it gets its old number and parameters."""
        self._study.enqueue_trial(record.params, self._attributes(record))
        self._asked[record.trial_id] = self._study.ask(self._space)
        self._catch_up(record.trial_id)

    def _attributes(self, record: TrialRecord) -> dict[str, Any]:
        attributes: dict[str, Any] = {RAY_TRIAL_ID: record.trial_id}
        if self.ledger.inherited:
            attributes[NUMBER_HERE] = record.number
        if record.hand_set:
            attributes[HAND_SET] = True
        return attributes

    def _tell(self, trial_id: str, state: str) -> None:
        self._catch_up(trial_id)
        last = self.ledger.trials[trial_id].last
        value = last[self.ledger.objective.metric] if state == "COMPLETE" else None
        self._study.tell(self._asked.pop(trial_id), value, state=TrialState[state])
        self._heard.pop(trial_id, None)

    def _catch_up(self, trial_id: str) -> None:
        """Report to the study what the ledger knows of a trial, including what a checkpoint supplied."""
        trial, heard, metric = self._asked[trial_id], self._heard[trial_id], self.ledger.objective.metric
        for epoch in self.ledger.trials[trial_id].epochs:
            if epoch[EPOCH] not in heard:
                heard.add(epoch[EPOCH])
                trial.report(epoch[metric], epoch[EPOCH])


def _frozen(
    trial: TrialRecord | InheritedTrial,
    values: dict[int, float],
    attributes: dict[str, Any],
    space: Mapping[str, BaseDistribution],
) -> FrozenTrial:
    """Make the Optuna trial for an ended one, with its values by epoch and this run's distributions."""
    state = TrialState[trial.state or ""]
    # Not `create_trial`, which has no times. The storage assigns number and id.
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=None if state == TrialState.FAIL else [*values.values()][-1],  # as `tell` does
        datetime_start=datetime.fromtimestamp(trial.started),
        datetime_complete=datetime.fromtimestamp(trial.ended or trial.started),
        params=dict(trial.params),
        distributions={name: space[name] for name in trial.params},
        user_attrs=attributes,
        system_attrs={},
        intermediate_values=values,
    )
