"""Ray Tune's loop as it should be where processes and nodes are lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from ray.exceptions import RayError, RayTaskError
from ray.tune import tune as tune_module
from ray.tune.error import TuneError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from tune_mnist.trials import TrialSource


class SteadfastController(TuneController):
    """Ray Tune's loop, which tries a trial again when its process or node is lost, and only then.

    Ray's own tries again after any error, but not where the loss comes while a trial is being started in the
    process of an earlier one; such a trial it may even end without a word to the searcher, or forget.
    """

    def _process_trial_failure(self, trial: Trial, exception: Any) -> None:
        if trial.status == Trial.PENDING and trial not in self._trial_to_actor:
            return  # told twice: of the lost process, and of the task in it; by now it waits for a new one
        source: Any = self._search_alg
        assert isinstance(source, TrialSource)
        cause = getattr(exception, "cause", None) or exception
        # An OSError comes of storage that is away for a moment, at least as often as of the trial's own code.
        lost = not isinstance(exception, RayTaskError) or isinstance(cause, (RayError, OSError))
        if lost:
            source.take_in_saved(trial)
        else:
            trial.max_failures = 0  # its own code has raised, and would again
        source.raised(trial.trial_id, next(iter(str(cause).strip().splitlines()), type(cause).__name__))
        self._resetting_trials.discard(trial)
        if trial in self._staged_trials:  # it would wait for a process that another trial leaves, for ever
            self._unstage_trial_with_resources(trial)
        if trial.status == Trial.PENDING:
            self._set_trial_status(trial, Trial.RUNNING)  # as Ray does where a new process is lost
        super()._process_trial_failure(trial, exception)

    def _on_trial_reset(self, trial: Trial, success: bool) -> None:
        if success:
            super()._on_trial_reset(trial, success)
        else:
            self._trial_task_failure(trial, TuneError("the process of an earlier trial could not be reused"))

    def _create_checkpoint_manager(self) -> Any:
        # Ray would write its table of all trials anew at each checkpoint, as num_to_keep is 1: 0.2 ms for
        # each trial that there is. Nothing here reads it before the end, so every 10 s will do.
        manager: Any = super()._create_checkpoint_manager()  # type: ignore[no-untyped-call]
        manager._sync_every_n_trial_checkpoints = None
        return manager

    def _set_trial_status(self, trial: Trial, status: str) -> None:
        super()._set_trial_status(trial, status)
        self._mark_trial_to_checkpoint(trial)  # or Ray's table may keep a lost trial as RUNNING


@contextmanager
def steadfast() -> Iterator[None]:
    """Let `tune.run` use our controller, for a block."""
    with mock.patch.object(tune_module, "TuneController", SteadfastController):
        yield
