"""Passes the trials of a search to a tracker, in a separate thread.

A tracker that is slow or down holds nothing up: only the newest record of each trial waits for it, and what
failed is retried, for the last time at the end of the search.
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
"""Time between a tracker's failure and the next attempt."""
CLOSE_SECONDS = 30.0
"""Longest time that the end of a search waits for a tracker."""
LINE = 200
"""Maximum number of characters of an error to show."""


class Tracker:
    """A service that shows each trial as a run.

    The callbacks of `ray.air.integrations` start a run for each Ray trial, which is one attempt at a trial
    here. MLflow's cannot name an existing run. W&B's uses the Ray trial's id as that of the run, and starts
    an actor for each.
    """

    title: str
    "Its display name."
    where: str
    "Where the runs are, and the command that shows them: one line."

    @staticmethod
    def check() -> None:
        """Check that it can be logged to; raise ValueError if not."""

    def open(self) -> None:
        """Connect; called again after a failure."""

    def update(self, trial: TrialRecord) -> None:
        """Bring the run of a trial up to its record: begin it, log the missing epochs, end it."""

    def close(self) -> None:
        """Leave the runs of the unfinished trials so that a resume continues them."""


class Feed:
    """Passes the records of trials to one tracker. No method raises the tracker's errors."""

    def __init__(self, tracker: Tracker, tell: Callable[[str], None]) -> None:
        """Start the thread; ``tell`` is called with a line about trouble, never from that thread."""
        self._tracker, self._tell = tracker, tell
        self._pending: dict[str, TrialRecord] = {}
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._trouble, self._told = "", False
        self._thread = threading.Thread(target=self._run, name=tracker.title, daemon=True)
        self._thread.start()

    def update(self, trial: TrialRecord) -> None:
        """Pass a trial's current record on."""
        with self._changed:
            self._pending[trial.trial_id] = replace(trial, epochs=list(trial.epochs))
            self._changed.notify()
        if self._trouble and not self._told:
            self._told = True
            self._tell(f"{self._tracker.title}: {self._trouble} (the search continues and will retry)")

    def close(self) -> None:
        """Wait a limited time until all is passed on, and tell what is missing."""
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
