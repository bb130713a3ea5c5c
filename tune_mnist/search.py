"""What proposes trials and what stops them: Optuna behind Ray's searcher interface, and ASHA."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from tune_mnist.hyperparameters import METRIC, MODE, OPTUNA_NUMBER, TIME_ATTR
from tune_mnist.settings import Settings
from tune_mnist.spaces import blog_point, load_space, to_config

JOURNAL = "study.journal"
"""Name of the study's file in the run folder."""
RAY_TRIAL_ID = "ray_trial_id"
"""User attribute of an Optuna trial: the id of its Ray trial."""
HAND_SET = "hand_set"
"""User attribute of the Optuna trial that is the blog's hand-set configuration."""
STOPPED_BY = "stopped_by"
"""User attribute of a trial that was cut by the end of the search, not by ASHA: the reason."""


def trial_state(epochs_trained: int, epochs_planned: int, *, failed: bool) -> str:
    """Name the state of a trial that has ended, as the study and the tables call it.

    COMPLETE: it trained all epochs it was to train. FAIL: it raised, or ended before its first epoch.
    PRUNED: it was stopped in between.
    """
    if failed or epochs_trained == 0:
        return "FAIL"
    return "COMPLETE" if epochs_trained >= epochs_planned else "PRUNED"


class TruthfulOptunaSearch(OptunaSearch):
    """Ray's `OptunaSearch`, with a study that tells pruned, complete and failed trials apart.

    Ray 2.60 tells Optuna COMPLETE, with the cut-off value, for every trial that a scheduler stops, and never
    reports the value at which it was stopped. Here that value is reported and the trial is PRUNED.
    """

    def __init__(self, settings: Settings, run_dir: Path) -> None:
        """Create the study ``run_dir.name`` in ``run_dir/study.journal``; the blog's point goes first."""
        self._max_epochs = settings.max_epochs
        space = load_space(settings.space, settings.max_epochs)
        super().__init__(
            space=space,
            metric=METRIC,
            mode=MODE,
            sampler=make_sampler(settings.sampler, settings.seed),
            study_name=run_dir.name,
            storage=JournalStorage(JournalFileBackend(str(run_dir / JOURNAL))),
        )
        if point := blog_point(space, settings.max_epochs):
            self._study.enqueue_trial(point, user_attrs={HAND_SET: True})

    @property
    def _study(self) -> Study:
        assert self._ot_study is not None  # Ray's constructor makes it where there is a space
        return self._ot_study

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Draw the config of a new trial and note on either side which trial it is on the other."""
        parameters = super().suggest(trial_id) or {}
        trial = self._ot_trials[trial_id]
        trial.set_user_attr(RAY_TRIAL_ID, trial_id)
        return {**to_config(parameters, self._max_epochs), OPTUNA_NUMBER: trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the value of an epoch to the study."""
        if trial_id not in self._completed_trials:
            self._report(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how a trial ended; a call about a trial that has already ended changes nothing."""
        if trial_id in self._completed_trials:
            return
        epochs_trained = 0
        if result and TIME_ATTR in result:
            self._report(trial_id, result)
            epochs_trained = result[TIME_ATTR]
        trial = self._ot_trials[trial_id]
        epochs_planned = to_config(trial.params, self._max_epochs)["epochs"]
        state = trial_state(epochs_trained, epochs_planned, failed=error)
        value = result[METRIC] if result and state == "COMPLETE" else None
        self._study.tell(trial, value, state=TrialState[state])
        self._completed_trials.add(trial_id)

    def close(self, reason: str) -> None:
        """End the trials that the end of the search cut short, of which Ray tells a searcher nothing."""
        for trial_id, trial in self._ot_trials.items():
            if trial_id not in self._completed_trials:
                trial.set_user_attr(STOPPED_BY, reason)
                values = self._intermediate_values(trial.number)
                last = max(values, default=None)
                result = None if last is None else {TIME_ATTR: last, METRIC: values[last]}
                self.on_trial_complete(trial_id, result)

    def _report(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._ot_trials[trial_id]
        if result[TIME_ATTR] not in self._intermediate_values(trial.number):
            trial.report(result[METRIC], result[TIME_ATTR])

    def _intermediate_values(self, number: int) -> dict[int, float]:
        values: dict[int, float] = self._study.get_trials(deepcopy=False)[number].intermediate_values
        return values


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Make one of Optuna's samplers, with Optuna's defaults.

    TPE: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011; multivariate and with constant
    liar by default since Optuna 5, so that concurrent trials don't crowd.
    """
    if name == "tpe":
        return TPESampler(seed=seed)
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "qmc":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Its other warnings are about samplers in several processes, and about choices, which it draws
            # at random; here only the driver samples.
            return QMCSampler(
                seed=seed, scramble=True, warn_asynchronous_seeding=False, warn_independent_sampling=False
            )
    raise ValueError(f"sampler is {name}, but must be one of tpe, random, qmc")


def make_scheduler(settings: Settings) -> ASHAScheduler:
    """Make the asynchronous successive halving of Li et al., "A System for Massively Parallel ...", 2020."""
    return ASHAScheduler(
        time_attr=TIME_ATTR,
        metric=METRIC,
        mode=MODE,
        max_t=settings.max_epochs,
        grace_period=settings.grace_period,
        reduction_factor=settings.reduction_factor,
    )


def rungs(settings: Settings) -> tuple[int, ...]:
    """List the epochs at which ASHA judges a trial: grace_period * reduction_factor^k, up to max_epochs."""
    ratio = settings.max_epochs / settings.grace_period
    # Ray's own count, with its rounding: a test holds this against ASHAScheduler.
    count = int(math.log(ratio) / math.log(settings.reduction_factor) + 1)
    return tuple(math.ceil(settings.grace_period * settings.reduction_factor**k) for k in range(count))
