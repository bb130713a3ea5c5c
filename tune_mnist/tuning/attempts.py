"""Attempts at trials: what Ray Tune is given to run, what it is told, and what becomes of what it loses.

A trial is a number in the ledger. A Ray trial is one attempt at it. Ray never retries (``max_failures=0``):
an attempt that is lost with its process or node is handed out again as a new Ray trial, with the trial's
newest checkpoint, by the same searcher and in the same ``fit()``. A resume is the same thing. Ray's own
retries lose trials whose process dies while it is being reused, or end them without a word.
"""

from __future__ import annotations

import re
import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.tune.search import Searcher

from tune_mnist.run.checkpoints import CheckpointKeeper, take_in_trial
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import ATTEMPT, CHECKPOINT_NAME, EPOCH, TrialRecord, ray_config
from tune_mnist.run.settings import Settings
from tune_mnist.run.words import first_line
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.progress import ProgressKeeper
from tune_mnist.tuning.stop import StopRequest
from tune_mnist.tuning.study import TrialStudy
from tune_mnist.tuning.trainable import FAILURE, SAVED, TRACEBACK
from tune_mnist.tuning.trial_files import TrialFiles

SLOWEST = 10.0
"""How many times as long as the slowest epoch so far nothing may be heard of a trial that trains."""
LOAD_ERROR = re.compile(
    r"(?:failed to import on the worker.*?\n|System error: [^\n]*\ntraceback: )Traceback.*?\n(\w[^\n]*)",
    re.DOTALL,
)
"""Where Ray's text about a lost attempt has what a process raised that imported the trial or its task."""
LOAD_ERRORS = 3
"""Fewest attempts in a row that cannot be imported before a search gives up."""


@dataclass
class _Attempt:
    trial: TrialRecord
    started: bool = False
    "Whether it has a process."


