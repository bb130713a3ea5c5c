"""Hands the trials of a search to a tracker, from a thread of its own.

A tracker that is slow or down holds nothing up: of each trial only the newest record waits for it, and what
it could not take is tried again, at the end of the search for the last time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from textwrap import shorten
from typing import Any

from tune_mnist.run.records import TrialRecord
from tune_mnist.run.words import count, first_line, without_password

RETRY_SECONDS = 30.0
"""Time after a failure in which a tracker is left alone."""
CLOSE_SECONDS = 30.0
"""Longest time that the end of a search waits for a tracker."""
LINE = 200
"""Characters of an error that are told."""


class Tracker:
    """A service that shows each trial as a run.

    The callbacks of `ray.air.integrations` start a run for each Ray trial, which is one attempt at a trial
    here. MLflow's has no way to name a run that exists. W&B's takes the Ray trial's id for the run's, and
    starts an actor for each.
    """

    title: str
    "What people call it."
    where: str
    "Where the runs are, and the command that shows them: one line."

    @staticmethod
    def check() -> None:
        """See that it can be logged to; raises ValueError if not."""

    def open(self) -> None:
        """Connect; called again after it has failed."""

    def update(self, trial: TrialRecord) -> None:
        """Bring the run of a trial up to its record: begin it, log the missing epochs, end it."""

    def close(self) -> None:
        """Leave the runs of the unfinished trials so that a resume continues them."""


class Feed:
    """Hands the records of trials to one tracker. No method raises what the tracker does."""

    def __init__(self, tracker: Tracker, tell: Callable[[str], None]) -> None:
        """Start the thread; ``tell`` takes a line about trouble, and is called by the methods only."""
        self._tracker, self._tell = tracker, tell
        self._pending: dict[str, TrialRecord] = {}
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._trouble, self._told = "", False
        self._thread = threading.Thread(target=self._run, name=tracker.title, daemon=True)
        self._thread.start()

    def update(self, trial: TrialRecord) -> None:
        """Hand on what the ledger says of a trial now."""
        with self._changed:
            self._pending[trial.trial_id] = replace(trial, epochs=list(trial.epochs))
            self._changed.notify()
        if self._trouble and not self._told:
            self._told = True
            self._tell(f"{self._tracker.title}: {self._trouble} (the search continues, and tries it again)")

    def close(self) -> None:
        """Wait until all is handed on, but not for long, and say what was not."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)
        late = f"no answer in {CLOSE_SECONDS:g} s" if self._thread.is_alive() else ""
        if self._pending:
            cause = "" if self._told else f": {self._trouble or late}"
            self._tell(f"{self._tracker.title} is missing {count(len(self._pending), 'trial')}{cause}")
        elif late:
            self._tell(f"{self._tracker.title}: {late}")

    def _run(self) -> None:
        is_open = last = False
        while not last:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing.is_set())
                last, trials = self._closing.is_set(), list(self._pending.values())
            is_open = is_open or self._tried(self._tracker.open)
            taken = [trial for trial in trials if is_open and self._tried(self._tracker.update, trial)]
            with self._changed:
                for trial in taken:
                    if self._pending[trial.trial_id] is trial:
                        del self._pending[trial.trial_id]
            if len(taken) < len(trials):
                self._closing.wait(RETRY_SECONDS)
        self._tried(self._tracker.close)

    def _tried(self, call: Callable[..., None], *arguments: Any) -> bool:
        try:
            call(*arguments)
        except Exception as error:
            self._trouble = shorten(without_password(first_line(error)), LINE, placeholder=" ...")
            return False
        return True
