"""Ray's trials beside the ledger: made from its records, and what they report written into it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from ray.air.constants import (
    EXPR_ERROR_FILE,
    EXPR_ERROR_PICKLE_FILE,
    EXPR_RESULT_FILE,
    TRAINING_ITERATION,
)
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, CheckpointConfig
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import SearchGenerator

from tune_mnist.folder import CHECKPOINT, REPORTS, RunFolder, SavedCheckpoint
from tune_mnist.hyperparameters import FAILURE, METRIC, MODE, TIME_ATTR
from tune_mnist.ledger import CHECKPOINT_NAME, Ledger, TrialRecord, ray_config
from tune_mnist.search import TruthfulOptunaSearch

CHECKPOINTS = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order=MODE)
"""Kept of a trial: the checkpoint with the highest accuracy and, as Ray always does, the newest."""


class TrialSource(SearchGenerator):
    """Hands Ray Tune the trials of the ledger first, each as it stands, and then those of the searcher."""

    def __init__(
        self, searcher: TruthfulOptunaSearch, folder: RunFolder, ledger: Ledger, max_concurrent_trials: int
    ) -> None:
        """Take at most ``max_concurrent_trials`` unended trials at a time from the ledger."""
        super().__init__(searcher)
        self._folder, self._ledger, self._limit = folder, ledger, max_concurrent_trials
        self._checkpoints = folder.checkpoints() if ledger.trials else {}
        # Those that have ended first: they need not wait for a place.
        self._recorded = sorted(ledger.trials.values(), key=lambda trial: (trial.state is None, trial.number))
        self._started: list[TrialRecord] = []

    def next_trial(self) -> Trial | None:
        """Give Ray the next trial, None where there is none for now."""
        if not self._recorded:
            trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
            return trial
        if self._recorded[0].state is None:
            self._started = [record for record in self._started if record.state is None]
            if len(self._started) >= self._limit:
                return None
            self._started.append(self._recorded[0])
        self._counter += 1
        return self._restored(self._recorded.pop(0))

    def is_finished(self) -> bool:
        """Tell whether all trials have been handed out."""
        return not self._recorded and bool(super().is_finished())

    def raised(self, trial_id: str, error: str) -> None:
        """Note the first line of what a trial raised, or what it was lost of."""
        self._ledger.raised(trial_id, error)

    def take_in_saved(self, trial: Trial) -> None:
        """Give a lost trial its newest checkpoint: Ray learns of one only after the report of its epoch."""
        saved = self._ledger.trials[trial.trial_id].saved
        if not saved:
            return
        name = saved[-1][CHECKPOINT_NAME]
        run = f"{self._folder.path}/{self._ledger.trials[trial.trial_id].directory}"
        known = trial.checkpoint.path.rpartition("/")[2] if trial.checkpoint else ""
        if name > known and self._folder.has(f"{run}/{name}/{CHECKPOINT}"):
            checkpoint = Checkpoint(path=f"{run}/{name}", filesystem=self._folder.fs)
            metrics = {**saved[-1], "trial_id": trial.trial_id, "config": trial.config}
            trial.on_checkpoint(_TrainingResult(checkpoint=checkpoint, metrics=metrics))

    def save_to_dir(self, dirpath: str, session_str: str = "", **kwargs: Any) -> None:
        """Save nothing: the ledger has it all."""

    def _restored(self, record: TrialRecord) -> Trial:
        assert self._experiment is not None  # Ray gives it before it asks for trials
        spec = self._experiment.spec
        trial = Trial(
            spec["run"],
            config=ray_config(record),
            trial_id=record.trial_id,
            evaluated_params=record.config,
            experiment_tag=str(self._counter),
            checkpoint_config=spec["checkpoint_config"],
            trial_dirname_creator=spec["trial_dirname_creator"],
            max_failures=spec["max_failures"],
            storage=spec["storage"],
            # Of one that is no stub, Ray asks its server for the trainable, three times.
            stub=record.state is not None,
        )
        fill(trial, record, self._folder, self._checkpoints.get(record.directory, []))
        if record.state is None:
            trial.set_status(Trial.PENDING)
        return trial


def kept_checkpoints(
    record: TrialRecord, saved: list[SavedCheckpoint]
) -> list[tuple[SavedCheckpoint, dict[str, Any]]]:
    """List the whole ones of a trial's checkpoints that the ledger knows, each with its report."""
    reports = {epoch[CHECKPOINT_NAME]: epoch for epoch in record.saved}
    return [(one, reports[one.name]) for one in saved if one.whole and one.name in reports]