class Attempts:
    """The attempts of a search that are under way."""

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        study: TrialStudy,
        asha: ASHA,
        progress: ProgressKeeper,
        stop: StopRequest,
    ) -> None:
        """Start from the ledger of the study."""
        self.settings, self.folder, self.study, self.ledger = settings, folder, study, study.ledger
        self.asha, self.progress, self.stop = asha, progress, stop
        self.keeper = CheckpointKeeper(folder, self.ledger, settings.keep_checkpoints)
        self.metric = self.ledger.objective.metric
        self.files = TrialFiles(folder, self.metric)
        self.live: dict[str, _Attempt] = {}
        "By the id of their Ray trials."
        self.waiting: deque[TrialRecord] = deque()
        "Unfinished trials of which there is no attempt."
        self.stalled = False
        "Whether this round is ended for want of any sign of life."
        self.heard = time.monotonic()
        self.load_error = ""
        "Why the last attempt that a process could not import was lost."
        self._load_errors = 0
        "Such losses since an attempt last reported something."
        self._stalls = 0
        self._slowest = max(
            (
                float(epoch["epoch_seconds"])
                for trial in self.ledger.trials.values()
                for epoch in trial.epochs
                if "epoch_seconds" in epoch
            ),
            default=0.0,
        )

    @property
    def unfinished(self) -> bool:
        """Whether there is a trial that has not ended, or still to be drawn."""
        return bool(self.ledger.unended()) or len(self.ledger.trials) < self.settings.num_samples

    @property
    def cannot_load(self) -> bool:
        """Whether the last attempts, as many as may run concurrently, could not be imported anywhere."""
        return not self.live and self._load_errors >= max(self._slots, LOAD_ERRORS)

    @property
    def _slots(self) -> int:
        return self.settings.max_concurrent_trials or 1

    def begin_round(self) -> None:
        """Take back what an earlier call of ``fit()`` has left under way; it does not count as lost."""
        self.live.clear()
        self.waiting = deque(sorted(self.ledger.unended(), key=lambda trial: trial.number))
        self.stalled, self.heard = False, time.monotonic()

    def suggest(self, attempt: str) -> dict[str, Any] | str | None:
        """Give the config of the next attempt, or None, or that there will be none.

        None is for while an attempt is under way only: with none, Ray would wait for minutes and ask nobody.
        """
        if self.stop.reason or self.stalled or self.cannot_load:
            return Searcher.FINISHED
        # The room of an attempt that could not be imported may be on a node that would lose the next one too.
        if self.live and len(self.live) + self._load_errors >= self._slots:
            return None
        trial, resume_from = self._next(attempt)
        if trial is None:
            return None if self.live else Searcher.FINISHED
        self.ledger.attempted(trial.trial_id, attempt, resume_from)
        self.live[attempt] = _Attempt(trial)
        self.heard = time.monotonic()
        needed = {"number": trial.attempts, "directory": trial.directory, "resume_from": resume_from}
        return {**ray_config(trial), ATTEMPT: needed}

    def _next(self, attempt: str) -> tuple[TrialRecord | None, str | None]:
        while self.waiting:
            trial = self.waiting.popleft()
            known = len(trial.epochs)
            resume_from = take_in_trial(self.folder, self.ledger, trial)
            for epoch in trial.epochs[known:]:  # which were saved, but never heard of
                self.asha.stops(trial.trial_id, epoch[EPOCH], epoch[self.metric])
                self.progress.reported(trial)
            if not self._end_if_over(trial):
                self.files.begin(trial)
                return trial, resume_from
        if len(self.ledger.trials) < self.settings.num_samples:
            return self.study.draw(attempt), None
        return None, None

    def started(self, attempt: str) -> None:
        """Take note that an attempt has a process."""
        self.heard = time.monotonic()
        if attempt in self.live:
            self.live[attempt].started = True

    def stops(self, attempt: str, result: dict[str, Any]) -> bool:
        """Judge a report."""
        if attempt not in self.live:
            return False
        trial = self.live[attempt].trial
        return self.asha.stops(trial.trial_id, result[EPOCH], result[self.metric])

    def reported(self, attempt: str, result: dict[str, Any]) -> None:
        """Write a report down, or what training has failed of."""
        self.heard = time.monotonic()
        if attempt not in self.live:
            return
        self._load_errors = 0
        trial = self.live[attempt].trial
        if FAILURE in result:
            self.ledger.raised(trial.trial_id, result[FAILURE])
            self.files.raised(trial, result.get(TRACEBACK) or result[FAILURE])
            return
        report = {key: value for key, value in result.items() if key not in (SAVED, "training_iteration")}
        report |= {CHECKPOINT_NAME: result.get(SAVED), "training_iteration": result[EPOCH]}
        known = len(trial.epochs)
        self.study.report(trial.trial_id, report)
        self._slowest = max(self._slowest, float(result.get("epoch_seconds", 0.0)))
        if len(trial.epochs) > known:
            self.files.reported(trial)
        if report[CHECKPOINT_NAME]:
            self.keeper.saved(trial)
        self.progress.reported(trial)

    def completed(self, attempt: str, result: dict[str, Any] | None) -> None:
        """Write down that a trial has ended, as all do that Ray or their own code stops."""
        if attempt in self.live:
            self._end(self.live.pop(attempt).trial, failed=FAILURE in (result or {}))

    def lost(self, attempt: str, error: BaseException | str) -> None:
        """Write down that an attempt was lost; its trial is tried again, unless that was once too often.

        What training itself has raised out of its process would be raised again: that is the trial's end.
        That a process could not import it is no fault of the trial, and does not count.
        """
        if attempt not in self.live:
            return
        trial = self.live.pop(attempt).trial
        if self.stalled or self.stop.reason:  # Ray ends what is under way, and says so to nobody
            return
        cause = getattr(error, "cause", None) or error
        text = cause if isinstance(cause, str) else first_line(cause)
        details = error if isinstance(error, str) else "".join(traceback.format_exception(error))
        self.files.raised(trial, details)
        if load_error := LOAD_ERROR.search(details):
            self._load_errors += 1
            if load_error[1] != self.load_error:
                self.load_error = load_error[1]
                self.progress.tell(f"a worker cannot import what a trial needs: {self.load_error}")
            self.ledger.raised(trial.trial_id, self.load_error)
            self.waiting.appendleft(trial)
            return
        if isinstance(error, RayTaskError) and not isinstance(cause, RayError | OSError):
            self.ledger.raised(trial.trial_id, text)
            self._end(trial, failed=True)
            return
        self.ledger.lost(trial.trial_id, attempt, text)
        if self._end_if_over(trial):
            return
        if trial.lost > self.settings.max_failures:
            self._end(trial, failed=True)
            return
        self.waiting.appendleft(trial)
        self.progress.lost()

    def step(self) -> None:
        """Look at what goes by the clock: the time budget, copies into a bucket, what is shown."""
        running = sum(attempt.started for attempt in self.live.values())
        self.progress.stepped(running=running, pending=len(self.live) - running)
        self.stop.check(self.progress.progress)
        self.folder.push()

    def must_end(self) -> bool:
        """Tell Ray's loop whether to end now: for a reason to stop, or because nothing moves any more."""
        if not self.stalled and self.live and self._is_silent():
            self.stalled = True
            self._stalls += 1
            self.ledger.broke(f"nothing was heard of {len(self.live)} attempts")
        return self.stalled or self.cannot_load or self.stop.reason is not None

    def close(self) -> None:
        """Close the files."""
        self.keeper.close()
        self.files.close()

    def _is_silent(self) -> bool:
        """Tell whether nothing was heard of any attempt for longer than their epochs or a start explain.

        Before the first epoch nobody knows how long one takes, so more patience is needed. Where no attempt
        has a process, that may be for want of a node with room, which is no fault.
        """
        started, patience = (
            any(attempt.started for attempt in self.live.values()),
            self.settings.stall_seconds,
        )
        if started:
            patience = max(patience, SLOWEST * (self._slowest or patience))
        if time.monotonic() - self.heard < patience * 2**self._stalls:
            return False
        if started or self._has_room():
            return True
        self.heard = time.monotonic()
        return False

    def _has_room(self) -> bool:
        try:
            free = ray.available_resources()  # type: ignore[no-untyped-call]
        except RayError:
            return True
        settings = self.settings
        return bool(
            free.get("CPU", 0.0) >= settings.cpus_per_trial
            and free.get("GPU", 0.0) >= (settings.gpus_per_trial or 0.0)
        )

    def _end_if_over(self, trial: TrialRecord) -> bool:
        """End a trial that was lost when nothing was left for it to do."""
        over = (
            trial.trial_id in self.asha.stopped
            or trial.last.get("done")
            or trial.epoch >= trial.epochs_planned
        )
        if over:
            self._end(trial, failed=False)
        return bool(over)

    def _end(self, trial: TrialRecord, *, failed: bool) -> None:
        self.study.end(trial.trial_id, failed=failed)
        self.keeper.ended(trial)
        self.files.ended(trial)
        self.progress.ended(trial)
