"""What proposes trials and what stops them: Optuna behind Ray's searcher interface, and ASHA.

Both are made from the ledger, of a new run as of a resumed one: a sampler's random numbers depend on the seed
and the number of the trial alone, and ASHA's rungs are what the reports so far make of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from tune_mnist.folder import RunFolder, sync
from tune_mnist.hyperparameters import FAILURE, METRIC, MODE, OPTUNA_NUMBER, TIME_ATTR
from tune_mnist.inherited import InheritedTrial
from tune_mnist.journal import JOURNAL as JOURNAL
from tune_mnist.journal import Journal, notes
from tune_mnist.ledger import Ledger, TrialRecord, trial_state
from tune_mnist.points import first_points
from tune_mnist.rungs import OrderedBracket
from tune_mnist.samplers import make_sampler
from tune_mnist.settings import Settings
from tune_mnist.spaces import to_config

RAY_TRIAL_ID = "ray_trial_id"
"""User attribute of an Optuna trial: the id of its Ray trial."""
HAND_SET = "hand_set"
"""User attribute of the Optuna trial that is the blog's hand-set configuration."""
STOPPED_BY = "stopped_by"
"""User attribute of a trial that was cut by the end of the search, not by ASHA: the reason."""
INHERITED_FROM, NUMBER_THERE = "inherited_from", "number_there"
"""User attributes of an inherited trial: the name of its run, and its number there."""
NUMBER_HERE = "number_here"
"""User attribute of the other trials of a study that has inherited ones: the number without those."""


