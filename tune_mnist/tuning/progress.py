"""Counts the results of a running search, and passes them on as plain values."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import CHECKPOINT_NAME, TrialRecord
from tune_mnist.task import Objective
from tune_mnist.tuning.trackers.feed import Feed

LOOK_SECONDS = 2.0
"""Minimum time between two queries of the cluster."""
IDLE_SECONDS = 20.0
"""Time without a running trial before showing what trials wait for; a new process takes 10."""


@dataclass(frozen=True, kw_only=True)
class EndedTrial:
    """How one trial ended."""

    number: int
    state: str
    epochs: int
    epochs_planned: int
    value: float | None
    "Its metric at the end."
    config: dict[str, Any]


@dataclass(kw_only=True)
class Progress:
    """The counts of a running search."""

    num_samples: int
    objective: Objective
    deadline: float | None = None
    "When the time budget ends, on the clock of `time.monotonic`."
    running: int = 0
    epochs: int = 0
    ended: list[EndedTrial] = field(default_factory=list)
    resumed: int = 0
    "How many of ``ended`` ended in an earlier session."
    retries: int = 0
    "How often a trial was lost with its process or node, and retried."
    waiting: str = ""
    "What the search waits for, in words."
    best_value: float | None = None
    best_config: dict[str, Any] | None = None
    best_saved_value: float | None = None
    "Best value of a report with a checkpoint."

    def count(self, state: str) -> int:
        """Count the ended trials in a state."""
        return sum(trial.state == state for trial in self.ended)


class Listener:
    """Base class for whatever shows a running search; this one shows nothing."""

    def on_message(self, text: str) -> None:
        """Handle a message of one line."""

    def on_progress(self, progress: Progress) -> None:
        """Handle a changed count."""

    def on_trial_end(self, progress: Progress, trial: EndedTrial) -> None:
        """Handle the end of a trial."""


class ProgressKeeper:
    """Keeps a `Progress` up to date, and notifies a listener and trackers."""

    def __init__(
        self,
        progress: Progress,
        ledger: Ledger,
        listener: Listener,
        look: Callable[[bool], str],
        feeds: Sequence[Feed] = (),
    ):
        """Start from what the ledger already has.

        ``look`` returns in words what the search waits for, "" if nothing; its argument is whether no trial
        has run for a while.
        """
        self.feeds = feeds
        self.progress, self.ledger, self.listener = progress, ledger, listener
        self.look, self.look_due, self.idle_since = look, 0.0, time.monotonic()
        progress.ended = [self._ended(trial) for trial in ledger.trials.values() if trial.state]
        progress.resumed = len(progress.ended)
        for trial in ledger.trials.values():
            self._count(trial, trial.epochs)
            self.feed(trial)

    def stepped(self, *, running: int, pending: int) -> None:
        """Update the numbers of attempts that run, and that wait for a process."""
        waiting = self._waiting(running, pending)
        if (running, waiting) != (self.progress.running, self.progress.waiting):
            self.progress.running, self.progress.waiting = running, waiting
            self.listener.on_progress(self.progress)

    def feed(self, trial: TrialRecord) -> None:
        """Pass a trial's current record on to the trackers."""
        for feed in self.feeds:
            feed.update(trial)

    def reported(self, trial: TrialRecord) -> None:
        """Count an epoch."""
        self.feed(trial)
        self._count(trial, trial.epochs[-1:])
        self.listener.on_progress(self.progress)

    def lost(self) -> None:
        """Count a trial that was lost and will be retried."""
        self.progress.retries += 1
        self.listener.on_progress(self.progress)

    def ended(self, trial: TrialRecord) -> None:
        """Count the end of a trial."""
        self.feed(trial)
        ended = self._ended(trial)
        self.progress.ended.append(ended)
        self.listener.on_trial_end(self.progress, ended)
        self.listener.on_progress(self.progress)

    def _waiting(self, running: int, pending: int) -> str:
        """Return what trials wait for, in words; "" if nothing."""
        now = time.monotonic()
        if now < self.look_due:
            return self.progress.waiting
        self.look_due = now + LOOK_SECONDS
        if running or not pending:
            self.idle_since = now
        return self.look(now - self.idle_since > IDLE_SECONDS)

    def _count(self, trial: TrialRecord, epochs: list[dict[str, Any]]) -> None:
        progress = self.progress
        progress.epochs = len(self.ledger.order)
        objective = progress.objective
        for epoch in epochs:
            value = epoch[objective.metric]
            if progress.best_value is None or objective.sign * (value - progress.best_value) > 0:
                progress.best_value, progress.best_config = value, trial.config
            if epoch.get(CHECKPOINT_NAME):
                known = [] if progress.best_saved_value is None else [progress.best_saved_value]
                progress.best_saved_value = objective.best([*known, value])

    def _ended(self, record: TrialRecord) -> EndedTrial:
        return EndedTrial(
            number=record.number,
            state=record.shown_state,
            epochs=record.epoch,
            epochs_planned=record.epochs_planned,
            value=record.last.get(self.progress.objective.metric),
            config=record.config,
        )