def fill(trial: Trial, record: TrialRecord, folder: RunFolder, saved: list[SavedCheckpoint]) -> None:
    """Bring a Ray trial to where the ledger has it: folder, checkpoints, last report, status."""
    run: Any = trial.run_metadata  # Any: Ray's attributes are set to None first, which is all that mypy sees
    storage: Any = trial.storage
    raw: Any = trial
    raw.relative_logdir = storage.trial_dir_name = record.directory
    for one, report in kept_checkpoints(record, saved):
        checkpoint = Checkpoint(path=one.path, filesystem=folder.fs)
        metrics = {**report, "trial_id": record.trial_id, "config": trial.config}
        run.checkpoint_manager.register_checkpoint(_TrainingResult(checkpoint=checkpoint, metrics=metrics))
    if saved:
        storage.current_checkpoint_index = saved[-1].index
    if record.epochs:
        run.last_result = {**record.last, "trial_id": record.trial_id, "config": trial.config}
    raw.set_status(Trial.ERROR if record.state == "FAIL" else Trial.TERMINATED)
    if record.state == "FAIL":
        run.error_filename = EXPR_ERROR_FILE
        run.pickled_error_filename = EXPR_ERROR_PICKLE_FILE


def take_in_checkpoints(folder: RunFolder, ledger: Ledger) -> None:
    """Let the checkpoints of unended trials tell what the ledger does not know, and remove torn ones.

    A checkpoint can be ahead of the ledger: a worker saves it before the driver hears of it. The reports are
    taken in by time, as the scheduler had judged them.

    Raises:
        FolderError: if the storage can't be read or written.
    """
    found = folder.checkpoints()
    ahead: list[tuple[float, str, dict[str, Any]]] = []
    for trial in ledger.unended():
        for saved in found.get(trial.directory, []):
            try:
                reports = json.loads(folder.read(f"{trial.directory}/{saved.name}/{REPORTS}") or b"")
            except ValueError:
                reports = []
            if not (reports and saved.whole and folder.is_intact(saved)):
                folder.remove_checkpoint(saved)
                continue
            reports[-1] |= {CHECKPOINT_NAME: saved.name, TRAINING_ITERATION: reports[-1][TIME_ATTR]}
            ahead += [(report["timestamp"], trial.trial_id, report) for report in reports]
    for _, trial_id, report in sorted(ahead, key=lambda one: one[0]):
        ledger.reported(trial_id, report)


class RecordCallback(JsonLoggerCallback):
    """Writes each report into the ledger, and from there into the trial's ``result.json``."""

    def __init__(self, folder: RunFolder, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder, self._ledger = folder, ledger
        self._lines: dict[str, int] = {}

    def log_trial_start(self, trial: Trial) -> None:
        """Begin the file with what the ledger knows: after a resume or a retry that is not nothing."""
        self.log_trial_end(trial)
        trial.init_local_path()  # type: ignore[no-untyped-call]
        self.update_config(trial, trial.config)
        path = Path(trial.local_path or "", EXPR_RESULT_FILE)
        self._trial_files[trial] = path.open("wt")
        self._lines[trial.trial_id] = 0
        self._write_new(trial)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Take a report down; of an epoch that is known already, nothing is written."""
        if failure := result.get(FAILURE):
            self._ledger.raised(trial.trial_id, failure)
            self._write_error(trial, failure)
            return
        self._ledger.reported(trial.trial_id, result)
        self._write_new(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Copy what has been written into the bucket, where there is one and it is time."""
        self._folder.push()

    def _write_error(self, trial: Trial, failure: str) -> None:
        """Write the files that Ray writes where a trial raises: its ResultGrid reads them."""
        folder = Path(trial.local_path or "")
        (folder / EXPR_ERROR_FILE).write_text(f"{failure}\n")
        (folder / EXPR_ERROR_PICKLE_FILE).write_bytes(pickle.dumps(RuntimeError(failure)))

    def _write_new(self, trial: Trial) -> None:
        epochs, file = self._ledger.trials[trial.trial_id].epochs, self._trial_files[trial]
        for epoch in epochs[self._lines[trial.trial_id] :]:
            file.write(json.dumps({**epoch, "trial_id": trial.trial_id, "config": trial.config}) + "\n")
        file.flush()
        self._lines[trial.trial_id] = len(epochs)