class TruthfulOptunaSearch(OptunaSearch):
    """Ray's `OptunaSearch`, with a study that tells pruned, complete and failed trials apart.

    Ray 2.60 tells Optuna COMPLETE, with the cut-off value, for every trial that a scheduler stops, and never
    reports the value at which it was stopped. Here that value is reported and the trial is PRUNED.

    The ledger's trials are in the study from the start, inherited ones first; the journal is made anew from
    them, and renamed over the old one. Optuna numbers this run's trials on from the inherited ones, all else
    from 0. Nothing is proposed while ``settings.max_concurrent_trials`` trials have not ended.
    """

    def __init__(
        self, settings: Settings, space: Mapping[str, BaseDistribution], ledger: Ledger, folder: RunFolder
    ) -> None:
        """Create the study ``folder.name`` in its ``study.journal``; the first points are waiting in it."""
        self._settings, self._ledger, self._folder = settings, ledger, folder
        journal, path = Journal(), folder.local / JOURNAL
        self._heard: dict[str, set[int]] = defaultdict(set)
        "By trial that has not ended: the epochs that the study knows."
        super().__init__(
            space=dict(space),
            metric=METRIC,
            mode=MODE,
            sampler=make_sampler(settings.sampler, settings.seed, 0),
            study_name=folder.name,
            storage=JournalStorage(journal),
        )
        for name, value in notes(path).items():
            self._study._storage.set_study_system_attr(self._study._study_id, name, value)
        records = sorted(ledger.trials.values(), key=lambda trial: trial.number)
        inherited = [_inherited(trial, space) for trial in ledger.inherited]
        self._study.add_trials([*inherited, *(_own(trial, space, len(inherited)) for trial in records)])
        trials = self._study.get_trials(deepcopy=False)[len(inherited) :]
        for frozen, record in zip(trials, records, strict=True):
            self._ot_trials[record.trial_id] = Trial(self._study, frozen._trial_id)
            if record.state:
                self._completed_trials.add(record.trial_id)
            else:
                self._heard[record.trial_id] = {epoch[TIME_ATTR] for epoch in record.epochs}
        points = first_points(settings, space) if ledger.points is None else ledger.points
        for point in points[len(records) :]:  # the others have had their trials
            self._study.enqueue_trial(dict(point.params), {HAND_SET: True} if point.hand_set else None)
        journal.put_in_place(path)

    @property
    def _study(self) -> Study:
        assert self._ot_study is not None  # Ray's constructor makes it where there is a space
        return self._ot_study

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Draw the config of a new trial and note on either side which trial it is on the other."""
        if len(self._ot_trials) - len(self._completed_trials) >= (self._settings.max_concurrent_trials or 1):
            return None
        number = len(self._ot_trials)
        settings = self._settings
        self._study.sampler = make_sampler(settings.sampler, settings.seed, number)
        parameters = super().suggest(trial_id) or {}
        trial = self._ot_trials[trial_id]
        trial.set_user_attr(RAY_TRIAL_ID, trial_id)
        if self._ledger.inherited:
            trial.set_user_attr(NUMBER_HERE, number)
        config = to_config(parameters, self._settings.max_epochs)
        self._ledger.suggested(trial_id, number, parameters, config, hand_set=HAND_SET in trial.user_attrs)
        self._folder.push_ledger()  # before the trial starts: its files shall not be of a trial unknown
        return {**config, OPTUNA_NUMBER: number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the value of an epoch to the study; a failure comes with the trial's end only."""
        if trial_id not in self._completed_trials:
            self._report(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how a trial ended; a call about a trial that has already ended changes nothing."""
        if trial_id in self._completed_trials:
            return
        diverged = result is not None and FAILURE in result
        if result and TIME_ATTR in result and not diverged:
            self._report(trial_id, result)
        state = self._ledger.ended(trial_id, failed=error or diverged)
        self._tell(trial_id, state)

    def close(self, reason: str) -> None:
        """End in the study what the end of the session has cut short, and close the ledger.

        In the ledger such trials are unended: a resume goes on with them.
        """
        for trial in self._ledger.unended():
            self._ot_trials[trial.trial_id].set_user_attr(STOPPED_BY, reason)
            self._tell(trial.trial_id, trial_state(trial.epoch, trial.epochs_planned, failed=False))
        sync(self._folder.local / JOURNAL)
        self._ledger.close(reason)

    def _tell(self, trial_id: str, state: str) -> None:
        self._catch_up(trial_id)
        last = self._ledger.trials[trial_id].last
        value = last[METRIC] if state == "COMPLETE" else None
        self._study.tell(self._ot_trials[trial_id], value, state=TrialState[state])
        self._completed_trials.add(trial_id)
        self._heard.pop(trial_id, None)

    def _report(self, trial_id: str, result: dict[str, Any]) -> None:
        self._ledger.reported(trial_id, result)
        self._catch_up(trial_id)

    def _catch_up(self, trial_id: str) -> None:
        # Ray sends the report at which a trial is stopped with its end only. Where its process is lost in
        # between, the ledger has that report and the study would never get it.
        trial = self._ot_trials[trial_id]
        heard = self._heard[trial_id]
        for epoch in self._ledger.trials[trial_id].epochs:
            if epoch[TIME_ATTR] not in heard:
                heard.add(epoch[TIME_ATTR])
                trial.report(epoch[METRIC], epoch[TIME_ATTR])


class SteadfastASHA(ASHAScheduler):
    """Ray's ASHA, which stands by its verdicts: a trial that it has stopped and that is run again is stopped.

    Ray's forgets, and lets a trial that was lost between the verdict and its end go on for good. It starts
    from the reports in a ledger, judged in their order, so its rungs are those of the whole run.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        super().__init__(
            time_attr=TIME_ATTR,
            metric=METRIC,
            mode=MODE,
            max_t=settings.max_epochs,
            grace_period=settings.grace_period,
            reduction_factor=settings.reduction_factor,
        )
        limits = settings.grace_period, settings.max_epochs, settings.reduction_factor
        self._brackets = [OrderedBracket(*limits, 0, stop_last_trials=True)]
        self.stopped: dict[str, int] = {}
        "Epoch of the verdict by trial."
        for trial_id in ledger.trials:
            self.on_trial_add(cast(Any, None), cast(Any, SimpleNamespace(trial_id=trial_id)))
        for trial_id, epoch in ledger.order:
            result = ledger.trials[trial_id].find(epoch)
            assert result is not None  # it is the line that the order was made from
            self.on_trial_result(cast(Any, None), cast(Any, SimpleNamespace(trial_id=trial_id)), result)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Judge a report: CONTINUE or STOP. One of a failure says that the trial is over, and is no value."""
        if FAILURE in result or result[TIME_ATTR] >= self.stopped.get(trial.trial_id, math.inf):
            return str(TrialScheduler.STOP)
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self.stopped[trial.trial_id] = result[TIME_ATTR]
        return str(action)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take a trial's last value into its rung, where there is one."""
        if FAILURE not in result:
            super().on_trial_complete(tune_controller, trial, result)


def rungs(settings: Settings) -> tuple[int, ...]:
    """List the epochs at which ASHA judges a trial: grace_period * reduction_factor^k, up to max_epochs.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020.
    """
    ratio = settings.max_epochs / settings.grace_period
    # Ray's own count, with its rounding: a test holds this against ASHAScheduler.
    count = int(math.log(ratio) / math.log(settings.reduction_factor) + 1)
    return tuple(math.ceil(settings.grace_period * settings.reduction_factor**k) for k in range(count))


def _own(trial: TrialRecord, space: Mapping[str, BaseDistribution], inherited: int) -> FrozenTrial:
    """Make the Optuna trial that the ledger tells of: RUNNING where it has not ended."""
    state = TrialState[trial.state or "RUNNING"]
    attributes: dict[str, Any] = {RAY_TRIAL_ID: trial.trial_id}
    if inherited:
        attributes[NUMBER_HERE] = trial.number
    if trial.hand_set:
        attributes[HAND_SET] = True
    has_value = state not in (TrialState.FAIL, TrialState.RUNNING)  # as `tell` does
    return _frozen(
        space,
        trial.params,
        state=state,
        value=trial.last[METRIC] if has_value else None,
        intermediate_values={epoch[TIME_ATTR]: epoch[METRIC] for epoch in trial.epochs},
        user_attrs=attributes,
        datetime_start=datetime.fromtimestamp(trial.started),
        datetime_complete=datetime.fromtimestamp(trial.ended) if trial.ended else None,
    )


def _inherited(trial: InheritedTrial, space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """Make the Optuna trial of an earlier run's trial, with the distributions of this run."""
    return _frozen(
        space,
        trial.params,
        state=TrialState[trial.state],
        value=trial.value,
        intermediate_values=dict(trial.epochs),
        user_attrs={INHERITED_FROM: trial.run, NUMBER_THERE: trial.number},
        datetime_start=datetime.fromtimestamp(trial.started),
        datetime_complete=datetime.fromtimestamp(trial.ended),
    )


def _frozen(space: Mapping[str, BaseDistribution], params: Mapping[str, Any], **values: Any) -> FrozenTrial:
    distributions = {name: space[name] for name in params}
    # The storage gives it number and id.
    return FrozenTrial(
        number=-1, trial_id=-1, params=dict(params), distributions=distributions, system_attrs={}, **values
    )
