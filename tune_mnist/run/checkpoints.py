"""Which checkpoints are kept: recovers reports from those of lost attempts, and deletes old ones."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import CHECKPOINT_NAME, TrialRecord
from tune_mnist.run.saved import CHECKPOINT, REPORTS, SavedCheckpoint, is_intact, list_checkpoints


def kept_checkpoints(
    record: TrialRecord, saved: list[SavedCheckpoint]
) -> list[tuple[SavedCheckpoint, dict[str, Any]]]:
    """List a trial's complete checkpoints that the ledger knows, each with its report."""
    reports = {epoch[CHECKPOINT_NAME]: epoch for epoch in record.saved}
    return [
        (checkpoint, reports[checkpoint.name])
        for checkpoint in saved
        if checkpoint.whole and checkpoint.name in reports
    ]


def take_in_checkpoints(folder: RunFolder, ledger: Ledger) -> None:
    """Add reports from unfinished trials' checkpoints to the ledger; delete damaged checkpoints.

    A checkpoint can be ahead of the ledger: a worker writes it before the driver hears of it. The reports are
    added in order of time, as the scheduler had judged them.

    Raises:
        FolderError: if the storage cannot be read or written.
    """
    checkpoints = list_checkpoints(folder)
    ahead = [
        (report["timestamp"], trial.trial_id, report)
        for trial in ledger.unfinished()
        for report in _ahead(folder, trial, checkpoints.get(trial.directory, []))
    ]
    for _, trial_id, report in sorted(ahead, key=lambda entry: entry[0]):
        ledger.reported(trial_id, report)


def take_in_trial(folder: RunFolder, ledger: Ledger, trial: TrialRecord) -> str | None:
    """Do the same for a trial whose attempt was lost; return the name of its newest checkpoint."""
    saved = list_checkpoints(folder, trial.directory).get(trial.directory, [])
    for report in _ahead(folder, trial, saved):
        ledger.reported(trial.trial_id, report)
    names = {checkpoint.name for checkpoint in saved if folder.has(f"{checkpoint.path}/{CHECKPOINT}")}
    return max((name for epoch in trial.saved if (name := epoch[CHECKPOINT_NAME]) in names), default=None)


def _ahead(folder: RunFolder, trial: TrialRecord, saved: list[SavedCheckpoint]) -> list[dict[str, Any]]:
    ahead: list[dict[str, Any]] = []
    if not folder.remote:
        for half_written in Path(folder.path, trial.directory).glob(".checkpoint_*"):
            shutil.rmtree(half_written, ignore_errors=True)
    for checkpoint in saved:
        try:
            reports = json.loads(folder.read(f"{trial.directory}/{checkpoint.name}/{REPORTS}") or b"")
        except ValueError:
            reports = []
        if not (reports and checkpoint.whole and is_intact(folder, checkpoint)):
            with folder.errors():
                folder.fs.delete_dir(checkpoint.path)
            continue
        reports[-1] |= {CHECKPOINT_NAME: checkpoint.name}
        ahead += reports
    return ahead


class CheckpointKeeper:
    """Deletes the checkpoints that are no longer needed, while the search runs.

    An unfinished trial keeps its newest, for its next attempt, and its best. Of the trials that have ended,
    the best ``keep`` keep their best one, which `score_winner` and the ResultGrid use. So the best of all is
    never deleted before the ledger knows a better one.
    """

    def __init__(self, folder: RunFolder, ledger: Ledger, keep: int) -> None:
        """Start from what is stored, and delete what an earlier session left over."""
        self._folder, self._ledger, self._keep = folder, ledger, keep
        # A deletion behind a URI takes a tenth of a second: Ray's loop must not wait for it.
        self._thread = ThreadPoolExecutor(1, "delete") if folder.remote else None
        self._ended: list[tuple[float, int, str]] = []
        "The best trials that have ended: negative score, number and id; the best first."
        self._stored: dict[str, set[str]] = {}
        checkpoints = list_checkpoints(folder) if ledger.trials else {}
        for trial in ledger.trials.values():
            saved = checkpoints.get(trial.directory, [])
            self._stored[trial.trial_id] = {checkpoint.name for checkpoint in saved}
            if trial.state is None:
                self.saved(trial)
            else:
                self.ended(trial)

    def saved(self, trial: TrialRecord) -> None:
        """Record a trial's newest checkpoint, and delete the older ones except the best."""
        stored = self._stored.setdefault(trial.trial_id, set())
        stored.update(epoch[CHECKPOINT_NAME] for epoch in trial.saved[-1:])
        known = [epoch for epoch in trial.saved if epoch[CHECKPOINT_NAME] in stored]
        if known:
            self._delete(trial, {known[-1][CHECKPOINT_NAME], self._best(known)[CHECKPOINT_NAME]})

    def ended(self, trial: TrialRecord) -> None:
        """Keep the best checkpoint of an ended trial if it is among the best; delete the others."""
        stored = self._stored.get(trial.trial_id, set())
        known = [epoch for epoch in trial.saved if epoch[CHECKPOINT_NAME] in stored]
        if not known or trial.state == "FAIL":
            self._delete(trial, set())
            return
        best = self._best(known)
        self._delete(trial, {best[CHECKPOINT_NAME]})
        self._ended.append((-self._ledger.objective.score(best), trial.number, trial.trial_id))
        self._ended.sort()
        for _, _, trial_id in self._ended[self._keep :]:
            self._delete(self._ledger.trials[trial_id], set())
        del self._ended[self._keep :]

    def _delete(self, trial: TrialRecord, keep: set[str]) -> None:
        stored = self._stored.get(trial.trial_id, set())
        for name in stored - keep:
            path = f"{self._folder.path}/{trial.directory}/{name}"
            if self._thread:
                self._thread.submit(self._remove, path)
            else:
                self._remove(path)
        stored &= keep
        if not stored:
            self._stored.pop(trial.trial_id, None)

    def close(self) -> None:
        """Wait until all is deleted."""
        if self._thread:
            self._thread.shutdown()

    def _best(self, epochs: list[dict[str, Any]]) -> dict[str, Any]:
        return max(epochs, key=self._ledger.objective.score)

    def _remove(self, path: str) -> None:
        with suppress(OSError):  # a resume tries again
            self._folder.fs.delete_dir(path)
