"""Counts what a running search has come to, from Ray's callbacks, and hands it on as plain values."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.tune import Callback
from ray.tune.experiment import Trial

from tune_mnist.hyperparameters import METRIC
from tune_mnist.ledger import CHECKPOINT_NAME, Ledger, TrialRecord

LOOK_SECONDS = 2.0
"""Shortest time between two looks at the cluster."""
IDLE_SECONDS = 20.0
"""Time without a running trial after which it is said what the trials wait for; a new process takes 10."""


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
    resumed: int = 0
    "How many of them had ended in an earlier session."
    retries: int = 0
    "How often a trial was lost with its process or node, and tried again."
    waiting: str = ""
    "What the cluster is still to start, in words."
    best_accuracy: float | None = None
    best_config: dict[str, Any] | None = None
    best_saved_accuracy: float | None = None

    def count(self, state: str) -> int:
        """Count the ended trials of a state."""
        return sum(trial.state == state for trial in self.ended)


class Listener(Protocol):
    """Whoever wants to show a search while it runs."""

    def told(self, text: str) -> None:
        """Take notice of something worth a line."""

    def updated(self, progress: Progress) -> None:
        """Take notice that a count has changed."""

    def trial_ended(self, progress: Progress, trial: EndedTrial) -> None:
        """Take notice of the end of a trial."""


class ProgressCallback(Callback):
    """Keeps a `Progress` up to date, tells a listener, and runs a check after each step of Ray's loop."""

    def __init__(
        self,
        progress: Progress,
        ledger: Ledger,
        listener: Listener | None,
        check: Callable[[Progress], None],
        look: Callable[[], str],
    ) -> None:
        """Start from what the ledger has already.

        Args:
            progress: the counts to keep.
            ledger: of the run.
            listener: whom to tell.
            check: called after each step; it may end the search.
            look: says in words what the search waits for; "" where that is nothing.
        """
        self.progress, self.ledger, self.listener, self.check = progress, ledger, listener, check
        self.look, self.look_due, self.idle_since = look, 0.0, time.monotonic()
        progress.ended = [_ended(trial) for trial in ledger.trials.values() if trial.state]
        progress.resumed = len(progress.ended)
        self.seen = {trial.trial_id for trial in ledger.trials.values() if trial.state}
        for trial in ledger.trials.values():
            self._count(trial, trial.epochs)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Count the running trials and run the check."""
        running = sum(trial.status == Trial.RUNNING for trial in trials)
        waiting = self._waiting(running, trials)
        if (running, waiting) != (self.progress.running, self.progress.waiting):
            self.progress.running, self.progress.waiting = running, waiting
            self._updated()
        self.check(self.progress)

    def _waiting(self, running: int, trials: list[Trial]) -> str:
        """Say what trials wait for, in words; "" where they don't."""
        now = time.monotonic()
        if now < self.look_due:
            return self.progress.waiting
        self.look_due = now + LOOK_SECONDS
        if words := self.look():
            return words
        if running or not any(trial.status == Trial.PENDING for trial in trials):
            self.idle_since = now
        return "waiting for a node that has room" if now - self.idle_since > IDLE_SECONDS else ""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Count an epoch."""
        record = self.ledger.trials[trial.trial_id]
        self._count(record, record.epochs[-1:])
        self._updated()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial that trained to its end or was cut."""
        self._trial_ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial that raised."""
        self._trial_ended(trial)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial that was lost and is tried again."""
        self.progress.retries += 1
        self._updated()

    def _count(self, trial: TrialRecord, epochs: list[dict[str, Any]]) -> None:
        progress = self.progress
        progress.epochs = len(self.ledger.order)
        for epoch in epochs:
            accuracy = epoch[METRIC]
            if progress.best_accuracy is None or accuracy > progress.best_accuracy:
                progress.best_accuracy, progress.best_config = accuracy, trial.config
            if epoch.get(CHECKPOINT_NAME) and accuracy > (progress.best_saved_accuracy or 0.0):
                progress.best_saved_accuracy = accuracy

    def _trial_ended(self, trial: Trial) -> None:
        record = self.ledger.trials[trial.trial_id]
        if record.state is None or record.trial_id in self.seen:
            return
        self.seen.add(record.trial_id)
        ended = _ended(record)
        self.progress.ended.append(ended)
        if self.listener:
            self.listener.trial_ended(self.progress, ended)
        self._updated()

    def _updated(self) -> None:
        if self.listener:
            self.listener.updated(self.progress)


def _ended(record: TrialRecord) -> EndedTrial:
    return EndedTrial(
        number=record.number,
        state=record.shown_state,
        epochs=record.epoch,
        epochs_planned=record.epochs_planned,
        accuracy=record.last.get(METRIC),
        config=record.config,
    )
