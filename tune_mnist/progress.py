"""Counts what a running search has come to, from Ray's callbacks, and hands it on as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.tune import Callback
from ray.tune.experiment import Trial

from tune_mnist.hyperparameters import METRIC, OPTUNA_NUMBER, TIME_ATTR
from tune_mnist.search import trial_state


@dataclass(frozen=True, kw_only=True)
class EndedTrial:
    """How one trial ended."""

    number: int
    state: str
    epochs: int
    epochs_planned: int
    accuracy: float | None
    config: dict[str, Any]


@dataclass(kw_only=True)
class Progress:
    """The counts of a running search."""

    num_samples: int
    deadline: float | None = None
    "When the time budget ends, on the clock of `time.monotonic`."
    running: int = 0
    epochs: int = 0
    ended: list[EndedTrial] = field(default_factory=list)
    best_accuracy: float | None = None
    best_config: dict[str, Any] | None = None
    best_saved_accuracy: float | None = None

    def count(self, state: str) -> int:
        """Count the ended trials of a state."""
        return sum(trial.state == state for trial in self.ended)


class Listener(Protocol):
    """Whoever wants to show a search while it runs."""

    def updated(self, progress: Progress) -> None:
        """Take notice that a count has changed."""

    def trial_ended(self, progress: Progress, trial: EndedTrial) -> None:
        """Take notice of the end of a trial."""


class ProgressCallback(Callback):
    """Keeps a `Progress` up to date, tells a listener, and runs a check after each step of Ray's loop."""

    def __init__(
        self, progress: Progress, listener: Listener | None, check: Callable[[Progress], None]
    ) -> None:
        """Start from ``progress``; ``check`` may end the search."""
        self.progress, self.listener, self.check = progress, listener, check
        self.seen: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Keep nothing: Ray pickles the callbacks into the run folder, and these belong to this process."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Count the running trials and run the check."""
        running = sum(trial.status == Trial.RUNNING for trial in trials)
        if running != self.progress.running:
            self.progress.running = running
            self._updated()
        self.check(self.progress)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Count an epoch."""
        progress = self.progress
        progress.epochs += 1
        if progress.best_accuracy is None or result[METRIC] > progress.best_accuracy:
            progress.best_accuracy, progress.best_config = result[METRIC], _hyperparameters(trial)
        self._updated()

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Any, **info: Any
    ) -> None:
        """Note what is safe on disk: Ray asks for a checkpoint only after it has taken in the report."""
        saved = (trial.last_result or {}).get(METRIC)
        best = self.progress.best_saved_accuracy
        if saved is not None and (best is None or saved > best):
            self.progress.best_saved_accuracy = saved

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial that trained to its end or was cut."""
        self._ended(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial that raised."""
        self._ended(trial, failed=True)

    def _ended(self, trial: Trial, *, failed: bool) -> None:
        if trial.trial_id in self.seen:
            return
        self.seen.add(trial.trial_id)
        last = trial.last_result or {}
        epochs, planned = last.get(TIME_ATTR, 0), trial.config["epochs"]
        ended = EndedTrial(
            number=trial.config[OPTUNA_NUMBER],
            state=trial_state(epochs, planned, failed=failed),
            epochs=epochs,
            epochs_planned=planned,
            accuracy=last.get(METRIC),
            config=_hyperparameters(trial),
        )
        self.progress.ended.append(ended)
        if self.listener:
            self.listener.trial_ended(self.progress, ended)
        self._updated()

    def _updated(self) -> None:
        if self.listener:
            self.listener.updated(self.progress)


def _hyperparameters(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in trial.config.items() if name != OPTUNA_NUMBER}
