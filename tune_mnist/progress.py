"""Counts the results of a running search, and hands them on as plain values."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class ProgressKeeper:
    """Keeps a `Progress` up to date, and tells a listener."""

    def __init__(
        self, progress: Progress, ledger: Ledger, listener: Listener | None, look: Callable[[], str]
    ):
        """Start from what the ledger has already.

        Args:
            progress: the counts to keep.
            ledger: of the run.
            listener: whom to tell.
            look: says in words what the search waits for; "" where that is nothing.
        """
        self.progress, self.ledger, self.listener = progress, ledger, listener
        self.look, self.look_due, self.idle_since = look, 0.0, time.monotonic()
        progress.ended = [_ended(trial) for trial in ledger.trials.values() if trial.state]
        progress.resumed = len(progress.ended)
        for trial in ledger.trials.values():
            self._count(trial, trial.epochs)

    def stepped(self, *, running: int, pending: int) -> None:
        """Take the numbers of attempts that run, and that wait for a process."""
        waiting = self._waiting(running, pending)
        if (running, waiting) != (self.progress.running, self.progress.waiting):
            self.progress.running, self.progress.waiting = running, waiting
            self._updated()

    def reported(self, trial: TrialRecord) -> None:
        """Count an epoch."""
        self._count(trial, trial.epochs[-1:])
        self._updated()

    def lost(self) -> None:
        """Count a trial that was lost and is tried again."""
        self.progress.retries += 1
        self._updated()

    def ended(self, trial: TrialRecord) -> None:
        """Count the end of a trial."""
        ended = _ended(trial)
        self.progress.ended.append(ended)
        if self.listener:
            self.listener.trial_ended(self.progress, ended)
        self._updated()

    def tell(self, text: str) -> None:
        """Say something worth a line."""
        if self.listener:
            self.listener.told(text)

    def _waiting(self, running: int, pending: int) -> str:
        """Say what trials wait for, in words; "" where they don't."""
        now = time.monotonic()
        if now < self.look_due:
            return self.progress.waiting
        self.look_due = now + LOOK_SECONDS
        if words := self.look():
            return words
        if running or not pending:
            self.idle_since = now
        return "waiting for a node that has room" if now - self.idle_since > IDLE_SECONDS else ""

    def _count(self, trial: TrialRecord, epochs: list[dict[str, Any]]) -> None:
        progress = self.progress
        progress.epochs = len(self.ledger.order)
        for epoch in epochs:
            accuracy = epoch[METRIC]
            if progress.best_accuracy is None or accuracy > progress.best_accuracy:
                progress.best_accuracy, progress.best_config = accuracy, trial.config
            if epoch.get(CHECKPOINT_NAME) and accuracy > (progress.best_saved_accuracy or 0.0):
                progress.best_saved_accuracy = accuracy

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
