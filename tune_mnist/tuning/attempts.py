"""Attempts at trials: what Ray Tune runs, when it stops them, and how lost ones are retried.

A trial is a number in the ledger. A Ray trial is one attempt at it. Ray never retries (``max_failures=0``):
an attempt that is lost with its process or node is submitted again as a new Ray trial, with the trial's
newest checkpoint, by the same searcher and in the same ``fit()``. A resume works the same way. Ray's own
retries lose trials whose process dies while it is being reused, or end them silently.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tune_mnist.tuning.trouble import Trouble, Watchdog


class Attempts:
    """The running attempts of a search."""

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        study: TrialStudy,
        asha: ASHA,
        progress: ProgressKeeper,
        stop: StopRequest,
        session: Callable[[], Path | None],
    ) -> None:
        """Start from the study's ledger; ``session`` returns Ray's folder, if it is on this machine."""
        self.settings, self.folder, self.study, self.ledger = settings, folder, study, study.ledger
        self.asha, self.progress, self.stop = asha, progress, stop
        self.keeper = CheckpointKeeper(folder, self.ledger, settings.keep_checkpoints)
        self.metric = self.ledger.objective.metric
        self.files = TrialFiles(folder, self.metric)
        self.live: dict[str, TrialRecord] = {}
        "The trials with an attempt, by the id of its Ray trial."
        self.training: set[str] = set()
        "The ids of the attempts that have a process."
        self.waiting: deque[TrialRecord] = deque()
        "Unfinished trials without an attempt."
        self.stalled = False
        "Whether this round is ended because nothing responds."
        self.trouble = Trouble(self._slots, progress.listener.on_message)
        epochs = (epoch for trial in self.ledger.trials.values() for epoch in trial.epochs)
        slowest = max((float(epoch.get("epoch_seconds", 0.0)) for epoch in epochs), default=0.0)
        self.watchdog = Watchdog(settings, session, slowest)

    @property
    def unfinished(self) -> bool:
        """Whether a trial has not ended, or is still to be drawn."""
        return bool(self.ledger.unfinished()) or len(self.ledger.trials) < self.settings.num_samples

    @property
    def hopeless(self) -> str:
        """Why another attempt is pointless; "" while it is not."""
        if self.watchdog.reason or self.watchdog.has_lost_folder():
            return self.watchdog.reason
        return self.trouble.reason if self.trouble.hopeless and not self.live else ""

    @property
    def _slots(self) -> int:
        return self.settings.max_concurrent_trials or 1

    def begin_round(self) -> None:
        """Reclaim the attempts that an earlier call of ``fit()`` left running; they do not count as lost."""
        self.live.clear()
        self.training.clear()
        self.waiting = deque(sorted(self.ledger.unfinished(), key=lambda trial: trial.number))
        self.stalled = False
        self.watchdog.heard()

    def suggest(self, attempt: str) -> dict[str, Any] | str | None:
        """Return the config of the next attempt, None if there is none now, or FINISHED.

        None only while an attempt is running: otherwise Ray would wait for minutes without asking again.
        """
        if self.stop.reason or self.stalled or self.hopeless:
            return Searcher.FINISHED
        # The slot of an attempt that failed to import may be on a node that would lose the next one too.
        if self.live and (len(self.live) + self.trouble.losses >= self._slots or self.trouble.pause):
            return None
        while (pause := self.trouble.pause) and not self.stop.reason:
            time.sleep(min(pause, 0.2))
        trial, resume_from = self._next(attempt)
        if trial is None:
            return None if self.live else Searcher.FINISHED
        self.ledger.attempted(trial.trial_id, attempt, resume_from)
        self.live[attempt] = trial
        self.progress.feed(trial)
        self.watchdog.heard()
        needed = {"number": trial.attempts, "directory": trial.directory, "resume_from": resume_from}
        return {**ray_config(trial), ATTEMPT: needed}

    def _next(self, attempt: str) -> tuple[TrialRecord | None, str | None]:
        while self.waiting:
            trial = self.waiting.popleft()
            known = len(trial.epochs)
            resume_from = take_in_trial(self.folder, self.ledger, trial)
            for epoch in trial.epochs[known:]:  # saved, but not received before
                self.asha.stops(trial.trial_id, epoch[EPOCH], epoch[self.metric])
                self.progress.reported(trial)
            if not self._end_if_over(trial):
                self.files.begin(trial)
                return trial, resume_from
        if len(self.ledger.trials) < self.settings.num_samples:
            return self.study.draw(attempt), None
        return None, None

    def started(self, attempt: str) -> None:
        """Record that an attempt has a process."""
        self.watchdog.heard(started=True)
        if attempt in self.live:
            self.training.add(attempt)

    def stops(self, attempt: str, result: dict[str, Any]) -> bool:
        """Return whether an attempt stops with this report."""
        if attempt not in self.live:
            return False
        trial = self.live[attempt]
        return self.asha.stops(trial.trial_id, result[EPOCH], result[self.metric])

    def reported(self, attempt: str, result: dict[str, Any]) -> None:
        """Record a report, or why training failed."""
        self.watchdog.heard()
        if attempt not in self.live:
            return
        self.trouble.heard()
        trial = self.live[attempt]
        if FAILURE in result:
            self.ledger.raised(trial.trial_id, result[FAILURE])
            self.files.raised(trial, result.get(TRACEBACK) or result[FAILURE])
            return
        report = {key: value for key, value in result.items() if key not in (SAVED, "training_iteration")}
        report |= {CHECKPOINT_NAME: result.get(SAVED), "training_iteration": result[EPOCH]}
        known = len(trial.epochs)
        self.study.report(trial.trial_id, report)
        self.watchdog.slowest = max(self.watchdog.slowest, float(result.get("epoch_seconds", 0.0)))
        if len(trial.epochs) > known:
            self.files.reported(trial)
        if report[CHECKPOINT_NAME]:
            self.keeper.saved(trial)
        self.progress.reported(trial)

    def completed(self, attempt: str, result: dict[str, Any] | None) -> None:
        """Record the end of a trial, whether stopped by Ray or ended by its own code."""
        if trial := self._forget(attempt):
            self._end(trial, failed=FAILURE in (result or {}))

    def lost(self, attempt: str, error: BaseException | str) -> None:
        """Record that an attempt was lost; its trial is retried unless it was lost too often.

        What training itself raised would be raised again, so that ends the trial. Losses that would hit any
        trial do not count.
        """
        trial = self._forget(attempt)
        if trial is None or self.stalled or self.stop.reason:  # then Ray ends the attempts without notice
            return
        cause = getattr(error, "cause", None) or error
        text = cause if isinstance(cause, str) else first_line(cause)
        details = error if isinstance(error, str) else "".join(traceback.format_exception(error))
        self.files.raised(trial, details)
        if excuse := self.trouble.excuses(cause, details):
            self.ledger.raised(trial.trial_id, excuse)
            self.waiting.appendleft(trial)
            return
        if isinstance(error, RayTaskError) and not isinstance(cause, RayError | OSError):
            self.ledger.raised(trial.trial_id, text)
            self._end(trial, failed=True)
            return
        self.ledger.lost(trial.trial_id, attempt, text)
        self.trouble.memory(details, trial.lost)
        if self._end_if_over(trial):
            return
        if trial.lost > self.settings.max_failures:
            self._end(trial, failed=True)
        else:
            self.waiting.appendleft(trial)
            self.progress.lost()

    def step(self) -> None:
        """Do what depends on time: the time budget, copies into a bucket, what is shown."""
        running = len(self.training)
        self.progress.stepped(running=running, pending=len(self.live) - running)
        self.stop.check(self.progress.progress)
        self.folder.push()

    def must_end(self) -> bool:
        """Return whether Ray's loop must end now: the search stops, is hopeless or makes no progress."""
        if not self.stalled and self.live and self.watchdog.is_silent(training=bool(self.training)):
            self.stalled = True
            self.ledger.broke(f"nothing was heard of {len(self.live)} attempts")
        return self.stalled or bool(self.hopeless) or self.stop.reason is not None

    def close(self) -> None:
        """Close the files."""
        self.keeper.close()
        self.files.close()

    def _forget(self, attempt: str) -> TrialRecord | None:
        """Remove a running attempt and return its trial; None if it is not running."""
        self.training.discard(attempt)
        return self.live.pop(attempt, None)

    def _end_if_over(self, trial: TrialRecord) -> bool:
        """End a lost trial that had nothing left to do."""
        over = trial.trial_id in self.asha.stopped or trial.is_over
        if over:
            self._end(trial, failed=False)
        return over

    def _end(self, trial: TrialRecord, *, failed: bool) -> None:
        self.study.end(trial.trial_id, failed=failed)
        self.keeper.ended(trial)
        self.files.ended(trial)
        self.progress.ended(trial)
