"""What Ray Tune's loop talks to: a searcher, a scheduler, a stopper and a callback, all using `Attempts`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune_mnist.tuning.attempts import Attempts
from tune_mnist.tuning.trainable import FAILURE

SILENT_LOSS = "Ray has ended it without a word"


class _Stateless:
    """Base of what Ray pickles into its folder, where nothing reads it: the ledger has it all."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class AttemptSearcher(_Stateless, Searcher):
    """Asks for the next attempt, and reports which have ended."""

    def __init__(self, attempts: Attempts) -> None:
        super().__init__(metric=attempts.metric, mode=attempts.ledger.objective.mode)
        self._attempts = attempts

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the config of the next attempt."""
        return self._attempts.suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record an end; of a loss, `AttemptCallback` is notified next, with the error."""
        if not error:
            self._attempts.completed(trial_id, result)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class AttemptScheduler(_Stateless, FIFOScheduler):
    """Starts attempts in order, and stops those that ASHA prunes."""

    def __init__(self, attempts: Attempts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._attempts = attempts

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return whether to stop or continue after a report."""
        stops = self._attempts.stops(trial.trial_id, result)
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)


class AttemptStopper(_Stateless, Stopper):
    """Ends attempts whose training has failed, and all of them when the search must end."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether an attempt has reported its failure."""
        return FAILURE in result

    def stop_all(self) -> bool:
        """Return whether to end all; Ray asks after each step of its loop."""
        return self._attempts.must_end()


class AttemptCallback(_Stateless, Callback):
    """Passes on what Ray's loop sees, and finds the attempts that it has ended silently."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts, self._seen = attempts, 0
        self._open: dict[str, Trial] = {}
        "Ray's trials that have not ended; Ray only appends to its list."

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that an attempt has a process."""
        self._attempts.started(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a report."""
        self._attempts.reported(trial.trial_id, result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a loss."""
        self._attempts.lost(trial.trial_id, _error_of(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Find attempts that have ended silently, and do what depends on time."""
        for trial in trials[self._seen :]:
            self._open[trial.trial_id] = trial
        self._seen = len(trials)
        ended = [trial for trial in self._open.values() if trial.status in (Trial.ERROR, Trial.TERMINATED)]
        for trial in ended:
            del self._open[trial.trial_id]
            self._attempts.lost(trial.trial_id, SILENT_LOSS)  # does nothing if the end is known
        self._attempts.step()


def _error_of(trial: Trial) -> BaseException | str:
    """Return Ray's error about the loss of an attempt, from its files."""
    with suppress(Exception):
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        if isinstance(error, BaseException):
            return error
    with suppress(Exception):
        return str(Path(trial.error_file).read_text().splitlines()[1])
    return "it was lost"
